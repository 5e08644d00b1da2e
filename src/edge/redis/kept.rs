//! Keeps workers' task events for a while. Redis has no queue that could do it: they go by PUB/SUB, those of all workers of the
//! database on the same channel, and whoever does not listen has missed them. So the gate listens, on a connection of its own, since
//! Redis ends that of a subscriber that falls behind; what other workers send it only passes over.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Deserialize;
use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    edge::{
        celery::{self, EVENTS},
        task_events::{BYTES, KEPT, Kept, MESSAGES},
    },
    model::WorkerName,
    redis::{self, envelope},
    settings::Broker,
};

/// After a connection that was lost, before the next one.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the events of whoever is to be kept, as long as it is there.
#[derive(Debug)]
pub(super) struct Keeper {
    rings: Arc<Rings>,
    /// Why nothing is kept at the moment.
    problem: watch::Receiver<Option<String>>,
    _task: AbortOnDropHandle<()>,
}

/// What is kept.
#[derive(Debug, Default)]
struct Rings(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// By the worker's node name.
    rings: HashMap<String, Ring>,
    /// When a connection took the place of one that was lost, on both clocks.
    deaf_until: Option<(Instant, Timestamp)>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Envelopes as kombu wrote them; they are opened when somebody asks.
    messages: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

/// As much of an envelope as says who has sent it.
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(borrow)]
    headers: Headers<'a>,
}

#[derive(Deserialize)]
struct Headers<'a> {
    hostname: std::borrow::Cow<'a, str>,
}

impl Keeper {
    /// Listens to task events, over and over; `db` is the database.
    pub(super) fn begin(broker: Broker, db: u32, gate: &str) -> Self {
        let rings = Arc::<Rings>::default();
        let (tell, problem) = watch::channel(Some("it has only just begun".to_owned()));
        let task = tokio::spawn(listen(broker, db, format!("worker-gate {gate} tasks"), Arc::clone(&rings), tell));
        Self { rings, problem, _task: AbortOnDropHandle::new(task) }
    }

    /// Keeps this worker's from now on.
    pub(super) fn add(&self, worker: &WorkerName) {
        self.rings.lock().rings.entry(celery::node(worker)).or_default();
    }

    /// No longer.
    pub(super) fn remove(&self, worker: &WorkerName) {
        self.rings.lock().rings.remove(&celery::node(worker));
    }

    /// What was kept of this worker's, or why nothing is.
    pub(super) fn kept(&self, worker: &WorkerName) -> Result<Kept, String> {
        if let Some(problem) = self.problem.borrow().clone() {
            return Err(problem);
        }
        let heard = self.rings.lock();
        let messages = heard.rings.get(&celery::node(worker)).into_iter().flat_map(|ring| &ring.messages);
        let opened = messages.filter_map(|(_, message)| Some(envelope::unwrap(message)?.body));
        let deaf_until = heard.deaf_until.filter(|(at, _)| at.elapsed() < KEPT).map(|(_, wall)| wall);
        Ok(Kept { messages: opened.collect(), deaf_until })
    }
}

impl Rings {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the message, if its sender's are kept.
    fn take(&self, message: &[u8], now: Instant) {
        let Ok(sent) = serde_json::from_slice::<Sent<'_>>(message) else { return };
        if let Some(ring) = self.lock().rings.get_mut(sent.headers.hostname.as_ref()) {
            ring.push(message.to_vec(), now);
        }
    }
}

impl Ring {
    fn push(&mut self, message: Vec<u8>, now: Instant) {
        self.bytes += message.len();
        self.messages.push_back((now, message));
        let is_too_old = |ring: &Self| ring.messages.front().is_some_and(|(at, _)| now.duration_since(*at) > KEPT);
        while self.messages.len() > MESSAGES || self.bytes > BYTES || is_too_old(self) {
            let Some((_, gone)) = self.messages.pop_front() else { return };
            self.bytes -= gone.len();
        }
    }
}

async fn listen(broker: Broker, db: u32, name: String, rings: Arc<Rings>, tell: watch::Sender<Option<String>>) {
    let channel = format!("{}*", envelope::fanout_channel(&broker.global_keyprefix, db, EVENTS, "task."));
    let mut was_lost = false;
    loop {
        let problem = match redis::connect(&broker, &name).await {
            Ok((link, mut pushes)) => match link.connection().psubscribe(&channel).await {
                Ok(()) => {
                    if was_lost {
                        rings.lock().deaf_until = Some((Instant::now(), Timestamp::now()));
                    }
                    was_lost = true;
                    tell.send_replace(None);
                    while let Some(push) = pushes.recv().await {
                        if let Some(message) = envelope::by_pattern(&push) {
                            rings.take(message, Instant::now());
                        }
                    }
                    "the connection for them was lost".to_owned()
                }
                Err(error) => format!("failed to listen to task events: {}", redis::text(&error)),
            },
            Err(error) => format!("failed to listen to task events: {error}"),
        };
        tracing::info!("workers' task events are not kept for now: {problem}");
        tell.send_replace(Some(problem));
        sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn envelope(hostname: &str, body: &str) -> Vec<u8> {
        let headers: Map<_, _> = [("hostname".to_owned(), json!(hostname))].into_iter().collect();
        envelope::wrap(body, &headers, EVENTS, "task.multi").into_bytes()
    }

    fn rings() -> Rings {
        let rings = Rings::default();
        rings.lock().rings.entry("w@h".to_owned()).or_default();
        rings
    }

    #[test]
    fn only_what_is_to_be_kept_is_kept_and_not_for_longer_than_it_may() {
        let (rings, begin) = (rings(), Instant::now());
        for body in ["[1]", "[2]"] {
            rings.take(&envelope("w@h", body), begin);
            rings.take(&envelope("v@h", body), begin);
        }
        rings.take(b"no envelope", begin);
        assert_eq!(rings.lock().rings["w@h"].messages.len(), 2);
        assert_eq!(rings.lock().rings.len(), 1);
        rings.take(&envelope("w@h", "[3]"), begin + KEPT + Duration::from_secs(1));
        assert_eq!(rings.lock().rings["w@h"].messages.len(), 1);
    }

    #[test]
    fn of_too_many_and_of_too_long_ones_the_oldest_go() {
        let (rings, now) = (rings(), Instant::now());
        for _ in 0..=MESSAGES {
            rings.take(&envelope("w@h", "[]"), now);
        }
        assert_eq!(rings.lock().rings["w@h"].messages.len(), MESSAGES);
        let long = "x".repeat(BYTES / 2);
        for _ in 0..3 {
            rings.take(&envelope("w@h", &long), now);
        }
        let kept = &rings.lock().rings["w@h"];
        assert!(kept.messages.len() == 1 && kept.bytes <= BYTES, "{}", kept.messages.len());
    }
}
