//! Where the daemon's loop drops its facts and goes on.
//!
//! ```text
//! loop ──offer──▶ queue ──▶ thread: stamp, audit, fsync ──▶ backlog ──▶ task: publish, confirm ──▶ exchange
//!                 1,024 and more                             4,096 and more
//! ```
//!
//! Both stores are bounded, and neither makes anybody wait. A fact that finds the queue full is lost, and leaves a hole
//! in the sequence; one that is pushed out of the backlog was not published. Both are logged. Health checks that say nothing
//! new are pushed out first; everything else is in the audit log.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::timeout_at,
};

use super::{
    event::{Event, type_of},
    publish,
};
pub use super::{
    publish::{Outlet, RedisOutlet, STREAM_FIELD, STREAM_LENGTH, declare, gates, stream},
    scribe::Scribe,
};
use crate::model::Fact;

/// Facts that wait for the disk, at the least. A gate with ten workers has at most some thirty facts when everything changes
/// at once, and an fsync that takes a second is a very bad one: this is half a minute of the worst on the worst.
const QUEUE: usize = 1024;

/// The same for each worker. Three hundred that start or drift together have some six facts each within a second, and a disk
/// writes a few hundred in that time.
const QUEUE_EACH: usize = 32;

/// Events that wait for the broker: at about 2 KiB each, 8 MiB of a process that is to stay below 20. Ten workers with a
/// change a minute fill it in some seven hours without a broker.
const BACKLOG: usize = 4096;

/// The same for each worker. A thousand that drift or are admitted together have some four events each, and the broker
/// takes a thousand in a second.
const BACKLOG_EACH: usize = 16;

/// So many facts go to the disk together, if so many have come.
const TOGETHER: usize = 64;

/// A disk that has not answered for so long is reported as one that fails.
const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// The way out for facts. Dropping it ends the sequence without waiting; [`Outbox::flush`] waits.
#[derive(Debug)]
pub struct Outbox {
    queue: mpsc::Sender<Fact>,
    shared: Arc<Shared>,
    publisher: JoinHandle<()>,
}

/// What did not get out before the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leftover {
    /// Facts that are not in the audit log.
    pub unwritten: u64,
    /// Events that the broker did not confirm; those that were written are in the audit log.
    pub unpublished: u64,
}

/// How many facts are where, since the gate began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Not written yet, or not confirmed by the broker.
    pub waiting: u64,
    /// Neither in the audit log nor published, and never will be.
    pub lost: u64,
    /// In the audit log and never published.
    pub unpublished: u64,
}

impl Outbox {
    /// Starts the thread that writes and the task that publishes to `exchange`, on the current runtime, for the facts of so
    /// many workers.
    ///
    /// `channels` gives the newest outlet, and `None` while there is none; one whose channel the broker closed has to be
    /// replaced by its giver. The exchange has to be there: [`declare`].
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn(
        scribe: Scribe,
        exchange: String,
        workers: usize,
        channels: watch::Receiver<Option<Outlet>>,
    ) -> io::Result<Self> {
        let (queue, facts) = mpsc::channel(QUEUE.max(QUEUE_EACH * workers));
        let shared = Arc::new(Shared { room: BACKLOG.max(BACKLOG_EACH * workers), ..Shared::default() });
        shared.state().problem = scribe.problem().map(str::to_owned);
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("audit".into()).spawn(move || write_down(scribe, facts, &for_thread))?;
        let publisher = tokio::spawn(publish::run(Arc::clone(&shared), exchange, channels));
        Ok(Self { queue, shared, publisher })
    }

    /// Takes a fact. Never blocks and never fails; what there is no room for is counted and logged.
    pub fn offer(&self, fact: Fact) {
        match self.queue.try_send(fact) {
            Ok(()) => {
                self.shared.offered.fetch_add(1, Ordering::Relaxed);
            }
            Err(refused) => {
                self.shared.lost_so_far.fetch_add(1, Ordering::Relaxed);
                let before = self.shared.lost.fetch_add(1, Ordering::Relaxed);
                if before == 0 {
                    let kind = type_of(refused.into_inner().kind);
                    tracing::error!(fact = kind, "the audit log does not keep up: facts are being lost from here on");
                }
            }
        }
    }

    /// Whether facts reach the audit log; what is wrong, if they do not.
    ///
    /// # Errors
    /// One sentence for people.
    pub fn health(&self) -> Result<(), String> {
        if self.queue.is_closed() {
            return Err("the audit log's thread has ended; restart the gate".to_owned());
        }
        let state = self.shared.state();
        match (&state.problem, state.writing_since.map(|since| since.elapsed())) {
            (Some(problem), _) => Err(problem.clone()),
            (None, Some(waiting)) if waiting > DISK_PATIENCE => {
                Err(format!("the disk under the audit log has not answered for {} s", waiting.as_secs()))
            }
            (None, _) => Ok(()),
        }
    }

    /// How many facts are where.
    pub fn counts(&self) -> Counts {
        let state = self.shared.state();
        Counts {
            waiting: self.shared.queued(&state) + state.backlog.len() as u64,
            lost: self.shared.lost_so_far.load(Ordering::Relaxed),
            unpublished: state.unpublished,
        }
    }

    /// Takes no more facts, writes and publishes what is there, and says what was not done by the deadline.
    ///
    /// While there is no channel, waiting for one would only hold up the stop: then it ends when all is written.
    pub async fn flush(self, deadline: tokio::time::Instant) -> Leftover {
        let Self { queue, shared, mut publisher } = self;
        drop(queue);
        if timeout_at(deadline, &mut publisher).await.is_err() {
            publisher.abort();
        }
        let leftover = shared.leftover();
        if leftover != Leftover::default() {
            let Leftover { unwritten, unpublished } = leftover;
            tracing::error!(unwritten, unpublished, "not every fact got out before the gate stopped");
        }
        leftover
    }
}

/// Between the three: the loop that offers, the thread that writes, the task that publishes.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// For so many events in the backlog.
    room: usize,
    /// Facts that the queue took.
    offered: AtomicU64,
    /// Facts that the queue had no room for and that the sequence does not show yet.
    lost: AtomicU64,
    /// All facts that the queue had no room for.
    lost_so_far: AtomicU64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of their sequence.
    backlog: VecDeque<Waiting>,
    /// Pushed out of the backlog since something was last published.
    pushed_out: u64,
    unpublished: u64,
    /// Facts that came out of the queue.
    taken: u64,
    writing_since: Option<Instant>,
    problem: Option<String>,
    unwritten: usize,
    writer_ended: bool,
}

/// An event that the broker has not confirmed.
#[derive(Debug)]
struct Waiting {
    event: Arc<Event>,
    audited: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event for the broker. Where there is no room, one that is told again soon goes first: a check that says what it
    /// said before.
    fn push(&self, event: Event, audited: bool) {
        let mut state = self.state();
        if state.backlog.len() >= self.room {
            let routine = state.backlog.iter().position(|waiting| !waiting.audited).unwrap_or_default();
            state.backlog.remove(routine);
            state.unpublished += 1;
            state.pushed_out += 1;
            if state.pushed_out == 1 {
                tracing::warn!(
                    backlog = self.room,
                    "the broker is away or does not keep up: facts go to the audit log only, repeated health checks nowhere"
                );
            }
        }
        state.backlog.push_back(Waiting { event: Arc::new(event), audited });
        drop(state);
        self.changed.notify_one();
    }

    /// The oldest event that waits for the broker and comes after `last`; it stays until it is [`Shared::published`]. `None`
    /// when there will be no more. Cancel-safe.
    pub(super) async fn next(&self, last: Option<u64>) -> Option<Arc<Event>> {
        loop {
            {
                let state = self.state();
                let from = last.map_or(0, |last| state.backlog.partition_point(|waiting| waiting.event.seq() <= last));
                if let Some(waiting) = state.backlog.get(from) {
                    return Some(Arc::clone(&waiting.event));
                }
                if state.writer_ended {
                    return None;
                }
            }
            // One task waits here, so a permit that was left between the look and this line is not taken by another.
            self.changed.notified().await;
        }
    }

    /// Resolves when the last fact has been written.
    pub(super) async fn writer_ended(&self) {
        while !self.state().writer_ended {
            self.changed.notified().await;
        }
    }

    pub(super) fn published(&self, event: &Arc<Event>) {
        let mut state = self.state();
        // It may have been pushed out while the confirm was on its way.
        if state.backlog.front().is_some_and(|front| Arc::ptr_eq(&front.event, event)) {
            state.backlog.pop_front();
        }
        // One loud line for a rush, not one for each of its events.
        if state.pushed_out > 0 && state.backlog.len() < self.room / 2 {
            let pushed_out = std::mem::take(&mut state.pushed_out);
            tracing::warn!(pushed_out, "facts are published again; these were not");
        }
    }

    /// Facts in the queue.
    fn queued(&self, state: &State) -> u64 {
        self.offered.load(Ordering::Relaxed).saturating_sub(state.taken)
    }

    fn leftover(&self) -> Leftover {
        let state = self.state();
        let queued = self.queued(&state);
        let lost = self.lost.load(Ordering::Relaxed);
        Leftover {
            unwritten: queued + lost + state.unwritten as u64,
            unpublished: queued + lost + state.unpublished + state.backlog.len() as u64,
        }
    }
}

/// The thread's work: whatever has come by now, in one go, until nobody can offer any more.
fn write_down(mut scribe: Scribe, mut facts: mpsc::Receiver<Fact>, shared: &Shared) {
    let _ended = Ended(shared);
    let mut together = Vec::new();
    while facts.blocking_recv_many(&mut together, TOGETHER) > 0 {
        let lost = shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::error!(lost, "the audit log keeps up again; the sequence has a hole of the facts that were lost");
            scribe.skip(lost);
        }
        {
            let mut state = shared.state();
            state.taken += together.len() as u64;
            state.writing_since = Some(Instant::now());
        }
        let events = scribe.write(&together);
        {
            let mut state = shared.state();
            state.writing_since = None;
            state.problem = scribe.problem().map(str::to_owned);
            state.unwritten = scribe.unwritten();
        }
        for (event, fact) in events.into_iter().zip(together.drain(..)) {
            shared.push(event, fact.audited);
        }
    }
    // Before the end is announced, so that the next gate finds the directory free.
    drop(scribe);
}

/// Says that the thread has ended, also when it panicked: a flush must not wait for it then.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state().writer_ended = true;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
