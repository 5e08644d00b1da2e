//! Merges the enforced keys into the file: the executor of a plan.
//!
//! The new file is made beside the old one and takes its place in one step, so a reader sees the old bytes or the new
//! ones. What is hard is a tool that writes the same file at the same moment; `apply/swap.rs` says how its write is kept.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{errno::Errno, fcntl::RenameFlags};

use super::{
    ReadError, Target,
    inspect::{self, Broken},
    locate::{LocateError, Place},
    plan::{self, Plan, PlanError},
    read::{self, Snapshot},
    text::{shell_word, shown_path},
};
use crate::model::Failure;

mod create;
pub(super) use create::plan_for_new;
mod directory;
mod swap;
mod temp;

/// For how long a file that another program keeps writing is tried again. Tools write their config in milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two tries; the writer gets the processor meanwhile.
const PAUSE: Duration = Duration::from_millis(5);

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The file, after every symlink.
    pub path: PathBuf,
    /// It was missing.
    pub created: bool,
    /// The dotted names of the keys that were set, in the order of the file; empty when all were as wanted.
    pub changed: Vec<String>,
}

/// Why the enforced keys were not merged. Nothing was changed then, and no temporary file remains, except where
/// [`LeftBehind`](ApplyError::LeftBehind) says so.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(ReadError),
    /// The template cannot be read or used.
    #[error("use the template {}: {problem}", shown_path(.path))]
    Template {
        /// As in the settings.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file belongs to another user. Giving it away could hand a stranger's content to the worker, so a person decides.
    #[error("merge into {}: {}", shown_path(.path), .problem.detail)]
    Owner {
        /// After every symlink.
        path: PathBuf,
        /// Whose it is, and the command that mends it.
        problem: Failure,
    },
    /// The file is not UTF-8 or not TOML.
    #[error("merge into a broken file: {}", .problem.detail)]
    Broken {
        /// The place, and what to do.
        problem: Failure,
    },
    /// The keys cannot be set without losing others.
    #[error("merge into {}: cannot {error}", shown_path(.path))]
    Plan {
        /// After every symlink.
        path: PathBuf,
        /// Why.
        error: PlanError,
    },
    /// The file is a mount point of its own, as with a container's single-file volume, and cannot be replaced.
    #[error("replace {}: it is a mount point", shown_path(.path))]
    MountPoint {
        /// After every symlink.
        path: PathBuf,
    },
    /// Another program kept writing.
    #[error("merge into {}: another program keeps writing it", shown_path(.path))]
    Busy {
        /// After every symlink.
        path: PathBuf,
    },
    /// A step failed.
    #[error("{step} {}: {errno}", shown_path(.path))]
    Step {
        /// What was tried, such as `write`.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// A write of another program was taken out and could not be put back.
    #[error("put back what another program wrote to {}: {errno}; its write is in {}", shown_path(.path), shown_path(.kept))]
    LeftBehind {
        /// After every symlink.
        path: PathBuf,
        /// Where that write is.
        kept: PathBuf,
        /// Why.
        errno: Errno,
    },
}

impl ApplyError {
    /// Whether another user could have done it.
    pub fn is_permission(&self) -> bool {
        let errno = match self {
            Self::Step { errno, .. }
            | Self::Read(
                ReadError::Io { errno, .. }
                | ReadError::Locate(LocateError::Blocked { errno, .. } | LocateError::Home { errno, .. }),
            ) => *errno,
            Self::Read(_)
            | Self::Template { .. }
            | Self::Owner { .. }
            | Self::Broken { .. }
            | Self::Plan { .. }
            | Self::MountPoint { .. }
            | Self::Busy { .. }
            | Self::LeftBehind { .. } => return false,
        };
        matches!(errno, Errno::EACCES | Errno::EPERM)
    }

    /// The command or the change that mends it.
    pub fn remedy(&self, target: &Target<'_>) -> String {
        let apply = target.apply_command();
        match self {
            Self::Read(error) => inspect::remedy(error, target),
            Self::Template { path, .. } => {
                format!("mend {}, or set `profile.template = \"\"`, then run: {apply}", shown_path(path))
            }
            Self::Owner { problem, .. } | Self::Broken { problem } => problem.remedy.clone(),
            Self::Plan { path, error } => format!("{} of {}, then run: {apply}", error.remedy(), shown_path(path)),
            Self::MountPoint { path } => {
                format!(
                    "set the keys in the file that is mounted on {}, or mount its directory instead",
                    shown_path(path)
                )
            }
            Self::Busy { .. } => format!("wait until the other program is done, then run: {apply}"),
            Self::Step { .. } if self.is_permission() => {
                format!("run as root or as the worker's user (uid {}): {apply}", target.uid)
            }
            Self::Step { path, .. } => format!("look at the file system of {}, then run: {apply}", shown_path(path)),
            Self::LeftBehind { path, kept, .. } => {
                format!("mv {} {}", shell_word(&shown_path(kept)), shell_word(&shown_path(path)))
            }
        }
    }
}

/// Gives every enforced key its value, in the file that the target names, and changes no other byte of it.
///
/// Owner and mode stay; a symlink below the home stays, and the file it leads to is replaced. Extended attributes and
/// hard links to the old file are not carried over. A missing file is made from the template, or from the enforced
/// keys alone, with mode 0600; missing directories with mode 0700; both belong to the worker's user.
///
/// Blocks for up to some two seconds while another program keeps writing the file.
pub fn apply(target: Target<'_>) -> Result<Applied, ApplyError> {
    apply_by(target, swap::EXCHANGE)
}

/// What one try came to.
enum Try {
    Done(Applied),
    /// The file or its directory changed in the meantime.
    Again,
}

fn apply_by(target: Target<'_>, exchange: RenameFlags) -> Result<Applied, ApplyError> {
    let since = Instant::now();
    loop {
        let (place, snapshot) = read::look(target.path, target.home).map_err(ApplyError::Read)?;
        let patient = since.elapsed() < PATIENCE;
        let result = match &snapshot {
            // A file in the middle of a write is often broken, so that is believed only when it lasts.
            Some(snapshot) => match update(&target, &place, snapshot, exchange) {
                Err(ApplyError::Broken { .. }) if patient && swap::in_motion(&place, snapshot) => Ok(Try::Again),
                result => result,
            },
            None => create::create(&target, &place),
        };
        match result? {
            Try::Done(applied) => return Ok(applied),
            Try::Again if patient => thread::sleep(PAUSE),
            Try::Again => return Err(ApplyError::Busy { path: place.path() }),
        }
    }
}

/// What has to be done to a file that is there.
pub(super) fn plan_for(target: &Target<'_>, path: &Path, snapshot: &Snapshot) -> Result<Plan, ApplyError> {
    let shown = shown_path(path);
    if let Some(problem) = target.owner_problem(&shown, snapshot) {
        return Err(ApplyError::Owner { path: path.to_owned(), problem });
    }
    let broken = |broken: Broken| ApplyError::Broken { problem: broken.failure(&shown, &target.apply_command()) };
    let (text, _) = inspect::text_of(&snapshot.bytes).map_err(broken)?;
    plan::plan(text, target.enforce).map_err(|error| ApplyError::Plan { path: path.to_owned(), error })
}

fn update(target: &Target<'_>, place: &Place, snapshot: &Snapshot, exchange: RenameFlags) -> Result<Try, ApplyError> {
    let plan = plan_for(target, &place.path(), snapshot)?;
    let done = Applied { path: place.path(), created: false, changed: plan.changed() };
    if plan.edits.is_empty() || swap::swap(place, snapshot, plan.text.as_bytes(), exchange)? {
        return Ok(Try::Done(done));
    }
    Ok(Try::Again)
}

#[cfg(test)]
pub(in crate::profile) mod tests;
