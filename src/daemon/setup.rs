//! What a gate is made from.

use std::{collections::BTreeMap, path::PathBuf};

use super::LINK_LIMIT;
use crate::{
    control::key::Key,
    identity::Identity,
    model::WorkerName,
    probe::Runner,
    report::http::{Progress, Snapshot},
    settings::{Check, EdgeKind, FeedIntake, OnDrift, Settings},
    verdict::{CheckPolicy, FlapPolicy, Member, Policy},
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
    /// What requests over the broker have to be signed with.
    pub key: Option<Key>,
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
        max_quarantined: settings.fleet.max_quarantined,
    }
}

/// Whose checks vouch for whom, and from where each gets its work.
pub fn owners(identities: &[Identity], settings: &Settings) -> Vec<Member> {
    let intakes: BTreeMap<_, _> =
        settings.workers.iter().map(|worker| (&worker.name, intake_of(&worker.edge))).collect();
    let of = |identity: &Identity| {
        let (id, intakes) = (identity.id, &intakes);
        let member = move |name: &WorkerName| Member {
            name: name.clone(),
            identity: id,
            intake: intakes.get(name).cloned().unwrap_or_default(),
        };
        identity.workers.iter().map(member).collect::<Vec<_>>()
    };
    identities.iter().flat_map(of).collect()
}

/// One text for all workers that share an intake, on whichever gate.
fn intake_of(edge: &EdgeKind) -> String {
    match edge {
        EdgeKind::Route(intake) => format!("exchange {}", intake.exchange),
        EdgeKind::Feed(feed) => match &feed.intake {
            FeedIntake::Queue(queue) => format!("queue {queue}"),
            FeedIntake::Exchange { exchange, .. } => format!("exchange {exchange}"),
        },
    }
}

pub(super) fn first_snapshot(settings: &Settings) -> Snapshot {
    let slowest = settings.checks.values().map(Check::longest).max().unwrap_or_default();
    Snapshot {
        workers: Vec::new(),
        link: Progress { at: None, limit: LINK_LIMIT },
        checks: Progress { at: None, limit: slowest * 2 },
        audit: Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Feed, IntakeType, RouteIntake};

    #[test]
    fn an_intake_has_one_name_for_all_who_share_it() {
        let (exchange, keys) = ("codex".to_owned(), vec!["codex-0".to_owned()]);
        let kind = IntakeType::Direct;
        let route = RouteIntake { exchange: exchange.clone(), kind, keys: keys.clone() };
        assert_eq!(intake_of(&EdgeKind::Route(route)), "exchange codex");
        let feed = |intake| EdgeKind::Feed(Feed { intake, depth: 1, offline_after: LINK_LIMIT });
        assert_eq!(intake_of(&feed(FeedIntake::Queue("codex".to_owned()))), "queue codex");
        assert_eq!(intake_of(&feed(FeedIntake::Exchange { exchange, kind, keys })), "exchange codex");
    }
}
