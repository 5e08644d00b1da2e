//! Checks that fail on so much of the fleet that they are in doubt themselves: one that does keeps nobody out who is in.

use std::{collections::BTreeMap, time::Duration};

use super::Worker;
use crate::{
    model::{Admission, FactKind, Mono, Now, Observation, Reason},
    verdict::{Policy, Step, fact, fleet::Tally, reason},
};

/// The failing checks of one worker that do not count. There is none unless the worker is admitted.
#[derive(Debug, Default)]
pub(super) struct Excuses(BTreeMap<String, Excuse>);

#[derive(Debug)]
struct Excuse {
    reason: Reason,
    /// When the newest look began. A check that fails is excused, and one that does not run is not.
    looked_at: Mono,
}

impl Excuses {
    /// Whether this check is excused.
    pub(super) fn has(&self, check: &str) -> bool {
        self.0.contains_key(check)
    }

    /// Why the worker is admitted although it is not proven, if that is so.
    pub(super) fn reason(&self) -> Option<&Reason> {
        self.0.values().next().map(|excuse| &excuse.reason)
    }

    /// When the excuse of this check will have been without a look for so long.
    pub(super) fn stale_at(&self, check: &str, age: Duration) -> Option<Mono> {
        self.0.get(check).map(|excuse| excuse.looked_at + age)
    }

    pub(super) fn end(&mut self, check: &str) {
        self.0.remove(check);
    }

    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&str) -> bool) {
        self.0.retain(|check, _| is_kept(check));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Worker {
    /// Looks at a check whose result was just taken in, before anything follows from it. True if the worker needs an excuse
    /// now, and needed none before.
    pub(super) fn weigh(
        &mut self,
        check: &str,
        observed: &Observation,
        policy: &Policy,
        fleet: Option<&mut Tally>,
    ) -> bool {
        let Some(evidence) = self.checks.get(check) else { return false };
        if !evidence.is_unfit() {
            self.excuses.end(check);
            return false;
        }
        if let Some(excuse) = self.excuses.0.get_mut(check) {
            excuse.looked_at = excuse.looked_at.max(observed.started);
            return false;
        }
        let is_required = policy.checks.get(check).is_some_and(|rule| rule.required);
        if !is_required || self.admission != Admission::Admitted || self.stopping {
            return false;
        }
        let Some(suspicion) = fleet.and_then(|fleet| fleet.fall(&self.intake)) else { return false };
        let is_first = self.excuses.0.is_empty();
        let reason = reason::suspect(check, evidence, &self.intake, suspicion);
        self.excuses.0.insert(check.to_owned(), Excuse { reason, looked_at: observed.started });
        is_first
    }

    pub(super) fn tell_suspicion(&self, now: Now, policy: &Policy, step: &mut Step) {
        // Something else may have kept it out in the same moment.
        if self.excuses.reason().is_some() {
            step.facts.push(fact(FactKind::FleetSuspect, now, self.record(policy)));
        }
    }

    /// Nothing is known of the fleet any more: what fails counts again.
    pub(in crate::verdict) fn end_excuses(&mut self, now: Now, policy: &Policy, step: &mut Step) {
        if self.is_excused() {
            self.excuses.clear();
            self.settle(now, now.mono, policy, step);
        }
    }

    pub(in crate::verdict) fn is_excused(&self) -> bool {
        self.excuses.reason().is_some()
    }

    pub(in crate::verdict) fn intake(&self) -> &str {
        &self.intake
    }

    /// When a failing check took it out, if one did and it is still out.
    pub(in crate::verdict) fn fell_at(&self) -> Option<Mono> {
        self.fell_at
    }
}
