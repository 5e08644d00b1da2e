//! Whoever is quarantined again soon after an admission waits before the next one, each time twice as long.

use std::time::Duration;

use super::milliseconds;
use crate::model::{Mono, Now, Readmission};

/// An admission that has lasted so long ends a row of quarantines.
const CALM: Duration = Duration::from_secs(600);

/// How long repeated quarantines keep a worker out.
#[derive(Debug, Clone, Copy)]
pub struct FlapPolicy {
    /// After the second quarantine in a row. Zero: nobody ever waits.
    pub wait: Duration,
    /// However many there were.
    pub max: Duration,
}

/// One worker's row of quarantines.
#[derive(Debug, Default)]
pub(super) struct Flap {
    admitted_at: Option<Mono>,
    row: u32,
    ready: Option<(Mono, Readmission)>,
}

impl Flap {
    pub(super) fn admitted(&mut self, now: Mono) {
        self.admitted_at = Some(now);
        self.ready = None;
    }

    pub(super) fn quarantined(&mut self, now: Now, policy: FlapPolicy) {
        let Some(admitted_at) = self.admitted_at.take() else { return };
        let again = now.mono.since(admitted_at) < CALM;
        self.row = if again { self.row.saturating_add(1) } else { 1 };
        let wait = match self.row {
            0 | 1 => Duration::ZERO,
            row => policy.wait.saturating_mul(1 << (row - 2).min(31)).min(policy.max),
        };
        let at = now.wall.checked_add(wait).unwrap_or(now.wall);
        let readmission = Readmission { quarantines: self.row, wait_ms: milliseconds(wait), at };
        self.ready = (wait > Duration::ZERO).then_some((now.mono + wait, readmission));
    }

    /// The wait, if there is one and it has not ended.
    pub(super) fn waits(&self, now: Mono) -> Option<&Readmission> {
        self.ready.as_ref().filter(|(ready, _)| now < *ready).map(|(_, readmission)| readmission)
    }

    /// The wait that was imposed last, also when it has ended.
    pub(super) fn imposed(&self) -> Option<Readmission> {
        self.ready.map(|(_, readmission)| readmission)
    }

    pub(super) fn ends(&self) -> Option<Mono> {
        self.ready.map(|(ready, _)| ready)
    }
}
