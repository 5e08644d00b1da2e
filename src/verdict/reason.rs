//! The reasons that the verdict gives of its own.

use std::time::Duration;

use super::{Policy, evidence::CheckEvidence, fleet::Suspicion};
use crate::model::{
    Code, Hold, ImageReport, ProfileReport, ProfileState, Readmission, Reason, Recycled, Way, WorkerName,
};

pub(super) fn starting() -> Reason {
    Reason::new(Code::Starting, "not every required check has passed yet since the gate owns this worker", "")
}

pub(super) fn fit() -> Reason {
    Reason::new(Code::Fit, "every required check passed and the evidence is fresh", "")
}

pub(super) fn stopping() -> Reason {
    let why = "the gate is stopping; the edge stays shut until a gate runs again";
    Reason::new(Code::Stopping, why, "start worker-gate again")
}

pub(super) fn stale(policy: &Policy) -> Reason {
    Reason::new(
        Code::EvidenceStale,
        format!("the newest proof is older than evidence.max_age ({} s)", policy.max_age.as_secs_f64()),
        "find out why the checks did not run: worker-gate check",
    )
}

pub(super) fn failed(name: &str, evidence: &CheckEvidence) -> Reason {
    let failure = evidence.last().and_then(|(result, _)| result.message.as_ref());
    let times = match evidence.fails() {
        0 | 1 => String::new(),
        fails => format!(" ({fails} times in a row)"),
    };
    match failure {
        Some(failure) => Reason::new(
            Code::CheckFailed,
            format!("check {name} failed{times}: {}", failure.detail),
            failure.remedy.clone(),
        ),
        None => Reason::new(
            Code::CheckFailed,
            format!("check {name} passed again, but not yet as often as checks.{name}.pass_after asks"),
            "wait for its next passes",
        ),
    }
}

/// Why a worker stays admitted although this check fails.
pub(super) fn suspect(name: &str, evidence: &CheckEvidence, intake: &str, suspicion: Suspicion) -> Reason {
    let Reason { detail, remedy, .. } = failed(name, evidence);
    let Suspicion { fallen, workers, share } = suspicion;
    Reason::new(
        Code::FleetSuspect,
        format!(
            "{detail}; {fallen} of {workers} workers of {intake} were quarantined by failing checks within five minutes, and \
             one more would be over fleet.max_quarantined ({share}%): check {name} itself is the likely cause, so this \
             worker stays admitted"
        ),
        format!("look at check {name} and at what it depends on first; if it is right: {remedy}"),
    )
}

pub(super) fn held(worker: &WorkerName, hold: &Hold) -> Reason {
    let Hold { by, reason, since, until } = hold;
    let until = until.map_or_else(|| "until it is released".to_owned(), |until| format!("until {until:.0}"));
    let why = if reason.is_empty() { "no reason given" } else { reason };
    Reason::new(
        Code::OperatorHold,
        format!("held by {by} since {since:.0} {until}: {why}"),
        format!("worker-gate release {worker}"),
    )
}

pub(super) fn drifted(report: &ProfileReport) -> Reason {
    let code = if report.state == ProfileState::Missing { Code::ProfileMissing } else { Code::ProfileDrifted };
    let (detail, remedy) = report.problem.as_ref().map_or_else(
        || ("the profile is not as the policy wants it".to_owned(), String::new()),
        |failure| (failure.detail.clone(), failure.remedy.clone()),
    );
    Reason::new(code, detail, remedy)
}

pub(super) fn tool_changed(name: &str, path: &str) -> Reason {
    Reason::new(
        Code::ToolChanged,
        format!("what check {name} runs has changed: {path}; what was proven of it no longer counts"),
        "none: the check runs again by itself",
    )
}

pub(super) fn settings_changed(what: &str) -> Reason {
    Reason::new(
        Code::SettingsChanged,
        format!("the settings ask for {what} as it was not asked for before, and it has not been proven since"),
        "none: the checks run again by themselves",
    )
}

pub(super) fn dismissed() -> Reason {
    let why = "the settings no longer have this worker, or have it with another lane or intake";
    Reason::new(Code::SettingsChanged, why, "")
}

/// Why a worker may not work on this image, as long as `image.required` is set.
pub(super) fn unverified(report: &ImageReport) -> Reason {
    let detail = match (&report.image, &report.problem) {
        (None, Some(failure)) => failure.detail.clone(),
        (None, None) => "there is no image manifest (image.manifest), and image.required is true".to_owned(),
        (Some(_), _) => "the image manifest says built, and only a verified image may work".to_owned(),
    };
    let remedy = report.problem.as_ref().map_or("use an image that was verified when it was built", |f| &f.remedy);
    Reason::new(Code::ImageUnverified, detail, remedy)
}

pub(super) fn mismatch(name: &str, listed: Option<&str>, found: &str) -> Reason {
    let listed = listed.unwrap_or("no version");
    Reason::new(
        Code::ImageMismatch,
        format!("check {name} found version {found}, and the image manifest lists {listed}"),
        "install the version that the image was verified with, or build and verify a new image",
    )
}

pub(super) fn image_changed() -> Reason {
    Reason::new(
        Code::ImageChanged,
        "the image manifest has changed; what was proven before no longer counts",
        "none: the checks run again by themselves",
    )
}

pub(super) fn flapping(readmission: &Readmission) -> Reason {
    Reason::new(
        Code::Flapping,
        format!(
            "everything passed again, but this worker was quarantined {} times in a row, each time soon after it was \
             admitted; it waits until {:.0}",
            readmission.quarantines, readmission.at
        ),
        "find out what keeps changing: worker-gate audit; evidence.flap_wait sets the wait",
    )
}

pub(super) fn bypass(way: Way) -> Reason {
    let Way { by, remedy, messages } = way;
    let detail = match messages {
        0 => format!("the lane could be reached past the shut edge, by {by}; that was undone before a message came"),
        1 => format!("1 message came to the lane past the shut edge and was taken back; it came by {by}"),
        _ => format!("{messages} messages came to the lane past the shut edge and were taken back; they came by {by}"),
    };
    Reason::new(Code::Bypass, detail, remedy)
}

pub(super) fn recycled(recycled: Recycled) -> Reason {
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    match recycled {
        Recycled::Back { by, stopped, away } => Reason::new(
            Code::Recycled,
            format!(
                "asked by {by}, the worker stopped consuming after {} and consumes its lane again {} later",
                seconds(stopped),
                seconds(away)
            ),
            "",
        ),
        Recycled::Away { by, away } => Reason::new(
            Code::NotRecycled,
            format!("asked by {by}, the worker has stopped consuming, and has not come back for {}", seconds(away)),
            "none, if it still finishes a task that runs; else see that its supervisor starts it again",
        ),
        Recycled::Stays(why) => Reason::new(
            Code::NotRecycled,
            format!("the worker could not be made to start anew: {why}"),
            "restart the worker",
        ),
    }
}
