//! The workers that share an intake, on whichever gate, and the check that takes too many of them out at once: then it is more
//! likely that the check is wrong than that all of them are.

use std::{collections::BTreeMap, time::Duration};

use super::{Gate, Policy};
use crate::model::{Admission, CheckStatus, Finding, Mono, WorkerName};

/// Quarantines that are further apart have nothing to do with each other.
const WINDOW: Duration = Duration::from_secs(300);
/// `Code::CheckFailed` and `Code::OwnedElsewhere`, as other gates write them.
const CHECK_FAILED: &str = "check_failed";
const OWNED_ELSEWHERE: &str = "owned_elsewhere";

/// What is heard of other gates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetNews {
    /// All of their workers; what was known before is replaced.
    All(Vec<Peer>),
    /// One of their workers.
    Peer(Peer),
    /// A gate and its workers are gone.
    Gone {
        /// The gate's name.
        gate: String,
    },
    /// Nothing is known any more, until all is told again.
    Unknown,
}

/// A worker, as its gate tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The gate's name.
    pub gate: String,
    /// The worker's name.
    pub worker: WorkerName,
    /// As in a record.
    pub intake: String,
    /// Its admission.
    pub admission: Admission,
    /// The reason's code as it is serialized, such as `check_failed`.
    pub code: Option<String>,
}

/// What is known of other gates' workers.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    is_known: bool,
    peers: BTreeMap<WorkerName, Seen>,
}

/// One of them.
#[derive(Debug)]
struct Seen {
    gate: String,
    intake: String,
    is_quarantined: bool,
    /// When this gate heard that a failing check took it out. One that was out for another cause before was not taken out by
    /// the check.
    fell_at: Option<Mono>,
}

impl Seen {
    fn new(now: Mono, peer: Peer, before: Option<&Self>) -> Self {
        let is_quarantined = peer.admission == Admission::Quarantined;
        let fell_at = match before {
            _ if !is_quarantined => None,
            Some(before) if before.is_quarantined => before.fell_at,
            _ => (peer.code.as_deref() == Some(CHECK_FAILED)).then_some(now),
        };
        Self { gate: peer.gate, intake: peer.intake, is_quarantined, fell_at }
    }
}

impl Fleet {
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    pub(super) fn take(&mut self, now: Mono, news: FleetNews) {
        // A gate that stands by for another one knows nothing of the worker.
        let stands_by = |peer: &Peer| peer.code.as_deref() == Some(OWNED_ELSEWHERE);
        match news {
            FleetNews::All(peers) => {
                let before = std::mem::take(&mut self.peers);
                let seen = |peer: Peer| {
                    let worker = peer.worker.clone();
                    let seen = Seen::new(now, peer, before.get(&worker));
                    (worker, seen)
                };
                self.peers = peers.into_iter().filter(|peer| !stands_by(peer)).map(seen).collect();
                self.is_known = true;
            }
            FleetNews::Peer(peer) if stands_by(&peer) => {
                if self.peers.get(&peer.worker).is_some_and(|seen| seen.gate == peer.gate) {
                    self.peers.remove(&peer.worker);
                }
            }
            FleetNews::Peer(peer) => {
                let worker = peer.worker.clone();
                let seen = Seen::new(now, peer, self.peers.get(&worker));
                self.peers.insert(worker, seen);
            }
            FleetNews::Gone { gate } => self.peers.retain(|_, seen| seen.gate != gate),
            // What was heard stays, so that what is told again is not taken for new.
            FleetNews::Unknown => self.is_known = false,
        }
    }
}

/// How many of each intake's workers are known, and how many failing checks took out.
#[derive(Debug)]
pub(super) struct Tally {
    /// In percent.
    share: u8,
    intakes: BTreeMap<String, Count>,
}

#[derive(Debug, Default)]
struct Count {
    workers: usize,
    fallen: usize,
}

/// Why a check is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suspicion {
    pub(super) fallen: usize,
    pub(super) workers: usize,
    /// In percent.
    pub(super) share: u8,
}

impl Tally {
    fn count(&mut self, now: Mono, intake: &str, fell_at: Option<Mono>) {
        if !self.intakes.contains_key(intake) {
            self.intakes.insert(intake.to_owned(), Count::default());
        }
        if let Some(count) = self.intakes.get_mut(intake) {
            count.workers += 1;
            count.fallen += usize::from(fell_at.is_some_and(|at| now.since(at) < WINDOW));
        }
    }

    /// A failing check is about to take one more worker of this intake out. `None` if it may, and then it counts. One may always
    /// be taken out: by itself it says nothing about the check.
    pub(super) fn fall(&mut self, intake: &str) -> Option<Suspicion> {
        let Count { workers, fallen } = self.intakes.get_mut(intake)?;
        let most = (*workers * usize::from(self.share) / 100).max(1);
        if *workers >= 2 && *fallen >= most {
            return Some(Suspicion { fallen: *fallen, workers: *workers, share: self.share });
        }
        *fallen += 1;
        None
    }
}

impl Gate {
    /// The fleet as it is, if the rule is on and this finding may take somebody out. It costs a look at every worker, and so
    /// does what follows from such a finding.
    pub(super) fn tally(&self, now: Mono, finding: &Finding) -> Option<Tally> {
        let Policy { max_quarantined, checks, .. } = &self.policy;
        let share = max_quarantined.filter(|_| self.fleet.is_known)?;
        let Finding::Check { name, result } = finding else { return None };
        if result.status == CheckStatus::Passed || !checks.get(name)?.required {
            return None;
        }
        // A worker that another gate owns is what that gate says it is.
        let is_own = |name: &WorkerName| self.workers.get(name).is_some_and(|worker| !worker.is_elsewhere());
        let mut tally = Tally { share, intakes: BTreeMap::new() };
        for worker in self.workers.values().filter(|worker| !worker.is_elsewhere()) {
            tally.count(now, worker.intake(), worker.fell_at());
        }
        for (_, seen) in self.fleet.peers.iter().filter(|(name, _)| !is_own(name)) {
            tally.count(now, &seen.intake, seen.fell_at);
        }
        Some(tally)
    }
}
