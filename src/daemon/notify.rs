//! What systemd is told (sd_notify(3)): that the gate is up, how it is, and that it makes progress.
//!
//! systemd is told by a thread. Its socket takes a few messages and then makes whoever writes wait, and a gate must not stop
//! guarding because nobody reads what it says of itself. Without `NOTIFY_SOCKET` there is no thread, and nothing is told.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

use super::PULSE;
use crate::{
    model::{Admission, Mono},
    report::http::Snapshot,
};

/// Messages that wait for the thread. Once the gate is up, one each pulse is the most; what does not fit is told by a later one, or is too late.
const QUEUE: usize = 8;

/// Where systemd listens, if it does, and what it knows.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    told: Option<SyncSender<Vec<Word>>>,
    /// WatchdogSec of the unit; `None` without one.
    watchdog: Option<Duration>,
    fed: Option<Instant>,
    is_ready: bool,
    is_reloading: bool,
    is_stopping: bool,
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Ready,
    Reloading,
    Stopping,
    Watchdog,
    Status(String),
}

impl Notifier {
    /// For this process's surroundings.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start() -> io::Result<Self> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self::default());
        }
        let (told, words) = sync_channel(QUEUE);
        std::thread::Builder::new().name("systemd".into()).spawn(move || tell(&words))?;
        let watchdog = sd_notify::watchdog_enabled();
        if watchdog.is_some_and(|watchdog| watchdog < PULSE * 2) {
            tracing::warn!("WatchdogSec is below {} s: the gate cannot keep up with it", (PULSE * 2).as_secs());
        }
        Ok(Self { told: Some(told), watchdog, ..Self::default() })
    }

    /// Whether nobody waits for the gate to be up.
    pub(super) fn is_up(&self) -> bool {
        self.told.is_none() || self.is_ready
    }

    /// To be called with each pulse, and with everything new until the gate is up. The gate is up from the moment on at which `/healthz` would say so, and is fed for as long
    /// as it does; the audit log apart, since a new process would find the disk as full as it is.
    pub(super) fn pulse(&mut self, snapshot: &Snapshot, now: Mono) {
        if self.told.is_none() || self.is_stopping {
            return;
        }
        let (well, status) = (snapshot.stuck(now).is_empty(), status(snapshot, now));
        let (becomes_ready, feeds) = (well && !self.is_ready, well && self.is_hungry());
        let mut words = Vec::new();
        if becomes_ready {
            words.push(Word::Ready);
        }
        if feeds {
            words.push(Word::Watchdog);
        }
        if status != self.status {
            words.push(Word::Status(status.clone()));
        }
        if words.is_empty() || !self.say(words) {
            return;
        }
        self.is_ready |= becomes_ready;
        self.status = status;
        if feeds {
            self.fed = Some(Instant::now());
        }
    }

    /// Settings are taken on. A gate that is not up yet is not reloaded, it starts.
    pub(super) fn reloading(&mut self) {
        if self.is_ready && !self.is_reloading {
            self.is_reloading = self.say(vec![Word::Reloading]);
        }
    }

    /// The settings hold, those from before or others.
    pub(super) fn reloaded(&mut self) {
        if self.is_reloading {
            self.is_reloading = !self.say(vec![Word::Ready]);
        }
    }

    /// The gate is about to end, and not to be made anew. Once is enough.
    pub(super) fn stopping(&mut self) {
        if !self.is_stopping {
            self.is_stopping = true;
            self.say(vec![Word::Stopping]);
        }
    }

    /// Whether the next pulse would be too late for half of the watchdog's time.
    fn is_hungry(&self) -> bool {
        // Two, because a pulse may itself be a little late.
        let is_due = |watchdog| self.fed.is_none_or(|fed| fed.elapsed() + PULSE * 2 > watchdog / 2);
        self.watchdog.is_some_and(is_due)
    }

    /// Whether the thread will tell it.
    fn say(&self, words: Vec<Word>) -> bool {
        self.told.as_ref().is_some_and(|told| told.try_send(words).is_ok())
    }
}

/// One line for `systemctl status`. No times in it: it is told when it changes.
fn status(snapshot: &Snapshot, now: Mono) -> String {
    let is_admitted = |admission| admission == Some(Admission::Admitted);
    let admitted = snapshot.workers.iter().filter(|worker| is_admitted(worker.record.admission)).count();
    let mut status = format!("{admitted} of {} workers admitted", snapshot.workers.len());
    if snapshot.link.is_stuck(now) {
        status += "; the broker does not answer";
    }
    if snapshot.checks.is_stuck(now) {
        status += "; no check has run lately";
    }
    if snapshot.audit.is_err() {
        status += "; the audit log cannot be written";
    }
    status
}

/// The thread's work.
fn tell(words: &Receiver<Vec<Word>>) {
    let mut has_failed = false;
    for words in words {
        let mut states = Vec::new();
        for word in &words {
            match word {
                Word::Ready => states.push(NotifyState::Ready),
                Word::Reloading => {
                    states.push(NotifyState::Reloading);
                    // For Type=notify-reload, which goes by it.
                    states.extend(NotifyState::monotonic_usec_now());
                }
                Word::Stopping => states.push(NotifyState::Stopping),
                Word::Watchdog => states.push(NotifyState::Watchdog),
                Word::Status(text) => states.push(NotifyState::Status(text)),
            }
        }
        if let Err(error) = sd_notify::notify(&states)
            && !std::mem::replace(&mut has_failed, true)
        {
            tracing::warn!("failed to tell systemd how the gate is: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
