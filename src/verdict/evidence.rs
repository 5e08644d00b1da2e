//! What is known of one check or profile, and what it proves.

use std::time::Duration;

use jiff::Timestamp;

use super::{CheckPolicy, milliseconds};
use crate::model::{
    CheckRecord, CheckResult, CheckStatus, Mono, Observation, ProfileReport, ProfileState, Reason, Tool,
};

/// Why what was proven does not count, and from when on a look counts again.
#[derive(Debug, Clone, Default)]
struct Doubt {
    reason: Option<Reason>,
    since: Option<Mono>,
}

impl Doubt {
    fn raised(reason: Reason, since: Mono) -> Self {
        Self { reason: Some(reason), since: Some(since) }
    }

    /// Whether a look that began then is about something that is no longer there.
    fn outdates(&self, started: Mono) -> bool {
        self.since.is_some_and(|since| started < since)
    }
}

/// The history of one check, as far as it matters.
#[derive(Debug, Clone, Default)]
pub(super) struct CheckEvidence {
    last: Option<(CheckResult, Timestamp)>,
    passes: u32,
    fails: u32,
    /// `fail_after` failures in a row, and not yet `pass_after` passes since.
    unfit: bool,
    /// `pass_after` passes in a row, all begun while the gate owned the worker, and no `fail_after` failures since.
    proven: bool,
    /// When the newest pass that counts began. A look says nothing about what happened after it began.
    passed_at: Option<Mono>,
    doubt: Doubt,
    /// The tool as the last result that knew its version, or passed, was about it.
    tool: Option<Tool>,
}

impl CheckEvidence {
    /// Takes a result in. If it is about another tool than the results before it, hands back what that one was and what this
    /// one is.
    pub(super) fn take(
        &mut self,
        result: &CheckResult,
        seen: &Observation,
        policy: CheckPolicy,
        owned: Option<Mono>,
    ) -> Option<(Tool, Tool)> {
        if self.doubt.outdates(seen.started) {
            return None;
        }
        match result.status {
            CheckStatus::Passed => {
                self.fails = 0;
                // A look that began before the gate owned the worker is news, not evidence.
                if owned.is_none_or(|owned| seen.started >= owned) {
                    self.passes = self.passes.saturating_add(1);
                    let enough = self.passes >= policy.pass_after;
                    self.unfit &= !enough;
                    if owned.is_some() {
                        self.passed_at = Some(seen.started);
                        self.proven |= enough;
                    }
                }
            }
            CheckStatus::Failed | CheckStatus::Skipped => {
                self.passes = 0;
                self.fails = self.fails.saturating_add(1);
                if self.fails >= policy.fail_after {
                    self.unfit = true;
                    self.proven = false;
                }
            }
        }
        if self.proven || self.unfit {
            self.doubt.reason = None;
        }
        self.last = Some((result.clone(), seen.at));
        self.change_of_tool(result)
    }

    fn change_of_tool(&mut self, result: &CheckResult) -> Option<(Tool, Tool)> {
        // A tool that is being installed fails in many ways; what it is shows once it says so, or passes.
        if result.fingerprint.is_none() || (result.version.is_none() && result.status != CheckStatus::Passed) {
            return None;
        }
        let new = Tool { version: result.version.clone(), fingerprint: result.fingerprint.clone() };
        let old = self.tool.replace(new.clone())?;
        (old.fingerprint != new.fingerprint).then_some((old, new))
    }

    /// What was proven no longer counts, for this reason, and what was found before `since` will not count either.
    pub(super) fn doubt(&mut self, reason: Reason, since: Mono) {
        self.void();
        self.doubt = Doubt::raised(reason, since);
    }

    pub(super) fn doubted(&self) -> Option<&Reason> {
        self.doubt.reason.as_ref()
    }

    /// What was proven no longer counts: the gate has just come to own the worker. A failure is still a failure.
    pub(super) fn void(&mut self) {
        self.proven = false;
        self.passed_at = None;
        self.passes = 0;
    }

    pub(super) fn last(&self) -> Option<&(CheckResult, Timestamp)> {
        self.last.as_ref()
    }

    pub(super) fn is_unfit(&self) -> bool {
        self.unfit
    }

    pub(super) fn fails(&self) -> u32 {
        self.fails
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }

    pub(super) fn stale_at(&self, max_age: Duration) -> Option<Mono> {
        self.passed_at.map(|at| at + max_age)
    }

    pub(super) fn record(&self, required: bool) -> CheckRecord {
        let result = self.last.as_ref().map(|(result, _)| result);
        CheckRecord {
            status: result.map_or(CheckStatus::Skipped, |result| result.status),
            required,
            outcome: result.and_then(|result| result.outcome.clone()),
            duration_ms: result.map(|result| milliseconds(result.duration)),
            version: result.and_then(|result| result.version.clone()),
            fingerprint: result.and_then(|result| result.fingerprint.clone()),
            message: result.and_then(|result| Some(result.message.as_ref()?.detail.clone())),
            checked_at: self.last.as_ref().map(|(_, at)| *at),
        }
    }
}

/// What is known of the profile. A profile acts at once: one look decides.
#[derive(Debug, Clone, Default)]
pub(super) struct ProfileEvidence {
    last: Option<ProfileReport>,
    managed_at: Option<Mono>,
    doubt: Doubt,
}

impl ProfileEvidence {
    /// Takes a report in and hands back the one before it.
    pub(super) fn take(
        &mut self,
        report: &ProfileReport,
        seen: &Observation,
        owned: Option<Mono>,
    ) -> Option<ProfileReport> {
        let is_outdated = self.doubt.outdates(seen.started);
        if !is_outdated {
            self.doubt.reason = None;
        }
        let is_ours = owned.is_some_and(|owned| seen.started >= owned);
        let counts = report.state == ProfileState::Managed && is_ours && !is_outdated;
        self.managed_at = counts.then_some(seen.started);
        self.last.replace(report.clone())
    }

    pub(super) fn void(&mut self) {
        self.managed_at = None;
    }

    /// As [`CheckEvidence::doubt`].
    pub(super) fn doubt(&mut self, reason: Reason, since: Mono) {
        self.void();
        self.doubt = Doubt::raised(reason, since);
    }

    pub(super) fn doubted(&self) -> Option<&Reason> {
        self.doubt.reason.as_ref()
    }

    pub(super) fn last(&self) -> Option<&ProfileReport> {
        self.last.as_ref()
    }

    pub(super) fn is_unfit(&self) -> bool {
        self.last.as_ref().is_some_and(|report| report.state != ProfileState::Managed)
    }

    pub(super) fn is_proven(&self) -> bool {
        self.managed_at.is_some()
    }

    pub(super) fn stale_at(&self, max_age: Duration) -> Option<Mono> {
        self.managed_at.map(|at| at + max_age)
    }
}
