//! The task that reads events, tells subjects, and keeps the watches where they belong.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};

use super::{
    Desk, Slot, SubjectId, Unwatched,
    book::Book,
    mounts::Mounts,
    walk::{Key, Walk, walk},
};
use crate::{clock, model::Mono};

/// After that long a refused watch is tried again: limits are raised, and others give their watches back.
const RETRY: Duration = Duration::from_secs(30);

/// From an event to the walk that it asks for: whoever is told of the event goes first. What happens meanwhile where there is
/// no watch yet is not missed, since the walk ends with a notice of its own; bursts make one walk.
const WALK_AFTER: Duration = Duration::from_millis(10);

/// More events than this that nobody seems to wait for, during one walk, and every subject is walked again.
const MAX_STRAYS: usize = 4096;

/// Reads the events of all subjects. [`Task::run`] has to run for anything to be told.
#[derive(Debug)]
pub struct Task {
    desk: Arc<Desk>,
    subjects: BTreeMap<SubjectId, (Arc<Slot>, Arc<[PathBuf]>)>,
    book: Book,
    /// Whose watches may not be where they should be.
    dirty: BTreeSet<SubjectId>,
    /// What came during a walk and nobody waited for: the walk may be about to say who does.
    strays: HashSet<Key>,
}

/// The walk under way, on a thread where a file system may hang.
type Walking = JoinHandle<Vec<(SubjectId, Walk)>>;

impl Task {
    pub(super) fn new(desk: Arc<Desk>) -> Self {
        Self { desk, subjects: BTreeMap::new(), book: Book::default(), dirty: BTreeSet::new(), strays: HashSet::new() }
    }

    /// Runs until it is dropped.
    ///
    /// # Panics
    ///
    /// Passes on a panic of a walk.
    pub async fn run(mut self) {
        let mut source = Source::open();
        let mounts = Mounts::open();
        let mut walking: Option<Walking> = None;
        let mut retry = Instant::now() + RETRY;
        let mut walk_at = Instant::now();
        loop {
            let is_waiting = walking.is_none() && !self.dirty.is_empty();
            // Not biased: a flood of events must not keep a walk from putting its watches in place.
            // Cancel-safe: events stay in the kernel, requests at the desk, and the walk is only looked at.
            tokio::select! {
                events = source.events() => {
                    if self.dirty.is_empty() {
                        walk_at = Instant::now() + WALK_AFTER;
                    }
                    self.take(events, clock::now().mono, walking.is_some());
                }
                () = sleep_until(walk_at), if is_waiting => walking = self.set_out(&source),
                walks = finished(&mut walking) => {
                    walking = None;
                    self.arrive(walks, &source);
                }
                () = self.desk.news.notified() => self.serve(),
                () = mounts.changed() => self.dirty.extend(self.subjects.keys()),
                () = sleep_until(retry) => {
                    retry = Instant::now() + RETRY;
                    if source.0.is_err() {
                        source = Source::open();
                    }
                    self.dirty.extend(self.subjects.iter().filter(|(_, (slot, _))| slot.state().unwatched.is_some()).map(|(id, _)| *id));
                }
            }
        }
    }

    fn serve(&mut self) {
        for (id, request) in self.desk.take() {
            if let Some((slot, paths)) = request {
                self.subjects.insert(id, (slot, paths.into()));
                self.dirty.insert(id);
            } else {
                self.subjects.remove(&id);
                self.dirty.remove(&id);
                self.book.remove(id);
            }
        }
    }

    /// Tells whom the events concern, before anything else is done about them.
    fn take(&mut self, events: Vec<InotifyEvent>, at: Mono, is_walking: bool) {
        for InotifyEvent { wd: watch, mask, name, .. } in events {
            if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                tracing::warn!("file events were lost; looking at every watched file again");
                self.doubt_all(at);
                continue;
            }
            let key = Key { watch, name };
            let waiting = if mask.contains(AddWatchFlags::IN_IGNORED) {
                self.book.lost(watch).into_iter().collect()
            } else {
                self.book.waiting(&key)
            };
            // Nothing but the content changed: every watch is where it was.
            let is_structural = !mask.difference(AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE).is_empty();
            for id in &waiting {
                self.touch(*id, at, is_structural);
            }
            if waiting.is_empty() && is_walking {
                self.strays.insert(key);
                if self.strays.len() > MAX_STRAYS {
                    self.strays.clear();
                    self.doubt_all(at);
                }
            }
        }
    }

    fn doubt_all(&mut self, at: Mono) {
        for id in self.subjects.keys().copied().collect::<Vec<_>>() {
            self.touch(id, at, true);
        }
    }

    fn touch(&mut self, id: SubjectId, at: Mono, is_structural: bool) {
        let Some((slot, _)) = self.subjects.get(&id) else { return };
        if is_structural {
            slot.state().is_walking = true;
            self.dirty.insert(id);
        }
        slot.touch(at);
    }

    /// Starts a walk for all whose watches are in doubt. One at a time, so that no walk has to fear for its watches.
    fn set_out(&mut self, source: &Source) -> Option<Walking> {
        let dirty = std::mem::take(&mut self.dirty);
        let inotify = match &source.0 {
            Ok(source) => source.get_ref().0.clone(),
            Err(errno) => {
                for id in dirty {
                    let hole = Unwatched::Refused { path: PathBuf::from("inotify"), errno: *errno };
                    self.settle(id, Some(hole), false);
                }
                return None;
            }
        };
        let all: Vec<_> = dirty.into_iter().filter_map(|id| Some((id, self.subjects.get(&id)?.1.clone()))).collect();
        self.strays.clear();
        Some(spawn_blocking(move || all.into_iter().map(|(id, paths)| (id, walk(&inotify, &paths))).collect()))
    }

    /// Enters what a walk has found. Whoever has a new watch is told: something may have happened before it was there.
    fn arrive(&mut self, walks: Vec<(SubjectId, Walk)>, source: &Source) {
        let strays = std::mem::take(&mut self.strays);
        for (id, Walk { keys, hole }) in walks {
            for key in &keys {
                self.book.note(key.watch);
            }
            if !self.subjects.contains_key(&id) {
                continue;
            }
            if !keys.is_disjoint(&strays) {
                self.dirty.insert(id);
            }
            let is_new = self.book.replace(id, keys);
            self.settle(id, hole, is_new);
        }
        let idle = self.book.prune();
        if let Ok(source) = &source.0 {
            for watch in idle {
                // The kernel may have taken it away by itself, of which the news is under way.
                let _ = source.get_ref().0.rm_watch(watch);
            }
        }
    }

    fn settle(&mut self, id: SubjectId, hole: Option<Unwatched>, is_new: bool) {
        let Some((slot, paths)) = self.subjects.get(&id) else { return };
        let mut state = slot.state();
        state.is_walking = self.dirty.contains(&id);
        let changed = state.unwatched != hole;
        if changed && let Some(hole) = &hole {
            let path = paths.first().map(|path| path.display().to_string()).unwrap_or_default();
            tracing::warn!(path, "cannot watch this file, so it is looked at more often instead: {hole}");
        }
        state.unwatched = hole;
        drop(state);
        if is_new || changed {
            slot.touch(clock::now().mono);
        }
    }
}

/// Waits for the walk, if there is one.
async fn finished(walking: &mut Option<Walking>) -> Vec<(SubjectId, Walk)> {
    let Some(handle) = walking else { return std::future::pending().await };
    match handle.await {
        Ok(walks) => walks,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is being shut down.
        Err(_) => std::future::pending().await,
    }
}

/// Registers a descriptor with the runtime.
pub(super) fn wait_for<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    #[expect(
        unsafe_code,
        reason = "the owners here keep their one descriptor open and unchanged for as long as they live"
    )]
    // SAFETY: `owner` is a `File` or an `Inotify`; neither hands out its descriptor or takes another one.
    let registered = unsafe { AsyncFd::register_with_interest(owner, interest) };
    Ok(registered?)
}

/// The inotify instance, or why there is none.
#[derive(Debug)]
struct Source(Result<AsyncFd<Descriptor>, Errno>);

/// nix's type is not `AsRawFd`, which tokio wants.
#[derive(Debug)]
struct Descriptor(Arc<Inotify>);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Source {
    fn open() -> Self {
        let open = || {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            wait_for(Descriptor(Arc::new(inotify)), Interest::READABLE)
                .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        };
        Self(open())
    }

    /// What the kernel has for one read: some hundred events at the most. Cancel-safe.
    async fn events(&self) -> Vec<InotifyEvent> {
        let Ok(source) = &self.0 else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = source.readable().await else { return std::future::pending().await };
            match source.get_ref().0.read_events() {
                Ok(events) => return events,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    if errno != Errno::EAGAIN {
                        tracing::error!("failed to read file events: {errno}");
                    }
                    ready.clear_ready();
                }
            }
        }
    }
}
