//! `worker-gate check`: every check once, without a broker.

use std::fmt::Write as _;

use futures_util::future::join_all;

use super::{
    Context, Exit, out,
    prepare::{prepare, runner},
};
use crate::{
    clock, daemon,
    model::{CheckStatus, ProfileState, Reason, Record},
    probe::{image, schedule::once},
    verdict::{Gate, Input},
};

pub(super) async fn check(context: &Context, json: bool) -> anyhow::Result<Exit> {
    let (settings, identities) = prepare(context)?;
    let runner = runner(context, &settings)?;
    let probes = crate::probe::probes(&settings);
    let found = join_all(identities.iter().map(|identity| {
        let (runner, settings, probe) = (runner.clone(), &settings, probes(identity));
        async move { once(identity, &settings.checks, probe.as_ref(), &runner).await }
    }))
    .await;
    let mut gate = Gate::new(daemon::policy(&settings), daemon::owners(&identities, &settings));
    // First, as what is checked before it counts for another image.
    gate.step(clock::now(), Input::Image(image::look(&settings.image.manifest, None)));
    for observation in found.into_iter().flatten() {
        gate.step(clock::now(), Input::Observed(observation));
    }
    let records = gate.examine();
    let text = if json { format!("{}\n", serde_json::to_string(&records)?) } else { table(&records) };
    out::text(&text)?;
    let fit = records.iter().all(|record| is_fit(record, settings.profile.is_some()));
    Ok(if fit { Exit::Done } else { Exit::Unfit })
}

fn is_fit(record: &Record, profile: bool) -> bool {
    let managed = record.profile.as_ref().is_some_and(|report| report.state == ProfileState::Managed);
    let passed = record.checks.values().all(|check| !check.required || check.status == CheckStatus::Passed);
    passed && (managed || !profile) && record.reason.is_none()
}

fn table(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records {
        let _ = writeln!(text, "{}", record.worker_name);
        for (name, check) in &record.checks {
            let status = match check.status {
                CheckStatus::Passed => "passed",
                CheckStatus::Failed => "failed",
                CheckStatus::Skipped => "skipped",
            };
            let version = check.version.as_deref().unwrap_or("");
            let optional = if check.required { "" } else { " (not required)" };
            let _ = writeln!(text, "  {status:8} {name} {version}{optional}");
            if let Some(message) = &check.message {
                let _ = writeln!(text, "           {message}");
            }
        }
        if let Some(report) = &record.profile {
            let state = match report.state {
                ProfileState::Managed => "managed",
                ProfileState::Drifted => "drifted",
                ProfileState::Missing => "missing",
            };
            let _ = writeln!(text, "  {state:8} {}", report.path);
            if let Some(problem) = &report.problem {
                let _ = writeln!(text, "           {}; {}", problem.detail, problem.remedy);
            }
        }
        if let Some(Reason { detail, remedy, .. }) = &record.reason {
            let _ = writeln!(text, "  failed   image\n           {detail}; {remedy}");
        }
    }
    text
}
