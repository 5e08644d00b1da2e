//! The pure core: observations in, wanted edges and facts out.
//!
//! Everything that can be decided is decided here, in [`Gate::step`]. What is *absent*: nothing here reads a clock, a file
//! or a socket, sleeps, or logs; it imports `model` and nothing else of this crate. The caller says what time it is and
//! is told when to call again.
//!
//! ```text
//!             every required check passed, profile managed, all of it seen since the gate owns the worker
//!        ┌───────────────────────────────────────────────────────────────┐
//!        │                                                               ▼
//!     [held] ──── a check fails fail_after times, profile wrong ──▶ [quarantined] ── proven again ──▶ [admitted]
//!        ▲                                                               ▲                              │  │
//!        │                                                               └── failed, drifted, stale ────┘  │
//!        └──────────────────────────── the link or the ownership is lost ─────────────────────────────────┘
//! ```
//!
//! Two things come on top. An operator's hold quarantines whoever is not quarantined anyway, and is no part of the proof. A
//! check that fails on too much of the fleet at once keeps nobody out who is in ([`Policy::max_quarantined`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::model::{
    Admission, CheckStatus, Digest, EdgeReport, Fact, FactKind, Hold, IdentityId, ImageReport, Mono, Now, Observation,
    Order, Record, Wanted, WorkerName, order::Outcome,
};

mod bypass;
mod evidence;
mod flap;
mod fleet;
mod reason;
mod recheck;
mod repair;
mod worker;

#[cfg(test)]
mod tests;

pub use flap::FlapPolicy;
use fleet::Fleet;
pub use fleet::{FleetNews, Peer};
use recheck::Rechecks;
use worker::Worker;

/// The rules that all workers of a gate share.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Evidence older than this is stale.
    pub max_age: Duration,
    /// Every check by its name.
    pub checks: BTreeMap<String, CheckPolicy>,
    /// Whether a managed profile is part of the proof.
    pub profile: bool,
    /// Whether a drifted profile is mended.
    pub repair: bool,
    /// Whether only a verified image, with the versions that its manifest lists, is admitted.
    pub image_required: bool,
    /// How long repeated quarantines keep a worker out.
    pub flap: FlapPolicy,
    /// How much of an intake's workers, in percent, failing checks may quarantine within five minutes; `None`: all of them.
    pub max_quarantined: Option<u8>,
}

/// A worker that is the gate's to decide about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Celery's node name.
    pub name: WorkerName,
    /// Whose checks vouch for it.
    pub identity: IdentityId,
    /// Where its messages come from, for people; the same text for all workers of one intake.
    pub intake: String,
}

/// How one check's results count.
#[derive(Debug, Clone, Copy)]
pub struct CheckPolicy {
    /// Whether admission depends on it.
    pub required: bool,
    /// Consecutive failures before quarantine.
    pub fail_after: u32,
    /// Consecutive passes before admission.
    pub pass_after: u32,
}

/// What other settings ask to be proven anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Workers whose edge is another one.
    pub workers: BTreeSet<WorkerName>,
    /// Checks that run something else, or count otherwise, than before.
    pub checks: BTreeSet<String>,
    /// Whether the profile must be something else than before.
    pub profile: bool,
}

/// One thing that the core is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A probe looked at something.
    Observed(Observation),
    /// The image manifest was looked at.
    Image(ImageReport),
    /// An edge tells about the broker.
    Edge(WorkerName, EdgeReport),
    /// What is heard of other gates.
    Fleet(FleetNews),
    /// Time has passed; nothing else.
    Tick,
    /// The gate is to stop: every edge is to be shut, for good.
    Stop,
}

/// What is to be done, in this order: edges first, reasons second.
#[derive(Debug, Default)]
pub struct Step {
    /// Edges whose wanted state is new.
    pub wanted: Vec<(WorkerName, Wanted)>,
    /// Identities whose checks are to run now.
    pub recheck: BTreeSet<IdentityId>,
    /// Identities whose profile is to be mended now.
    pub repair: BTreeSet<IdentityId>,
    /// What to tell the world.
    pub facts: Vec<Fact>,
    /// Call again at this moment at the latest.
    pub wake_at: Option<Mono>,
}

/// The state of every worker of one gate.
#[derive(Debug)]
pub struct Gate {
    policy: Policy,
    workers: BTreeMap<WorkerName, Worker>,
    rechecks: Rechecks,
    fleet: Fleet,
    /// Nobody wants to be woken before this moment. It may be too early, but never too late.
    wake_at: Option<Mono>,
}

impl Gate {
    /// A gate that has proven nothing: every worker is held and every edge is to be shut.
    pub fn new(policy: Policy, members: impl IntoIterator<Item = Member>) -> Self {
        let worker = |member: Member| (member.name.clone(), Worker::new(member, &policy));
        let workers = members.into_iter().map(worker).collect();
        Self { policy, workers, rechecks: Rechecks::default(), fleet: Fleet::default(), wake_at: None }
    }

    /// Goes on with the holds from before a restart; once, before anything else. What has ended meanwhile, or is about nobody
    /// here, is left out.
    pub fn restore(&mut self, now: Now, holds: BTreeMap<WorkerName, Hold>) {
        for (name, hold) in holds {
            if let Some(worker) = self.workers.get_mut(&name) {
                worker.restore(now, hold);
            }
        }
        self.wake_at = Some(now.mono);
    }

    /// The holds that stand, for a restart.
    pub fn holds(&self) -> BTreeMap<WorkerName, Hold> {
        self.workers.iter().filter_map(|(name, worker)| Some((name.clone(), worker.hold()?.clone()))).collect()
    }

    /// Takes one input in and says what follows from it.
    pub fn step(&mut self, now: Now, input: Input) -> Step {
        let mut step = Step::default();
        match input {
            Input::Observed(observation) => {
                let mut fleet = self.tally(now.mono, &observation.finding);
                for worker in self.workers.values_mut().filter(|w| w.identity() == observation.identity) {
                    worker.observe(now, &observation, &self.policy, fleet.as_mut(), &mut step);
                }
            }
            Input::Image(report) => {
                for worker in self.workers.values_mut() {
                    worker.look_at_image(now, &report, &self.policy, &mut step);
                }
            }
            Input::Edge(name, report) => {
                if let Some(worker) = self.workers.get_mut(&name) {
                    worker.edge(now, report, &self.policy, &mut step);
                    self.look_at(now, &name, &mut step);
                    return step;
                }
            }
            Input::Fleet(news) => {
                let was_known = self.fleet.is_known();
                self.fleet.take(now.mono, news);
                if self.fleet.is_known() || !was_known {
                    // What becomes of others' workers changes nothing for those that are here.
                    self.recheck(now, &mut step);
                    return step;
                }
                for worker in self.workers.values_mut() {
                    worker.end_excuses(now, &self.policy, &mut step);
                }
            }
            Input::Tick => {
                for worker in self.workers.values_mut() {
                    worker.tick(now, &self.policy, &mut step);
                }
            }
            Input::Stop => {
                for worker in self.workers.values_mut() {
                    worker.stop(now, &self.policy, &mut step);
                }
            }
        }
        self.look_round(now, &mut step);
        step
    }

    /// Does what an operator asks for one worker, and says what became of it.
    pub fn order(&mut self, now: Now, order: Order) -> (Step, Outcome) {
        let mut step = Step::default();
        let name = order.worker.clone();
        let outcome = match self.workers.get_mut(&name) {
            Some(worker) => worker.order(now, order, &self.policy, &mut step),
            None => Outcome::NotOwner,
        };
        self.look_at(now, &name, &mut step);
        (step, outcome)
    }

    /// Goes on with other rules and other workers. What is proven and asked for as before stays proven.
    pub fn reconfigure(
        &mut self,
        now: Now,
        policy: Policy,
        members: impl IntoIterator<Item = Member>,
        changes: &Changes,
    ) -> Step {
        let mut step = Step::default();
        let mut before = std::mem::take(&mut self.workers);
        let mut holds = BTreeMap::new();
        for name in &changes.workers {
            if let Some(mut worker) = before.remove(name) {
                let hold = worker.dismiss(now, &self.policy, &mut step);
                holds.extend(hold.map(|hold| (name.clone(), hold)));
            }
        }
        for member in members {
            let name = member.name.clone();
            let worker = if let Some(mut worker) = before.remove(&name) {
                worker.reconfigure(now, member, &policy, changes, &mut step);
                worker
            } else {
                Worker::after(holds.remove(&name), member, &policy)
            };
            self.workers.insert(name, worker);
        }
        for worker in before.values_mut() {
            worker.dismiss(now, &self.policy, &mut step);
        }
        self.policy = policy;
        self.look_round(now, &mut step);
        step
    }

    fn look_round(&mut self, now: Now, step: &mut Step) {
        self.wake_at = self.workers.values().filter_map(|worker| worker.wake_at(now.mono, &self.policy)).min();
        self.recheck(now, step);
    }

    /// As [`Gate::look_round`], where only one worker can have changed. With a thousand of them, to ask all for each answer of
    /// the broker's would take longer than all else.
    fn look_at(&mut self, now: Now, name: &WorkerName, step: &mut Step) {
        let due = self.workers.get(name).and_then(|worker| worker.wake_at(now.mono, &self.policy));
        self.wake_at = self.wake_at.into_iter().chain(due).min();
        self.recheck(now, step);
    }

    /// Lets the requests through whose time has come, and says when to call again.
    fn recheck(&mut self, now: Now, step: &mut Step) {
        self.rechecks.ask(std::mem::take(&mut step.recheck));
        let workers = |identity| self.workers.values().filter(|worker| worker.identity() == identity).count();
        step.recheck = self.rechecks.due(now.mono, workers);
        step.wake_at = self.wake_at.into_iter().chain(self.rechecks.wake_at()).min();
    }

    /// Every worker's record as of now, by name.
    pub fn records(&self) -> Vec<Record> {
        self.workers.values().map(|worker| worker.record(&self.policy)).collect()
    }

    /// One worker's record as of now; `None` for one that is not this gate's.
    pub fn record(&self, name: &WorkerName) -> Option<Record> {
        Some(self.workers.get(name)?.record(&self.policy))
    }

    /// Every worker in short, by name.
    pub fn digest(&self) -> Digest {
        let workers: Vec<_> = self.workers.values().map(Worker::brief).collect();
        let count = |admission| workers.iter().filter(|worker| worker.admission == admission).count();
        Digest {
            admitted: count(Admission::Admitted),
            held: count(Admission::Held),
            quarantined: count(Admission::Quarantined),
            workers,
        }
    }

    /// Until when the evidence of an admitted worker is fresh; `None` for one that is not admitted.
    pub fn fresh_until(&self, name: &WorkerName) -> Option<Mono> {
        self.workers.get(name)?.fresh_until(&self.policy)
    }

    /// Whether every edge is shut and every change has been told; a gate that is to stop may go then.
    pub fn is_at_rest(&self) -> bool {
        self.workers.values().all(Worker::is_at_rest)
    }

    /// For the one-shot `check`, which owns no worker: every record without admission and edge, and with no other reason than
    /// what is wrong with the image.
    pub fn examine(&self) -> Vec<Record> {
        let examined = |worker: &Worker| Record {
            admission: None,
            edge: None,
            reason: worker.unfit_image(&self.policy),
            changed_at: None,
            ..worker.record(&self.policy)
        };
        self.workers.values().map(examined).collect()
    }
}

/// A fact about a worker.
fn fact(kind: FactKind, now: Now, record: Record) -> Fact {
    Fact { kind, at: now.wall, record: Some(record), reason: None, digest: None, audited: true }
}

/// For a record: milliseconds with three decimals, which is what the clocks are good for.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The status that a record shows for a check with a field of its own.
fn status_of(record: Option<&crate::model::CheckRecord>) -> CheckStatus {
    record.map_or(CheckStatus::Skipped, |check| check.status)
}
