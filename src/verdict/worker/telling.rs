//! The facts about a worker, and the record that they carry.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Worker;
use crate::{
    model::{Account, Admission, CheckRecord, Exposed, FactKind, Now, ProfileReport, ProfileState, Record, Since},
    verdict::{Policy, Step, fact, milliseconds, reason, status_of},
};

impl Worker {
    /// Tells the pending change, with what the edge has said about it so far.
    pub(super) fn tell(&mut self, now: Now, account: Option<Account>, exposed: Option<Exposed>, step: &mut Step) {
        let Some(pending) = self.pending.take() else { return };
        let latency_ms = self.edge_at.map(|at| milliseconds(at.since(pending.seen)));
        let mut record = Record { edge: Some(self.edge), account, exposed, latency_ms, ..pending.record };
        if pending.kind == FactKind::WorkerQuarantined {
            record.seen_at = Some(now.wall_of(pending.seen));
            record.proven_at = pending.proven.map(|proven| now.wall_of(proven));
            if let Some(tasks) = record.exposed.as_mut().and_then(|exposed| exposed.tasks.as_mut()) {
                // What was over while all was proven is in no doubt.
                tasks.retain(|task| {
                    task.over_at().is_none_or(|over| record.proven_at.is_none_or(|proven| over >= proven))
                });
                for task in tasks {
                    task.since = since(task.started_at, record.seen_at, record.proven_at);
                }
            }
        }
        step.facts.push(fact(pending.kind, now, record));
    }

    /// Tells of each way past the shut edge whose time has come.
    pub(super) fn tell_bypasses(&mut self, now: Now, policy: &Policy, step: &mut Step) {
        for way in self.bypasses.due(now.mono) {
            let record = Record { reason: Some(reason::bypass(way)), ..self.record(policy) };
            step.facts.push(fact(FactKind::WorkerBypass, now, record));
        }
    }

    /// A health check is told once every check has run; one that says what the last one said is not audited again.
    pub(super) fn tell_health(&mut self, now: Now, policy: &Policy, step: &mut Step) {
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

    pub(super) fn tell_profile(
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

    pub(in crate::verdict) fn record(&self, policy: &Policy) -> Record {
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
            reason: Some(self.reason()),
            changed_at: self.changed_at,
            hold: self.hold().cloned(),
            command: None,
            intake: Some(self.intake.clone()).filter(|intake| !intake.is_empty()),
            account: None,
            broker_blocked: false,
            moving: self.moving,
            exposed: None,
            seen_at: None,
            proven_at: None,
            latency_ms: None,
            readmission: self.flap.imposed().filter(|_| self.judged.admission == Admission::Quarantined),
            version_change: None,
            changed_settings: None,
            profile: profile.cloned(),
            image: self.image.as_ref().and_then(|report| report.image.clone()),
        }
    }
}

/// In doubt since when a task is that was started at this time; times are told to the millisecond at best.
fn since(started: Option<Timestamp>, seen: Option<Timestamp>, proven: Option<Timestamp>) -> Since {
    match started {
        Some(started) if proven.is_some_and(|proven| started < proven) => Since::Before,
        Some(started) if seen.is_some_and(|seen| started < seen) => Since::Evidence,
        Some(_) | None => Since::Drift,
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
