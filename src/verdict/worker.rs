//! One worker: its evidence, what follows from it, and the change that is under way.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use super::{
    Changes, Member, Policy, Step,
    bypass::Bypasses,
    evidence::{CheckEvidence, ProfileEvidence},
    fact,
    flap::Flap,
    fleet::Tally,
    reason,
    repair::Repairs,
};
use crate::model::{
    Account, Admission, Brief, CheckRecord, Edge, EdgeReport, FactKind, Finding, IdentityId, ImageReport, Mono, Now,
    Observation, ProfileState, Reason, Record, VersionChange, Wanted, WorkerName,
};

mod changing;
mod excusing;
mod holding;
mod judging;
mod telling;

use excusing::Excuses;
use holding::Held;

/// How long a fact waits for the broker's account. An edge answers within its own limits (seconds); a fact that is told
/// without an account is better than one that is told late.
const ACCOUNT_LIMIT: Duration = Duration::from_secs(3);

/// Whether the broker says that this gate owns the worker.
#[derive(Debug)]
enum Ownership {
    Down(Reason),
    Owned(Mono),
}

/// What the evidence says of a worker, whatever an operator says.
#[derive(Debug)]
struct Judgement {
    admission: Admission,
    reason: Reason,
}

/// A change whose fact waits for the broker.
#[derive(Debug)]
struct Pending {
    kind: FactKind,
    /// What led to it. By the time the fact is told, the checks may have run again.
    record: Record,
    change: u64,
    seen: Mono,
    /// The last moment for which everything was proven.
    proven: Option<Mono>,
    tell_at: Mono,
}

#[derive(Debug)]
pub(super) struct Worker {
    name: WorkerName,
    identity: IdentityId,
    intake: String,
    checks: BTreeMap<String, CheckEvidence>,
    profile: ProfileEvidence,
    image: Option<ImageReport>,
    excuses: Excuses,
    ownership: Ownership,
    judged: Judgement,
    held: Option<Held>,
    /// What holds: the judgement, or else what an operator says.
    admission: Admission,
    changed_at: Option<Timestamp>,
    /// When a failing check took it out, if one did and it is still out.
    fell_at: Option<Mono>,
    wanted: Wanted,
    edge: Edge,
    edge_at: Option<Mono>,
    pending: Option<Pending>,
    checked_at: Option<Timestamp>,
    /// What the last audited health check said, without its times.
    audited: Option<Vec<(String, CheckRecord)>>,
    repairs: Repairs,
    flap: Flap,
    bypasses: Bypasses,
    /// How far a long move has come.
    moving: Option<Account>,
    /// The last moment for which everything was proven, while it was admitted.
    proven: Option<Mono>,
    stopping: bool,
}

impl Worker {
    pub(super) fn new(member: Member, policy: &Policy) -> Self {
        let Member { name, identity, intake } = member;
        Self {
            name,
            identity,
            intake,
            checks: policy.checks.keys().map(|name| (name.clone(), CheckEvidence::default())).collect(),
            profile: ProfileEvidence::default(),
            image: None,
            excuses: Excuses::default(),
            ownership: Ownership::Down(reason::starting()),
            judged: Judgement { admission: Admission::Held, reason: reason::starting() },
            held: None,
            admission: Admission::Held,
            changed_at: None,
            fell_at: None,
            wanted: Wanted::shut(),
            edge: Edge::Shut,
            edge_at: None,
            pending: None,
            checked_at: None,
            audited: None,
            repairs: Repairs::default(),
            flap: Flap::default(),
            bypasses: Bypasses::default(),
            moving: None,
            proven: None,
            stopping: false,
        }
    }

    pub(super) fn identity(&self) -> IdentityId {
        self.identity
    }

    pub(super) fn observe(
        &mut self,
        now: Now,
        observed: &Observation,
        policy: &Policy,
        fleet: Option<&mut Tally>,
        step: &mut Step,
    ) {
        let owned = self.owned();
        match &observed.finding {
            Finding::Check { name, result } => {
                let (Some(evidence), Some(rule)) = (self.checks.get_mut(name), policy.checks.get(name)) else { return };
                let change = evidence.take(result, observed, *rule, owned);
                self.checked_at = Some(observed.at);
                let is_suspect = self.weigh(name, observed, policy, fleet);
                self.settle(now, observed.seen, policy, step);
                if is_suspect {
                    self.tell_suspicion(now, policy, step);
                }
                self.tell_health(now, policy, step);
                if let Some((old, new)) = change {
                    let change = VersionChange { check: name.clone(), old, new };
                    let record = Record { version_change: Some(change), ..self.record(policy) };
                    step.facts.push(fact(FactKind::WorkerVersionChanged, now, record));
                }
            }
            Finding::Tool { name, path } => {
                let Some(evidence) = self.checks.get_mut(name) else { return };
                evidence.doubt(reason::tool_changed(name, path), observed.started);
                self.excuses.end(name);
                self.settle(now, observed.seen, policy, step);
            }
            Finding::Profile(report) => {
                let before = self.profile.take(report, observed, owned);
                if report.state == ProfileState::Managed {
                    self.repairs.managed();
                } else if policy.repair && owned.is_some() && self.repairs.drifted(now.mono, report) {
                    step.repair.insert(self.identity);
                }
                self.settle(now, observed.seen, policy, step);
                self.tell_profile(now, before.as_ref(), report, policy, step);
            }
            Finding::Repair(outcome) => {
                self.repairs.ended(now.mono, outcome);
                self.settle(now, observed.seen, policy, step);
            }
        }
    }

    /// Takes in what the image manifest says. Another one than before makes everything that was proven worthless.
    pub(super) fn look_at_image(&mut self, now: Now, report: &ImageReport, policy: &Policy, step: &mut Step) {
        let hash = |report: &ImageReport| report.image.as_ref().map(|image| image.manifest_hash.clone());
        let before = self.image.replace(report.clone());
        if before.is_some_and(|before| hash(&before) != hash(report)) {
            for evidence in self.checks.values_mut() {
                evidence.doubt(reason::image_changed(), report.started);
            }
            self.excuses.clear();
            step.recheck.insert(self.identity);
        }
        self.settle(now, report.seen, policy, step);
    }

    pub(super) fn edge(&mut self, now: Now, report: EdgeReport, policy: &Policy, step: &mut Step) {
        match report {
            EdgeReport::Down(reason) => {
                let news = reason.code != self.judged.reason.code;
                self.ownership = Ownership::Down(reason);
                self.void();
                self.moving = None;
                // The broker shuts the edge by itself; nobody is left to confirm it.
                self.edge = Edge::Shut;
                self.edge_at = Some(now.mono);
                let told = step.facts.len();
                self.settle(now, now.mono, policy, step);
                self.tell(now, None, None, step);
                if news && self.admission == Admission::Held && step.facts.len() == told {
                    step.facts.push(fact(FactKind::WorkerHeld, now, self.record(policy)));
                }
            }
            EdgeReport::Owned(since) => {
                self.ownership = Ownership::Owned(since);
                self.void();
                self.edge = Edge::Shut;
                step.recheck.insert(self.identity);
                self.settle(now, now.mono, policy, step);
                if self.judged.admission == Admission::Held {
                    self.judged.reason = reason::starting();
                }
                if self.admission == Admission::Held {
                    step.facts.push(fact(FactKind::WorkerHeld, now, self.record(policy)));
                }
            }
            EdgeReport::Is(wanted, at) => {
                self.edge = wanted.edge;
                if wanted.change == self.wanted.change {
                    self.edge_at = Some(at);
                }
            }
            EdgeReport::Settled { change, account, exposed, blocked } => {
                if let Some(pending) = self.pending.as_mut().filter(|pending| pending.change == change) {
                    pending.record.broker_blocked = blocked;
                    self.tell(now, Some(account), exposed, step);
                }
            }
            EdgeReport::Moving(account) => self.moving = account,
            EdgeReport::Bypass(ways) => {
                self.bypasses.take(now.mono, ways);
                self.tell_bypasses(now, policy, step);
            }
            EdgeReport::Recycled(recycled) => {
                let record = Record { reason: Some(reason::recycled(recycled)), ..self.record(policy) };
                step.facts.push(fact(FactKind::WorkerRecycled, now, record));
            }
        }
    }

    pub(super) fn tick(&mut self, now: Now, policy: &Policy, step: &mut Step) {
        let drifted = self.profile.last().filter(|report| report.state != ProfileState::Managed);
        if let Some(report) = drifted.filter(|_| policy.repair && self.owned().is_some())
            && self.repairs.again(now.mono, report)
        {
            step.repair.insert(self.identity);
        }
        self.settle(now, now.mono, policy, step);
        self.tell_bypasses(now, policy, step);
        if self.pending.as_ref().is_some_and(|pending| now.mono >= pending.tell_at) {
            self.tell(now, None, None, step);
        }
    }

    pub(super) fn stop(&mut self, now: Now, policy: &Policy, step: &mut Step) {
        self.stopping = true;
        self.settle(now, now.mono, policy, step);
    }

    /// Goes on with other rules. What they ask for as before stays proven.
    pub(super) fn reconfigure(
        &mut self,
        now: Now,
        member: Member,
        policy: &Policy,
        changes: &Changes,
        step: &mut Step,
    ) {
        let is_other = member.identity != self.identity;
        (self.identity, self.intake) = (member.identity, member.intake);
        self.repairs.forget_request();
        self.checks.retain(|name, _| policy.checks.contains_key(name));
        for name in policy.checks.keys() {
            let is_new = !self.checks.contains_key(name);
            let evidence = self.checks.entry(name.clone()).or_default();
            if is_new || is_other || changes.checks.contains(name) {
                evidence.doubt(reason::settings_changed(&format!("checks.{name}")), now.mono);
                self.excuses.end(name);
            }
        }
        if policy.max_quarantined.is_none() {
            self.excuses.clear();
        }
        self.excuses.retain(|name| policy.checks.get(name).is_some_and(|rule| rule.required));
        if is_other || changes.profile {
            self.profile.doubt(reason::settings_changed("the profile"), now.mono);
        }
        self.settle(now, now.mono, policy, step);
    }

    pub(super) fn brief(&self) -> Brief {
        Brief { worker_name: self.name.clone(), admission: self.admission, edge: self.edge, code: self.reason().code }
    }

    pub(super) fn fresh_until(&self, policy: &Policy) -> Option<Mono> {
        if self.admission == Admission::Admitted { self.stale_at(policy) } else { None }
    }

    /// Whether the edge is shut, as far as anybody can tell, and nothing waits to be told.
    pub(super) fn is_at_rest(&self) -> bool {
        self.edge == Edge::Shut && self.wanted.edge == Edge::Shut && self.pending.is_none()
    }

    pub(super) fn wake_at(&self, now: Mono, policy: &Policy) -> Option<Mono> {
        let told = self.pending.as_ref().map(|pending| pending.tell_at);
        let due = match self.judged.admission {
            Admission::Admitted => self.stale_at(policy),
            // A wait that has ended changes nothing more, and who is woken for it would be woken without end.
            Admission::Quarantined => self.flap.ends().filter(|at| *at > now),
            Admission::Held => None,
        };
        due.into_iter().chain(told).chain(self.hold_ends()).chain(self.bypasses.wake_at()).min()
    }

    fn owned(&self) -> Option<Mono> {
        match self.ownership {
            Ownership::Owned(since) => Some(since),
            Ownership::Down(_) => None,
        }
    }

    fn void(&mut self) {
        self.checks.values_mut().for_each(CheckEvidence::void);
        self.profile.void();
        self.excuses.clear();
    }
}
