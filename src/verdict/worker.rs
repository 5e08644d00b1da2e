//! One worker: its evidence, what follows from it, and the change that is under way.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use super::{
    Policy, Step,
    evidence::{CheckEvidence, ProfileEvidence},
    fact, milliseconds, status_of,
};
use crate::model::{
    Account, Admission, CheckRecord, Code, Edge, EdgeReport, Exposed, FactKind, Finding, IdentityId, Mono, Now,
    Observation, ProfileReport, ProfileState, Reason, Record, Wanted, WorkerName,
};

/// How long a fact waits for the broker's account. An edge answers within its own limits (seconds); a fact that is told
/// without an account is better than one that is told late.
const ACCOUNT_LIMIT: Duration = Duration::from_secs(3);

/// Whether the broker says that this gate owns the worker.
#[derive(Debug)]
enum Ownership {
    Down(Reason),
    Owned(Mono),
}

/// A change whose fact waits for the broker.
#[derive(Debug)]
struct Pending {
    kind: FactKind,
    change: u64,
    seen: Mono,
    tell_at: Mono,
}

#[derive(Debug)]
pub(super) struct Worker {
    name: WorkerName,
    identity: IdentityId,
    checks: BTreeMap<String, CheckEvidence>,
    profile: ProfileEvidence,
    ownership: Ownership,
    admission: Admission,
    reason: Reason,
    wanted: Wanted,
    edge: Edge,
    edge_at: Option<Mono>,
    pending: Option<Pending>,
    checked_at: Option<Timestamp>,
    /// What the last audited health check said, without its times.
    audited: Option<Vec<(String, CheckRecord)>>,
    stopping: bool,
}

impl Worker {
    pub(super) fn new(name: WorkerName, identity: IdentityId, policy: &Policy) -> Self {
        Self {
            name,
            identity,
            checks: policy.checks.keys().map(|name| (name.clone(), CheckEvidence::default())).collect(),
            profile: ProfileEvidence::default(),
            ownership: Ownership::Down(starting()),
            admission: Admission::Held,
            reason: starting(),
            wanted: Wanted::shut(),
            edge: Edge::Shut,
            edge_at: None,
            pending: None,
            checked_at: None,
            audited: None,
            stopping: false,
        }
    }

    pub(super) fn identity(&self) -> IdentityId {
        self.identity
    }

    pub(super) fn observe(&mut self, now: Now, observed: &Observation, policy: &Policy, step: &mut Step) {
        let owned = self.owned();
        match &observed.finding {
            Finding::Check { name, result } => {
                let (Some(evidence), Some(rule)) = (self.checks.get_mut(name), policy.checks.get(name)) else { return };
                evidence.take(result, observed, *rule, owned);
                self.checked_at = Some(observed.at);
                self.settle(now, observed.seen, policy, step);
                self.tell_health(now, policy, step);
            }
            Finding::Profile(report) => {
                let before = self.profile.take(report, observed, owned);
                self.settle(now, observed.seen, policy, step);
                self.tell_profile(now, before.as_ref(), report, policy, step);
            }
        }
    }

    pub(super) fn edge(&mut self, now: Now, report: EdgeReport, policy: &Policy, step: &mut Step) {
        match report {
            EdgeReport::Down(reason) => {
                let news = reason.code != self.reason.code;
                self.ownership = Ownership::Down(reason);
                self.void();
                // The broker shuts the edge by itself; nobody is left to confirm it.
                self.edge = Edge::Shut;
                self.edge_at = Some(now.mono);
                let told = step.facts.len();
                self.settle(now, now.mono, policy, step);
                self.tell(now, None, None, policy, step);
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
                if self.admission == Admission::Held {
                    self.reason = starting();
                    step.facts.push(fact(FactKind::WorkerHeld, now, self.record(policy)));
                }
            }
            EdgeReport::Is(wanted, at) => {
                self.edge = wanted.edge;
                if wanted.change == self.wanted.change {
                    self.edge_at = Some(at);
                }
            }
            EdgeReport::Settled { change, account, exposed } => {
                if self.pending.as_ref().is_some_and(|pending| pending.change == change) {
                    self.tell(now, Some(account), exposed, policy, step);
                }
            }
            EdgeReport::Bypass { messages, ways } => {
                let mut record = self.record(policy);
                record.reason = Some(bypass(messages, &ways));
                step.facts.push(fact(FactKind::WorkerBypass, now, record));
            }
        }
    }

    pub(super) fn tick(&mut self, now: Now, policy: &Policy, step: &mut Step) {
        self.settle(now, now.mono, policy, step);
        if self.pending.as_ref().is_some_and(|pending| now.mono >= pending.tell_at) {
            self.tell(now, None, None, policy, step);
        }
    }

    pub(super) fn stop(&mut self, now: Now, policy: &Policy, step: &mut Step) {
        self.stopping = true;
        self.settle(now, now.mono, policy, step);
    }

    /// Brings admission and the wanted edge in line with the evidence.
    fn settle(&mut self, now: Now, seen: Mono, policy: &Policy, step: &mut Step) {
        let (admission, reason) = self.judge(now.mono, policy);
        let changed = admission != self.admission;
        if changed {
            // The change before this one is told as it stands; its account will not come any more.
            self.tell(now, None, None, policy, step);
        }
        self.admission = admission;
        self.reason = reason;
        if !changed {
            return;
        }
        self.wanted = Wanted {
            edge: if admission == Admission::Admitted { Edge::Open } else { Edge::Shut },
            quarantine: admission == Admission::Quarantined,
            change: self.wanted.change + 1,
            owned: self.owned(),
        };
        self.edge_at = None;
        self.pending = Some(Pending {
            kind: match admission {
                Admission::Held => FactKind::WorkerHeld,
                Admission::Admitted => FactKind::WorkerAdmitted,
                Admission::Quarantined => FactKind::WorkerQuarantined,
            },
            change: self.wanted.change,
            seen,
            tell_at: now.mono + ACCOUNT_LIMIT,
        });
        step.wanted.push((self.name.clone(), self.wanted));
        if matches!(self.ownership, Ownership::Down(_)) {
            // No edge will answer.
            self.tell(now, None, None, policy, step);
        }
    }

    fn judge(&self, now: Mono, policy: &Policy) -> (Admission, Reason) {
        if self.stopping {
            let why = "the gate is stopping; the edge stays shut until a gate runs again";
            return match self.admission {
                Admission::Quarantined => (Admission::Quarantined, self.reason.clone()),
                Admission::Held | Admission::Admitted => {
                    (Admission::Held, Reason::new(Code::Stopping, why, "start worker-gate again"))
                }
            };
        }
        if let Some(reason) = self.unfit(policy) {
            return (Admission::Quarantined, reason);
        }
        if let Ownership::Down(reason) = &self.ownership {
            // What is quarantined stays so until it is proven again, and that takes an owner.
            return match self.admission {
                Admission::Quarantined => (Admission::Quarantined, self.reason.clone()),
                Admission::Held | Admission::Admitted => (Admission::Held, reason.clone()),
            };
        }
        let stale = self.stale_at(policy).is_some_and(|at| now >= at);
        match self.admission {
            _ if !stale && self.is_proven(policy) => (Admission::Admitted, fit()),
            Admission::Held => (Admission::Held, self.reason.clone()),
            Admission::Admitted | Admission::Quarantined if stale => (Admission::Quarantined, stale_reason(policy)),
            Admission::Admitted | Admission::Quarantined => (Admission::Quarantined, self.reason.clone()),
        }
    }

    /// What is wrong with this worker, if anything required is.
    fn unfit(&self, policy: &Policy) -> Option<Reason> {
        let failed = self.required(policy).find(|(_, evidence)| evidence.is_unfit());
        if let Some((name, evidence)) = failed {
            let failure = evidence.last().and_then(|(result, _)| result.message.as_ref());
            let times = match evidence.fails() {
                0 | 1 => String::new(),
                fails => format!(" ({fails} times in a row)"),
            };
            return Some(match failure {
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
            });
        }
        if !policy.profile || !self.profile.is_unfit() {
            return None;
        }
        let report = self.profile.last()?;
        let code = if report.state == ProfileState::Missing { Code::ProfileMissing } else { Code::ProfileDrifted };
        let (detail, remedy) = report.problem.as_ref().map_or_else(
            || ("the profile is not as the policy wants it".to_owned(), String::new()),
            |failure| (failure.detail.clone(), failure.remedy.clone()),
        );
        Some(Reason::new(code, detail, remedy))
    }

    fn required<'a>(&'a self, policy: &'a Policy) -> impl Iterator<Item = (&'a String, &'a CheckEvidence)> {
        self.checks.iter().filter(|(name, _)| policy.checks.get(*name).is_some_and(|rule| rule.required))
    }

    fn is_proven(&self, policy: &Policy) -> bool {
        self.required(policy).all(|(_, evidence)| evidence.is_proven()) && (!policy.profile || self.profile.is_proven())
    }

    /// When the first piece of the proof will be too old.
    fn stale_at(&self, policy: &Policy) -> Option<Mono> {
        let profile = if policy.profile { self.profile.stale_at(policy.max_age) } else { None };
        self.required(policy).filter_map(|(_, evidence)| evidence.stale_at(policy.max_age)).chain(profile).min()
    }

    pub(super) fn fresh_until(&self, policy: &Policy) -> Option<Mono> {
        if self.admission == Admission::Admitted { self.stale_at(policy) } else { None }
    }

    /// Whether the edge is shut, as far as anybody can tell, and nothing waits to be told.
    pub(super) fn is_at_rest(&self) -> bool {
        self.edge == Edge::Shut && self.wanted.edge == Edge::Shut && self.pending.is_none()
    }

    pub(super) fn wake_at(&self, policy: &Policy) -> Option<Mono> {
        self.fresh_until(policy).into_iter().chain(self.pending.as_ref().map(|pending| pending.tell_at)).min()
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
    }

    /// Tells the pending change, with what the edge has said about it so far.
    fn tell(&mut self, now: Now, account: Option<Account>, exposed: Option<Exposed>, policy: &Policy, step: &mut Step) {
        let Some(pending) = self.pending.take() else { return };
        let mut record = self.record(policy);
        record.account = account;
        record.exposed = exposed;
        record.latency_ms = self.edge_at.map(|at| milliseconds(at.since(pending.seen)));
        step.facts.push(fact(pending.kind, now, record));
    }

    /// A health check is told once every check has run; one that says what the last one said is not audited again.
    fn tell_health(&mut self, now: Now, policy: &Policy, step: &mut Step) {
        if self.checks.values().any(|evidence| evidence.last().is_none()) {
            return;
        }
        let record = self.record(policy);
        let said = record
            .checks
            .iter()
            .map(|(name, check)| (name.clone(), CheckRecord { duration_ms: None, checked_at: None, ..check.clone() }))
            .collect();
        let mut told = fact(FactKind::WorkerHealthCheck, now, record);
        told.audited = self.audited.as_ref() != Some(&said);
        self.audited = Some(said);
        step.facts.push(told);
    }

    fn tell_profile(
        &self,
        now: Now,
        before: Option<&ProfileReport>,
        report: &ProfileReport,
        policy: &Policy,
        step: &mut Step,
    ) {
        let same = before.is_some_and(|before| {
            before.state == report.state
                && before.config_hash == report.config_hash
                && before.managed_on == report.managed_on
                && before.problem == report.problem
        });
        if same {
            return;
        }
        let kind = match report.state {
            ProfileState::Managed => FactKind::WorkerConfigManaged,
            ProfileState::Drifted | ProfileState::Missing => FactKind::WorkerConfigDrifted,
        };
        step.facts.push(fact(kind, now, self.record(policy)));
    }

    pub(super) fn record(&self, policy: &Policy) -> Record {
        let checks: BTreeMap<_, _> = self
            .checks
            .iter()
            .map(|(name, evidence)| {
                (name.clone(), evidence.record(policy.checks.get(name).is_some_and(|rule| rule.required)))
            })
            .collect();
        let profile = self.profile.last();
        let mut failures: Vec<String> =
            checks.iter().filter_map(|(name, check)| Some(format!("{name}: {}", check.message.as_ref()?))).collect();
        failures.extend(profile.and_then(|report| Some(report.problem.as_ref()?.detail.clone())));
        Record {
            worker_name: self.name.clone(),
            codex_cli_status: status_of(checks.get("codex_cli")),
            spec_kit_status: status_of(checks.get("spec_kit")),
            config_hash: profile.and_then(|report| report.config_hash.clone()),
            policy_hash: profile.and_then(|report| report.policy_hash.clone()),
            last_checked_at: self.checked_at,
            failure_message: if failures.is_empty() { None } else { Some(failures.join("; ")) },
            checks,
            admission: Some(self.admission),
            edge: Some(self.edge),
            reason: Some(self.reason.clone()),
            account: None,
            exposed: None,
            latency_ms: None,
            profile: profile.cloned(),
            image: None,
        }
    }
}

fn starting() -> Reason {
    Reason::new(Code::Starting, "not every required check has passed yet since the gate owns this worker", "")
}

fn fit() -> Reason {
    Reason::new(Code::Fit, "every required check passed and the evidence is fresh", "")
}

fn stale_reason(policy: &Policy) -> Reason {
    Reason::new(
        Code::EvidenceStale,
        format!("the newest proof is older than evidence.max_age ({} s)", policy.max_age.as_secs_f64()),
        "find out why the checks did not run: worker-gate check",
    )
}

fn bypass(messages: u64, ways: &[String]) -> Reason {
    Reason::new(
        Code::Bypass,
        format!(
            "{messages} messages came to the lane past the shut edge and were taken back; they came by {}",
            ways.join(", ")
        ),
        "let producers publish to the intake only, and remove other bindings of the lane (rabbitmqctl list_bindings)",
    )
}
