//! What a gate is made from.

use std::path::PathBuf;

use super::{DaemonError, LINK_LIMIT};
use crate::{
    identity::Identity,
    model::{IdentityId, WorkerName},
    probe::Runner,
    report::http::{Progress, Snapshot},
    settings::{OnDrift, Settings},
    verdict::{CheckPolicy, FlapPolicy, Policy},
};

/// What a gate is made from.
#[derive(Debug)]
pub struct Setup {
    /// What holds.
    pub settings: Settings,
    /// Everybody whom the settings name.
    pub identities: Vec<Identity>,
    /// Runs the checks' commands.
    pub runner: Runner,
    /// The settings file that was read, if one was.
    pub file: Option<PathBuf>,
}

/// The rules for the verdict.
pub fn policy(settings: &Settings) -> Policy {
    let rule = |check: &crate::settings::Check| CheckPolicy {
        required: check.required,
        fail_after: check.fail_after,
        pass_after: check.pass_after,
    };
    Policy {
        max_age: settings.evidence.max_age,
        checks: settings.checks.iter().map(|(name, check)| (name.clone(), rule(check))).collect(),
        profile: settings.profile.is_some(),
        repair: settings.profile.as_ref().is_some_and(|profile| profile.on_drift == OnDrift::Repair),
        image_required: settings.image.required,
        flap: FlapPolicy { wait: settings.evidence.flap_wait, max: settings.evidence.flap_max },
    }
}

/// Whose checks vouch for whom.
pub fn owners(identities: &[Identity]) -> Vec<(WorkerName, IdentityId)> {
    let of = |identity: &Identity| {
        let id = identity.id;
        identity.workers.iter().map(move |worker| (worker.clone(), id)).collect::<Vec<_>>()
    };
    identities.iter().flat_map(of).collect()
}

/// Whether this version can do all that the settings ask for.
pub(super) fn supported(settings: &Settings) -> Result<(), DaemonError> {
    if settings.events.mirror_celeryev {
        let (key, what) = ("events.mirror_celeryev", "it is not in this version; set it to false");
        return Err(DaemonError::Unsupported { key, what });
    }
    Ok(())
}

pub(super) fn first_snapshot(settings: &Settings) -> Snapshot {
    let slowest = settings.checks.values().map(|check| check.every + check.timeout).max().unwrap_or_default();
    Snapshot {
        workers: Vec::new(),
        link: Progress { at: None, limit: LINK_LIMIT },
        checks: Progress { at: None, limit: slowest * 2 },
        audit: Ok(()),
    }
}
