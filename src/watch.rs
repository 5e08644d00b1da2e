//! Tells at once when a file may have changed: one inotify instance for the whole gate.
//!
//! A [`Subject`] is a list of paths that somebody wants to know about, such as the profile of one identity. Its owner looks
//! at the files whenever [`Subject::touched`] returns; what a change means is for the owner to find out. Notices are folded:
//! ten thousand events between two looks are one notice, which bears the time of the first. None is ever lost, because
//! there is no queue that could be full.
//!
//! For every path, all directories on the way are watched, those behind each symlink included, and the file itself. That
//! takes in a write in place, a rename over the file, a symlink that points elsewhere, a directory that is replaced, and a
//! file that is not there yet. `walk` does this, `book` remembers who waits for what, `task` brings the two together,
//! `mounts` sees what is mounted over a path.
//!
//! # What nobody is told about
//!
//! Writes through a memory map, edits by another host on a network file system, and edits in the lower layer of an overlay
//! raise no event. So a look now and then must go on ([`crate::probe::schedule`]). A path that cannot be watched at all is
//! reported by [`Subject::unwatched`], and its owner has to look often.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::errno::Errno;
use tokio::sync::Notify;

use crate::model::Mono;

mod book;
mod mounts;
mod task;
mod walk;

pub use task::Task;

/// Something under a subject's paths may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touched {
    /// When the first event since the last notice was read from the kernel.
    pub at: Mono,
}

/// Why events cannot be relied on for a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unwatched {
    /// Its paths are being resolved, which takes microseconds unless a file system hangs.
    NotYet,
    /// The kernel refused a watch.
    Refused {
        /// The directory or file.
        path: PathBuf,
        /// ENOSPC and EMFILE are limits that root can raise.
        errno: Errno,
    },
    /// The file lies where other hosts, or a program behind the file system, can change it unseen.
    Remote {
        /// The directory or file.
        path: PathBuf,
    },
}

impl fmt::Display for Unwatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYet => f.write_str("it is still being resolved"),
            Self::Refused { path, errno: errno @ Errno::ENOSPC } => {
                write!(f, "{}: {errno}; raise the sysctl fs.inotify.max_user_watches", path.display())
            }
            Self::Refused { path, errno: errno @ (Errno::EMFILE | Errno::ENFILE) } => {
                write!(f, "{}: {errno}; raise the sysctl fs.inotify.max_user_instances", path.display())
            }
            Self::Refused { path, errno } => write!(f, "{}: {errno}", path.display()),
            Self::Remote { path } => write!(f, "{}: its file system does not tell of every change", path.display()),
        }
    }
}

/// Makes subjects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watcher {
    desk: Arc<Desk>,
}

impl Watcher {
    /// A watcher and its task. Until the task runs, every subject is unwatched and nothing is told.
    pub fn start() -> (Self, Task) {
        let desk = Arc::new(Desk::default());
        (Self { desk: desk.clone() }, Task::new(desk))
    }

    /// Watches the paths, which are absolute, for as long as the subject is kept.
    ///
    /// The first notice comes when the watches are in place: what changed before then is to be looked for.
    pub fn subject(&self, paths: Vec<PathBuf>) -> Subject {
        let id = SubjectId(self.desk.made.fetch_add(1, Ordering::Relaxed));
        let subject = Subject { id, slot: Arc::default(), desk: self.desk.clone() };
        subject.set(paths);
        subject
    }
}

/// Paths that somebody wants to know about. For one owner: a notice that is taken is gone.
#[derive(Debug)]
pub struct Subject {
    id: SubjectId,
    slot: Arc<Slot>,
    desk: Arc<Desk>,
}

impl Subject {
    /// Watches these paths from now on, and no others. There is a notice when the new watches are in place.
    pub fn set(&self, paths: Vec<PathBuf>) {
        self.slot.state().is_walking = true;
        self.desk.ask(self.id, Some((self.slot.clone(), paths)));
    }

    /// The next notice; at once, if something happened since the last one. Cancel-safe.
    pub async fn touched(&self) -> Touched {
        loop {
            if let Some(at) = self.slot.state().touched.take() {
                return Touched { at };
            }
            self.slot.news.notified().await;
        }
    }

    /// Why the owner has to look for itself, if it has to. When this changes, there is a notice.
    pub fn unwatched(&self) -> Option<Unwatched> {
        let state = self.slot.state();
        if state.is_walking { Some(Unwatched::NotYet) } else { state.unwatched.clone() }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.desk.ask(self.id, None);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct SubjectId(u64);

/// What the task leaves for the owner of a subject.
#[derive(Debug, Default)]
struct Slot {
    state: Mutex<SlotState>,
    news: Notify,
}

#[derive(Debug, Default)]
struct SlotState {
    /// The first event since the last notice.
    touched: Option<Mono>,
    /// What the last walk found.
    unwatched: Option<Unwatched>,
    /// Whether the watches may not be where they should be.
    is_walking: bool,
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, at: Mono) {
        self.state().touched.get_or_insert(at);
        self.news.notify_one();
    }
}

/// The newest request of a subject: what to watch; `None` when it is gone.
type Request = Option<(Arc<Slot>, Vec<PathBuf>)>;

/// Where subjects leave their requests. Bounded by the number of subjects.
#[derive(Debug, Default)]
struct Desk {
    requests: Mutex<BTreeMap<SubjectId, Request>>,
    news: Notify,
    made: AtomicU64,
}

impl Desk {
    fn ask(&self, id: SubjectId, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).insert(id, request);
        self.news.notify_one();
    }

    fn take(&self) -> BTreeMap<SubjectId, Request> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests;
