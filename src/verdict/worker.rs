//! One worker: its evidence, what follows from it, and the change that is under way.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use super::{
    Changes, Policy, Step,
    evidence::{CheckEvidence, ProfileEvidence},
    fact,
    flap::Flap,
    milliseconds, reason,
    repair::Repairs,
    status_of,
};
use crate::model::{
    Account, Admission, CheckRecord, Edge, EdgeReport, Exposed, FactKind, Finding, IdentityId, ImageReport, ImageState,
    Mono, Now, Observation, ProfileReport, ProfileState, Reason, Record, VersionChange, Wanted, WorkerName,
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
    image: Option<ImageReport>,
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
    repairs: Repairs,
    flap: Flap,
    stopping: bool,
}

impl Worker {
    pub(super) fn new(name: WorkerName, identity: IdentityId, policy: &Policy) -> Self {
        Self {
            name,
            identity,
            checks: policy.checks.keys().map(|name| (name.clone(), CheckEvidence::default())).collect(),
            profile: ProfileEvidence::default(),
            image: None,
            ownership: Ownership::Down(reason::starting()),
            admission: Admission::Held,
            reason: reason::starting(),
            wanted: Wanted::shut(),
            edge: Edge::Shut,
            edge_at: None,
            pending: None,
            checked_at: None,
            audited: None,
            repairs: Repairs::default(),
            flap: Flap::default(),
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
                let change = evidence.take(result, observed, *rule, owned);
                self.checked_at = Some(observed.at);
                self.settle(now, observed.seen, policy, step);
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
                self.repairs.ended(outcome);
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
            step.recheck.insert(self.identity);
        }
        self.settle(now, report.seen, policy, step);
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
                    self.reason = reason::starting();
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
                record.reason = Some(reason::bypass(messages, &ways));
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

    /// Goes on with other rules. What they ask for as before stays proven.
    pub(super) fn reconfigure(
        &mut self,
        now: Now,
        identity: IdentityId,
        policy: &Policy,
        changes: &Changes,
        step: &mut Step,
    ) {
        let is_other = identity != self.identity;
        self.identity = identity;
        self.checks.retain(|name, _| policy.checks.contains_key(name));
        for name in policy.checks.keys() {
            let is_new = !self.checks.contains_key(name);
            let evidence = self.checks.entry(name.clone()).or_default();
            if is_new || is_other || changes.checks.contains(name) {
                evidence.doubt(reason::settings_changed(&format!("checks.{name}")), now.mono);
            }
        }
        if is_other || changes.profile {
            self.profile.doubt(reason::settings_changed("the profile"), now.mono);
        }
        self.settle(now, now.mono, policy, step);
    }

    /// This gate no longer has the worker, or not in this way. Its edge shuts by itself.
    pub(super) fn dismiss(&mut self, now: Now, policy: &Policy, step: &mut Step) {
        self.tell(now, None, None, policy, step);
        self.admission = Admission::Held;
        self.reason = reason::dismissed();
        step.facts.push(fact(FactKind::WorkerHeld, now, self.record(policy)));
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
        match admission {
            Admission::Admitted => self.flap.admitted(now.mono),
            Admission::Quarantined => self.flap.quarantined(now, policy.flap),
            Admission::Held => {}
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
            return match self.admission {
                Admission::Quarantined => (Admission::Quarantined, self.reason.clone()),
                Admission::Held | Admission::Admitted => (Admission::Held, reason::stopping()),
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
        let proven = !stale && self.is_proven(policy);
        match self.admission {
            Admission::Quarantined if proven && let Some(wait) = self.flap.waits(now) => {
                (Admission::Quarantined, reason::flapping(wait))
            }
            _ if proven => (Admission::Admitted, reason::fit()),
            Admission::Held => (Admission::Held, self.reason.clone()),
            Admission::Admitted | Admission::Quarantined if stale => (Admission::Quarantined, reason::stale(policy)),
            Admission::Admitted | Admission::Quarantined => {
                let doubt = self.doubted(policy).unwrap_or(&self.reason);
                (Admission::Quarantined, doubt.clone())
            }
        }
    }

    /// What is wrong with this worker, if anything required is.
    fn unfit(&self, policy: &Policy) -> Option<Reason> {
        if let Some((name, evidence)) = self.required(policy).find(|(_, evidence)| evidence.is_unfit()) {
            return Some(evidence.doubted().cloned().unwrap_or_else(|| reason::failed(name, evidence)));
        }
        if let Some(report) = self.image.as_ref().filter(|_| policy.image_required)
            && let Some(reason) = self.unfit_image(report)
        {
            return Some(reason);
        }
        if !policy.profile || !self.profile.is_unfit() {
            return None;
        }
        let report = self.profile.last()?;
        Some(self.repairs.explain(reason::drifted(report), report))
    }

    fn unfit_image(&self, report: &ImageReport) -> Option<Reason> {
        let Some(image) = report.image.as_ref().filter(|image| image.state == ImageState::Verified) else {
            return Some(reason::unverified(report));
        };
        let listed = [("codex_cli", &image.codex_cli_version), ("spec_kit", &image.spec_kit_version)];
        listed.into_iter().find_map(|(name, listed)| {
            let found = self.checks.get(name)?.last()?.0.version.as_ref()?;
            (Some(found) != listed.as_ref()).then(|| reason::mismatch(name, listed.as_deref(), found))
        })
    }

    /// Why something that was proven does not count any more.
    fn doubted<'a>(&'a self, policy: &'a Policy) -> Option<&'a Reason> {
        let profile = self.profile.doubted().filter(|_| policy.profile);
        self.required(policy).find_map(|(_, evidence)| evidence.doubted()).or(profile)
    }

    fn required<'a>(&'a self, policy: &'a Policy) -> impl Iterator<Item = (&'a String, &'a CheckEvidence)> {
        self.checks.iter().filter(|(name, _)| policy.checks.get(*name).is_some_and(|rule| rule.required))
    }

    fn is_proven(&self, policy: &Policy) -> bool {
        self.required(policy).all(|(_, evidence)| evidence.is_proven())
            && (!policy.profile || self.profile.is_proven())
            && (!policy.image_required || self.image.is_some())
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
        let told = self.pending.as_ref().map(|pending| pending.tell_at);
        let waits = if self.admission == Admission::Quarantined { self.flap.ends() } else { None };
        self.fresh_until(policy).into_iter().chain(told).chain(waits).min()
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
        let mut record = self.record(policy);
        let kind = match report.state {
            ProfileState::Managed => {
                record.changed_settings = before.map(|before| changed_settings(before, report));
                FactKind::WorkerConfigManaged
            }
            ProfileState::Drifted | ProfileState::Missing => FactKind::WorkerConfigDrifted,
        };
        step.facts.push(fact(kind, now, record));
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
            readmission: self.flap.imposed().filter(|_| self.admission == Admission::Quarantined),
            version_change: None,
            changed_settings: None,
            profile: profile.cloned(),
            image: self.image.as_ref().and_then(|report| report.image.clone()),
        }
    }
}

/// The names of the other keys that are new, gone or different.
fn changed_settings(before: &ProfileReport, now: &ProfileReport) -> Vec<String> {
    let (before, now) = (&before.extra_settings, &now.extra_settings);
    let mut names: Vec<_> =
        now.iter().filter(|(key, hash)| before.get(*key) != Some(*hash)).map(|(key, _)| key).collect();
    names.extend(before.keys().filter(|key| !now.contains_key(*key)));
    names.sort();
    names.into_iter().cloned().collect()
}
