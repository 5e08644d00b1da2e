//! `worker-gate doctor`

use anyhow::Context as _;

use super::{Context, DoctorArgs, Exit, exit, out, prepare, run::broker_exit};
use crate::{
    control::asker::AskError,
    doctor::{self, DoctorError, Finding, Scope, users::Users},
    settings::Loaded,
};

/// What `--help` says beside the flags.
pub(super) const HELP: &str = "\
To have it tried whether a worker's or a producer's user is refused what it must be refused, put that user's broker URL into \
the environment: WORKER_GATE_WORKER_URL, WORKER_GATE_PRODUCER_URL. Nothing is consumed, published or changed by that. Which \
rights are enough: worker-gate doctor --grants.";

/// Prints every line; asks nobody.
pub(super) fn grants(context: &Context) -> anyhow::Result<Exit> {
    out::text(&doctor::grants(&context.settings()?.settings))?;
    Ok(Exit::Done)
}

pub(super) async fn doctor(context: &Context, args: &DoctorArgs) -> anyhow::Result<Exit> {
    let Loaded { settings, file, .. } = context.settings()?;
    let users = Users::from_env(&context.source.env, &settings.broker.urls)
        .map_err(|problem| exit::failed(Exit::Usage, &problem))?;
    let (identities, unseen) = match prepare::identities(context, &settings) {
        Ok(identities) => (identities, None),
        Err(error) => (Vec::new(), Some(Finding::unseen(&exit::text(&error)))),
    };
    let scope = Scope { file: file.as_deref(), identities: &identities, users, lanes: &args.lanes };
    let examined = doctor::examine(&settings, &scope).await;
    let mut findings = examined.map_err(|error| exit::failed(exit_of(&error), &error))?;
    findings.extend(unseen);
    if args.json {
        let text = serde_json::to_string_pretty(&findings).context("failed to write JSON")?;
        out::text(&format!("{text}\n"))?;
    } else {
        out::text(&report(&findings))?;
    }
    Ok(if findings.iter().any(|finding| finding.serious) { Exit::Unfit } else { Exit::Done })
}

pub(super) fn exit_of(error: &DoctorError) -> Exit {
    match error {
        DoctorError::RabbitMq(error) => broker_exit(error.retry(), error.is_permission()),
        DoctorError::Redis(error) => broker_exit(error.retry(), error.is_permission()),
        DoctorError::Ask(AskError::Key(_)) => Exit::Settings,
        DoctorError::Fault(fault) | DoctorError::Ask(AskError::Fault(fault)) => {
            broker_exit(fault.retry(), fault.is_permission())
        }
        DoctorError::User { source, .. } => exit_of(source),
    }
}

fn report(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing found: no way round the gate that the broker, a worker or a file tells of\n".to_owned();
    }
    let line = |finding: &Finding| {
        let weight = if finding.serious { "serious" } else { "warning" };
        format!("{weight}  {}: {}\n  -> {}\n", finding.code, finding.detail, finding.remedy)
    };
    findings.iter().map(line).collect()
}
