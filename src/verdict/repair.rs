//! Whether a drifted profile is mended, and when the gate stops mending what somebody else undoes.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::model::{Failure, Mono, ProfileReport, Reason};

/// A key that somebody has undone more often than this, within [`WINDOW`], is left alone.
const UNDONE: usize = 3;
/// How long an undoing is remembered.
const WINDOW: Duration = Duration::from_secs(600);
/// Until what could not be mended is tried again, unless it changes before.
const PAUSE: Duration = Duration::from_secs(5);

/// The repairs of one worker's profile.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// A repair has been asked for and has not answered.
    asked: bool,
    /// When each enforced key was last mended.
    mended: BTreeMap<String, VecDeque<Mono>>,
    /// The keys that somebody else keeps undoing.
    fight: Vec<String>,
    failure: Option<Failure>,
    /// The last one, and what it was to mend.
    last: Option<Last>,
}

/// A repair, and the profile before it.
#[derive(Debug)]
struct Last {
    config_hash: Option<String>,
    problem: Option<Failure>,
    ended: Mono,
}

impl Last {
    fn is_of(&self, report: &ProfileReport) -> bool {
        self.config_hash == report.config_hash && self.problem == report.problem
    }
}

impl Repairs {
    /// A profile was seen that is not as it must be. True if it is to be mended now.
    pub(super) fn drifted(&mut self, now: Mono, report: &ProfileReport) -> bool {
        if self.asked || !self.fight.is_empty() || self.is_in_vain(now, report) {
            return false;
        }
        for times in self.mended.values_mut() {
            while times.front().is_some_and(|at| now.since(*at) >= WINDOW) {
                times.pop_front();
            }
        }
        self.mended.retain(|_, times| !times.is_empty());
        let is_undone = |key: &&String| self.mended.get(*key).is_some_and(|times| times.len() > UNDONE);
        self.fight = report.wrong.iter().filter(is_undone).cloned().collect();
        if !self.fight.is_empty() {
            return false;
        }
        for key in &report.wrong {
            self.mended.entry(key.clone()).or_default().push_back(now);
        }
        self.asked = true;
        self.last = Some(Last { config_hash: report.config_hash.clone(), problem: report.problem.clone(), ended: now });
        true
    }

    /// Whether what could not be mended is to be tried again now, although nothing new was seen of it.
    pub(super) fn again(&mut self, now: Mono, report: &ProfileReport) -> bool {
        self.failure.is_some() && self.drifted(now, report)
    }

    /// Whether a repair of the same has just failed, or changed nothing where no key is wrong.
    fn is_in_vain(&self, now: Mono, report: &ProfileReport) -> bool {
        let is_early = self.last.as_ref().is_some_and(|last| last.is_of(report) && now.since(last.ended) < PAUSE);
        is_early && (self.failure.is_some() || report.wrong.is_empty())
    }

    /// Nobody answers any more who was asked for a repair.
    pub(super) fn forget_request(&mut self) {
        self.asked = false;
    }

    /// The repair that was asked for has ended.
    pub(super) fn ended(&mut self, now: Mono, outcome: &Result<(), Failure>) {
        self.asked = false;
        if let Some(last) = &mut self.last {
            last.ended = now;
        }
        self.failure = outcome.as_ref().err().cloned();
        if self.failure.is_some() {
            // Nobody has undone what was never done.
            for times in self.mended.values_mut() {
                times.pop_back();
            }
        }
    }

    /// The profile is as it must be.
    pub(super) fn managed(&mut self) {
        self.fight.clear();
        self.failure = None;
    }

    /// The reason of a drifted profile, with what the gate does about it.
    pub(super) fn explain(&self, reason: Reason, report: &ProfileReport) -> Reason {
        if !self.fight.is_empty() {
            let who = match (report.owner_uid, report.owner_gid, report.written) {
                (Some(uid), Some(gid), Some(written)) => format!(
                    "; the file belongs to {uid}:{gid}, has mode {:04o} and was last written at {}",
                    written.mode, written.at
                ),
                (_, _, _) => String::new(),
            };
            let detail = format!(
                "{}; it was mended {} times within ten minutes and each time undone ({}), so the gate stops mending it{who}",
                reason.detail,
                UNDONE + 1,
                self.fight.join(", ")
            );
            let remedy = format!("find out who else writes the file (fuser, auditctl -w), then: {}", reason.remedy);
            return Reason { detail, remedy, ..reason };
        }
        match &self.failure {
            Some(failure) => Reason {
                detail: format!("{}; the gate failed to mend it: {}", reason.detail, failure.detail),
                remedy: failure.remedy.clone(),
                ..reason
            },
            None if self.asked => Reason { remedy: "none: the gate mends it".to_owned(), ..reason },
            None => reason,
        }
    }
}
