//! What the profile is, for the report. It never fails: whatever is wrong becomes a state, a detail and a remedy.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _, path::Path};

use jiff::Timestamp;
use nix::errno::Errno;

use super::{
    LocateError, ReadError, Target,
    plan::{self, PlanError},
    policy::{self, Effective},
    read::{self, Snapshot},
    text::{shell_word, shown_path},
    value,
};
use crate::model::{Failure, ProfileReport, ProfileState, Written};

/// Looks at one profile. `managed_on` is what [`super::managed`] has for it, and is only handed on.
///
/// In the report's `enforced`, a value that is neither as wanted nor short and plain is replaced by a text in angle
/// brackets (`<table>`, `<array>`, `<not shown>`): it may be a secret.
pub fn inspect(target: Target<'_>, managed_on: Option<Timestamp>) -> ProfileReport {
    let report = Report { target, managed_on };
    match read::look(target.path, target.home) {
        Ok((place, Some(snapshot))) => {
            let barrier = target.who().barrier(place.root(), &place.path());
            report.of_file(&shown_path(&place.path()), &snapshot, barrier.as_deref())
        }
        Ok((place, None)) => {
            let path = shown_path(&place.path());
            let problem = Failure { detail: format!("{path} does not exist"), remedy: target.apply_command() };
            report.without_text(path, ProfileState::Missing, problem)
        }
        // A part of the way went between two looks at it: whoever takes the folder away takes the file away.
        Err(ReadError::Locate(LocateError::Blocked { errno: Errno::ENOENT, .. })) => {
            let path = target.expected_path();
            let problem = Failure { detail: format!("{path} does not exist"), remedy: target.apply_command() };
            report.without_text(path, ProfileState::Missing, problem)
        }
        Err(error) => {
            let (path, state) = match &error {
                ReadError::Io { path, .. } | ReadError::NotAFile { path, .. } | ReadError::TooLarge { path } => {
                    (shown_path(path), ProfileState::Drifted)
                }
                ReadError::Locate(LocateError::Home { errno: Errno::ENOENT, .. }) => {
                    (target.expected_path(), ProfileState::Missing)
                }
                ReadError::Locate(_) => (target.expected_path(), ProfileState::Drifted),
            };
            let problem = Failure { detail: format!("cannot {error}"), remedy: remedy(&error, &target) };
            report.without_text(path, state, problem)
        }
    }
}

impl Target<'_> {
    /// The path as the settings mean it, before any symlink.
    pub(super) fn expected_path(&self) -> String {
        shown_path(&match self.path.strip_prefix("~/") {
            Some(below) => self.home.join(below),
            None => self.path.into(),
        })
    }

    /// What is wrong with the owner, if anything, and the command that mends it.
    pub(super) fn owner_problem(&self, path: &str, snapshot: &Snapshot) -> Option<Failure> {
        let (uid, gid) = (self.uid.as_raw(), self.gid.as_raw());
        if (snapshot.uid, snapshot.gid) == (uid, gid) {
            return None;
        }
        Some(Failure {
            detail: format!("{path} belongs to {}:{} and must belong to {uid}:{gid}", snapshot.uid, snapshot.gid),
            remedy: format!("chown {uid}:{gid} {}", shell_word(path)),
        })
    }
}

impl Target<'_> {
    /// What is wrong if the gate can read the file and the worker's user cannot.
    fn barrier_problem(&self, path: &str, barrier: &Path) -> Failure {
        let (uid, gid) = (self.uid.as_raw(), self.gid.as_raw());
        let detail = match shown_path(barrier) {
            at if at == path => format!("the worker's user ({uid}) may not read {path}"),
            at => format!("the worker's user ({uid}) may not enter {at}, so it cannot read {path}"),
        };
        let at = shell_word(&shown_path(barrier));
        let is_others = barrier.metadata().is_ok_and(|found| found.uid() != uid);
        let owner = if is_others { format!("chown {uid}:{gid} {at} && ") } else { String::new() };
        Failure { detail, remedy: format!("{owner}chmod u+rX {at}") }
    }
}

/// What to do about a file that cannot be read.
pub(super) fn remedy(error: &ReadError, target: &Target<'_>) -> String {
    let apply = target.apply_command();
    match error {
        ReadError::Locate(LocateError::Home { home, .. }) => {
            format!("make {} a directory that the worker's user owns, or set the worker's `home`", shown_path(home))
        }
        ReadError::Locate(LocateError::Outside { .. }) => {
            "set `profile.path` to a path below the worker's home, such as ~/.codex/config.toml".to_owned()
        }
        ReadError::Locate(LocateError::Leaves { at, .. } | LocateError::Loop { at }) => {
            format!("replace {} by a file or a directory below the home", shown_path(at))
        }
        ReadError::Locate(LocateError::Blocked { at, errno: Errno::ENOTDIR | Errno::ENOENT }) => {
            format!("move {} away, then run: {apply}", shown_path(at))
        }
        ReadError::Locate(LocateError::Blocked { at: path, .. }) | ReadError::Io { path, .. } => {
            let barrier = target.home.canonicalize().ok().and_then(|home| target.who().barrier(&home, path));
            let path = shell_word(&shown_path(barrier.as_deref().unwrap_or(path)));
            format!("run the gate as root or as the worker's user, who must be able to read it: chmod u+rX {path}")
        }
        ReadError::NotAFile { path, .. } | ReadError::TooLarge { path } => {
            format!("move {} away, then run: {apply}", shown_path(path))
        }
    }
}

struct Report<'a> {
    target: Target<'a>,
    managed_on: Option<Timestamp>,
}

impl Report<'_> {
    fn without_text(&self, path: String, state: ProfileState, problem: Failure) -> ProfileReport {
        let unset = self.target.enforce.iter().map(|key| (value::dotted(&key.key), serde_json::Value::Null)).collect();
        ProfileReport {
            path,
            owner_uid: None,
            owner_gid: None,
            state,
            enforced: unset,
            extra_settings: BTreeMap::new(),
            managed_on: self.managed_on,
            config_hash: None,
            policy_hash: None,
            problem: Some(problem),
            wrong: self.target.enforce.iter().map(|key| value::dotted(&key.key)).collect(),
            written: None,
        }
    }

    fn of_file(&self, path: &str, snapshot: &Snapshot, barrier: Option<&Path>) -> ProfileReport {
        let mut problems: Vec<Failure> = self.target.owner_problem(path, snapshot).into_iter().collect();
        problems.extend(barrier.map(|barrier| self.target.barrier_problem(path, barrier)));
        let placeholder = Failure { detail: String::new(), remedy: String::new() };
        let mut report = ProfileReport {
            owner_uid: Some(snapshot.uid),
            owner_gid: Some(snapshot.gid),
            config_hash: Some(crate::hash::sha256(&snapshot.bytes)),
            written: Some(Written { mode: snapshot.mode, at: snapshot.modified }),
            ..self.without_text(path.to_owned(), ProfileState::Drifted, placeholder)
        };
        match text_of(&snapshot.bytes) {
            Ok((text, root)) => {
                let effective = policy::effective(&root, self.target.enforce);
                report.enforced = effective.iter().map(|e| (e.key.clone(), shown_value(e))).collect();
                report.extra_settings = policy::extra_settings(&root, self.target.enforce);
                report.policy_hash = Some(policy::policy_hash(&effective));
                report.wrong = effective.iter().filter(|key| !key.is_as_wanted()).map(|key| key.key.clone()).collect();
                problems.extend(self.drift(path, text, &effective));
            }
            Err(broken) => problems.push(broken.failure(path, &self.target.apply_command())),
        }
        report.problem = join(problems);
        if report.problem.is_none() {
            report.state = ProfileState::Managed;
        }
        report
    }

    fn drift(&self, path: &str, text: &str, effective: &[Effective]) -> Option<Failure> {
        let wrong: Vec<_> = effective.iter().filter(|e| !e.is_as_wanted()).map(Effective::complaint).collect();
        if wrong.is_empty() {
            return None;
        }
        let apply = self.target.apply_command();
        let remedy = match plan::plan(text, self.target.enforce) {
            Ok(_) => apply,
            Err(error @ (PlanError::Conflict { .. } | PlanError::Syntax(_) | PlanError::Unfaithful)) => {
                format!("{} of {path}, then run: {apply}", error.remedy())
            }
        };
        Some(Failure { detail: format!("{path}: {}", wrong.join("; ")), remedy })
    }
}

fn shown_value(effective: &Effective) -> serde_json::Value {
    match &effective.value {
        None => serde_json::Value::Null,
        Some(value) if effective.is_as_wanted() => value::json_in_full(value),
        Some(value) => value::shown_json(value),
    }
}

fn join(problems: Vec<Failure>) -> Option<Failure> {
    problems.into_iter().reduce(|a, b| Failure {
        detail: format!("{}; {}", a.detail, b.detail),
        remedy: format!("{}, then: {}", a.remedy, b.remedy),
    })
}

/// Why bytes are no profile.
pub(super) enum Broken {
    /// The first byte that is not UTF-8.
    NotUtf8(usize),
    /// Not TOML.
    Syntax(policy::SyntaxError),
}

impl Broken {
    pub(super) fn failure(&self, path: &str, then: &str) -> Failure {
        match self {
            Self::NotUtf8(byte) => Failure {
                detail: format!("{path} is not UTF-8 at byte {byte}"),
                remedy: format!("save {path} as UTF-8, then run: {then}"),
            },
            Self::Syntax(error) => Failure {
                detail: format!("{path} is not TOML: {error}"),
                remedy: format!("mend line {} of {path}, then run: {then}", error.line),
            },
        }
    }
}

/// The text of a profile, and what it says.
pub(super) fn text_of(bytes: &[u8]) -> Result<(&str, toml::Table), Broken> {
    let text = std::str::from_utf8(bytes).map_err(|error| Broken::NotUtf8(error.valid_up_to()))?;
    let root = value::of_table(policy::parse(text).map_err(Broken::Syntax)?.as_table());
    Ok((text, root))
}

#[cfg(test)]
mod tests;
