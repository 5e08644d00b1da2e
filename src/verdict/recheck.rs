//! When the checks of an identity are run because something asks for it.
//!
//! Each finding is told about each worker that it concerns, and each worker that the gate comes to own asks for new ones. A
//! thousand workers on one profile would ask a thousand times while they are made ready, for a million facts.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::model::{IdentityId, Mono};

/// Between two answered requests, for each worker that the findings will be told about: about what a disk needs for it.
const PACE: Duration = Duration::from_millis(2);

/// The requests that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Rechecks {
    asked: BTreeSet<IdentityId>,
    /// No request is answered before this moment.
    rest: BTreeMap<IdentityId, Mono>,
}

impl Rechecks {
    pub(super) fn ask(&mut self, identities: BTreeSet<IdentityId>) {
        self.asked.extend(identities);
    }

    /// Whom to check now. `workers` says how many an identity has.
    pub(super) fn due(&mut self, now: Mono, workers: impl Fn(IdentityId) -> usize) -> BTreeSet<IdentityId> {
        let ready = |identity: &IdentityId| self.rest.get(identity).is_none_or(|rest| now >= *rest);
        let (due, waiting): (BTreeSet<_>, BTreeSet<_>) = std::mem::take(&mut self.asked).into_iter().partition(ready);
        self.asked = waiting;
        for identity in &due {
            let workers = u32::try_from(workers(*identity)).unwrap_or(u32::MAX);
            self.rest.insert(*identity, now + PACE.saturating_mul(workers));
        }
        due
    }

    /// When the next request will be answered.
    pub(super) fn wake_at(&self) -> Option<Mono> {
        self.asked.iter().filter_map(|identity| self.rest.get(identity)).min().copied()
    }
}
