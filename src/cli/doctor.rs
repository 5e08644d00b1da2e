//! `worker-gate doctor`

use anyhow::Context as _;

use super::{Coded, Context, Exit, out, run::broker_exit};
use crate::doctor::{DoctorError, Finding, examine};

pub(super) async fn doctor(context: &Context, json: bool) -> anyhow::Result<Exit> {
    let settings = context.settings()?.settings;
    let findings = examine(&settings).await.map_err(|error| {
        let exit = match &error {
            DoctorError::RabbitMq(error) => broker_exit(error.retry(), error.is_permission()),
            DoctorError::Redis(error) => broker_exit(error.retry(), error.is_permission()),
            DoctorError::Fault(fault) => broker_exit(fault.retry(), fault.is_permission()),
        };
        Coded::new(exit, anyhow::Error::from(error).context("failed to"))
    })?;
    if json {
        let text = serde_json::to_string_pretty(&findings).context("failed to write JSON")?;
        out::text(&format!("{text}\n"))?;
    } else {
        out::text(&report(&findings))?;
    }
    Ok(if findings.iter().any(|finding| finding.serious) { Exit::Unfit } else { Exit::Done })
}

fn report(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing found: no way round the gate that the broker or a worker tells of\n".to_owned();
    }
    let line = |finding: &Finding| {
        let weight = if finding.serious { "serious" } else { "warning" };
        format!("{weight}  {}: {}\n  -> {}\n", finding.code, finding.detail, finding.remedy)
    };
    findings.iter().map(line).collect()
}
