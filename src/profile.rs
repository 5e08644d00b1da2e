//! The managed config: what it is, what it should be, and the edits between.
//!
//! ```text
//! settings, identity ─▶ Target ─▶ locate ─▶ read ─▶ policy ─▶ inspect: the report
//!                                             └───▶ plan ───▶ apply: the file, and managed.json
//! ```
//!
//! `policy` and `plan` are pure. `locate` and `read` never follow a symlink out of the worker's home, and `apply`
//! writes nowhere but in the directory that holds the profile. No message shows what the file says, except for a
//! short, plain value of an enforced key.

use std::path::Path;

use nix::unistd::{Gid, Uid};

use crate::{
    identity::{Identity, Who},
    model::WorkerName,
    settings::{Enforced, Profile},
};

pub mod apply;
pub mod diff;
mod inspect;
mod locate;
pub mod managed;
pub mod plan;
mod policy;
mod read;
mod text;
mod value;
pub mod values;

pub use apply::{Applied, ApplyError, apply};
pub use diff::diff;
pub use inspect::inspect;
pub use locate::LocateError;
pub use policy::SyntaxError;
pub use read::ReadError;
pub(crate) use text::shown_path;

/// One profile: which file of which user, and what it must say.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// As in the settings: `~/…` or an absolute path below the home.
    pub path: &'a str,
    /// What a missing file is made from.
    pub template: Option<&'a Path>,
    /// What it must say.
    pub enforce: &'a [Enforced],
    /// The worker user's home; the file is nowhere else.
    pub home: &'a Path,
    /// Who must own the file.
    pub uid: Uid,
    /// Its group.
    pub gid: Gid,
    /// All groups of the user who must be able to read it.
    pub groups: &'a [Gid],
    /// Whom the file speaks for; the first one is named in remedies.
    pub workers: &'a [WorkerName],
}

impl<'a> Target<'a> {
    /// The profile of one identity.
    pub fn new(identity: &'a Identity, profile: &'a Profile) -> Self {
        Self {
            path: &profile.path,
            template: profile.template.as_deref(),
            enforce: &profile.enforce,
            home: &identity.home,
            uid: identity.uid,
            gid: identity.gid,
            groups: &identity.groups,
            workers: &identity.workers,
        }
    }

    /// Who must be able to read it.
    pub(crate) fn who(&self) -> Who<'a> {
        Who { uid: self.uid, groups: self.groups }
    }

    /// The command that merges the enforced keys.
    pub(crate) fn apply_command(&self) -> String {
        match self.workers.first() {
            Some(worker) => format!("worker-gate profile apply --worker {}", text::shell_word(worker.as_str())),
            None => "worker-gate profile apply".to_owned(),
        }
    }
}
