//! What the gate counts, for Prometheus: `/metrics` (DESIGN.md section 8).
//!
//! What *happened* is counted when it happens: the daemon's loop hands over each observation and each fact. What *is* comes from
//! the newest snapshot at the moment of the answer. Nobody is asked anything for an answer: how many messages wait is counted
//! after one, for the next one, so that a broker that hangs delays no scrape, and a gate that nobody scrapes asks for nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::sync::Notify;

mod label;
mod state;
mod text;

use label::{Labels, Value};
use state::State;

use super::{event::type_of, http::Snapshot, outbox::Counts};
use crate::model::{CheckStatus, Fact, FactKind, Finding, Mono, Observation, WorkerName};

/// A version command takes some ten milliseconds, and one that asks a server some seconds.
const CHECK_SECONDS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// A shut takes some milliseconds; that of a worker with a thousand neighbours half a second.
const SHUT_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// A count this old says nothing any more. Scrapes are seldom further apart than two minutes.
const COUNT_HOLDS: Duration = Duration::from_secs(300);

/// Everything that is counted. All of it is cheap to count, and no lock is held for longer than that takes.
#[derive(Debug)]
pub struct Metrics {
    gate: Value,
    registry: Registry,
    check_seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
    check_results: Family<Labels<2>, Counter>,
    shut_seconds: Histogram,
    moved: Family<Labels<2>, Counter>,
    bypasses: Family<Labels<1>, Counter>,
    facts: Family<Labels<1>, Counter>,
    facts_waiting: Gauge,
    facts_lost: Counter,
    facts_unpublished: Counter,
    broker_up: Gauge,
    broker_blocked: Gauge,
    reconnects: Counter,
    max_age: Gauge<f64, AtomicU64>,
    waiting: Mutex<Option<Waiting>>,
    scraped: Notify,
}

/// What was last counted.
#[derive(Debug)]
struct Waiting {
    at: Mono,
    messages: BTreeMap<WorkerName, u64>,
}

/// An answer to a scrape.
#[derive(Debug)]
pub struct Answer {
    /// For the header of this name.
    pub content_type: &'static str,
    /// All metrics.
    pub text: String,
}

impl Metrics {
    /// Nothing has happened yet, in this gate.
    pub fn new(gate: &str, max_age: Duration) -> Self {
        let mut metrics = Self {
            gate: gate.into(),
            registry: Registry::with_prefix("worker_gate"),
            check_seconds: Family::new_with_constructor(|| Histogram::new(CHECK_SECONDS)),
            check_results: Family::default(),
            shut_seconds: Histogram::new(SHUT_SECONDS),
            moved: Family::default(),
            bypasses: Family::default(),
            facts: Family::default(),
            facts_waiting: Gauge::default(),
            facts_lost: Counter::default(),
            facts_unpublished: Counter::default(),
            broker_up: Gauge::default(),
            broker_blocked: Gauge::default(),
            reconnects: Counter::default(),
            max_age: Gauge::default(),
            waiting: Mutex::default(),
            scraped: Notify::new(),
        };
        metrics.set_max_age(max_age);
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let to = &mut self.registry;
        let seconds = || Unit::Seconds;
        let help = "How long each check took, from its first command's start to its last command's end";
        to.register_with_unit("check_duration", help, seconds(), self.check_seconds.clone());
        let help = "Results of each check";
        to.register("check_results", help, self.check_results.clone());
        let help = "From the moment that the cause of a quarantine was seen to the broker's word that the edge is shut";
        to.register_with_unit("shut_latency", help, seconds(), self.shut_seconds.clone());
        let help = "Messages that the gate has moved: taken back when an edge was shut, given back when one was opened, as \
                    the facts about that have it";
        to.register("messages_moved", help, self.moved.clone());
        let help = "How often it was told that messages had come to the worker's lane past its shut edge";
        to.register("bypasses", help, self.bypasses.clone());
        to.register("facts", "Facts about workers, by their type", self.facts.clone());
        let help = "Facts that wait to be written to the audit log or to be confirmed by the broker";
        to.register("facts_waiting", help, self.facts_waiting.clone());
        let help =
            "Facts that are nowhere, because the audit log's disk did not keep up; the sequence has a hole for each";
        to.register("facts_lost", help, self.facts_lost.clone());
        let help = "Facts that the audit log has and the broker never got, because it was away for too long";
        to.register("facts_unpublished", help, self.facts_unpublished.clone());
        to.register("broker_up", "Whether the gate is connected to its broker", self.broker_up.clone());
        let help =
            "Whether the broker takes no messages, as in a memory or disk alarm; it says so to whoever publishes";
        to.register("broker_blocked", help, self.broker_blocked.clone());
        let help = "How often the connection to the broker was lost and made anew";
        to.register("broker_reconnects", help, self.reconnects.clone());
        let help = "evidence.max_age of the settings: older evidence is stale, and the edge is shut";
        to.register_with_unit("evidence_max_age", help, seconds(), self.max_age.clone());
    }

    /// Counts what a probe has found.
    pub fn observed(&self, observation: &Observation) {
        let Finding::Check { name, result } = &observation.finding else { return };
        let check = Value::from(name.as_str());
        let labels = [("check", check.clone()), ("status", Value::word(result.status))];
        self.check_results.get_or_create(&labels).inc();
        // Without an outcome nothing was run.
        if result.outcome.is_some() {
            self.check_seconds.get_or_create(&[("check", check)]).observe(result.duration.as_secs_f64());
        }
    }

    /// Counts what is told.
    pub fn told(&self, fact: &Fact) {
        let Some(record) = &fact.record else { return };
        let worker = Value::from(&record.worker_name);
        self.facts.get_or_create(&[("type", type_of(fact.kind).as_str().into())]).inc();
        let direction = if fact.kind == FactKind::WorkerAdmitted { "given_back" } else { "taken_back" };
        if let Some(account) = record.account {
            self.moved
                .get_or_create(&[("worker", worker.clone()), ("direction", direction.into())])
                .inc_by(account.moved);
        }
        if let (FactKind::WorkerQuarantined, Some(latency)) = (fact.kind, record.latency_ms) {
            self.shut_seconds.observe(latency / 1e3);
        }
        if fact.kind == FactKind::WorkerBypass {
            self.bypasses.get_or_create(&[("worker", worker)]).inc();
        }
    }

    /// Whether the gate is connected, whether the broker takes messages, and how many facts are where.
    pub fn see(&self, up: bool, blocked: bool, facts: Counts) {
        self.broker_up.set(i64::from(up));
        self.broker_blocked.set(i64::from(blocked));
        self.facts_waiting.set(i64::try_from(facts.waiting).unwrap_or(i64::MAX));
        // They are counted elsewhere, and only ever grow.
        self.facts_lost.inner().store(facts.lost, Ordering::Relaxed);
        self.facts_unpublished.inner().store(facts.unpublished, Ordering::Relaxed);
    }

    /// The connection was lost, and is there again.
    pub fn reconnected(&self) {
        self.reconnects.inc();
    }

    /// `evidence.max_age`, once more after other settings have been loaded.
    pub fn set_max_age(&self, max_age: Duration) {
        self.max_age.set(max_age.as_secs_f64());
    }

    /// So many messages were found to wait for each worker that is named.
    pub fn counted(&self, at: Mono, messages: BTreeMap<WorkerName, u64>) {
        *self.waiting() = Some(Waiting { at, messages });
    }

    /// Resolves when there was an answer since the last time. Cancel-safe.
    pub async fn scraped(&self) {
        self.scraped.notified().await;
    }

    /// Everything, as whoever sends this `Accept` header can read it.
    pub fn answer(&self, snapshot: &Snapshot, now: Mono, accept: Option<&str>) -> Answer {
        self.scraped.notify_one();
        let mut text = String::new();
        // Neither of them fails unless the writer does, and a String takes everything.
        let _ = encode_registry(&mut text, &self.with_zeros(snapshot).registry);
        let _ = encode_registry(&mut text, &self.state(snapshot, now));
        if text::wants_open(accept) {
            let _ = encode_eof(&mut text);
            return Answer { content_type: text::OPEN, text };
        }
        Answer { content_type: text::CLASSIC, text: text::classic(&text) }
    }

    /// With a zero for what has not happened yet: of a counter that appears with a one, no reader can tell that it has grown.
    fn with_zeros(&self, snapshot: &Snapshot) -> &Self {
        for view in &snapshot.workers {
            let worker = Value::from(&view.record.worker_name);
            drop(self.bypasses.get_or_create(&[("worker", worker.clone())]));
            for check in view.record.checks.keys() {
                for status in [CheckStatus::Passed, CheckStatus::Failed] {
                    let labels = [("check", check.as_str().into()), ("status", Value::word(status))];
                    drop(self.check_results.get_or_create(&labels));
                }
            }
            for direction in ["taken_back", "given_back"] {
                drop(self.moved.get_or_create(&[("worker", worker.clone()), ("direction", direction.into())]));
            }
        }
        self
    }

    fn state(&self, snapshot: &Snapshot, now: Mono) -> Registry {
        let max_age = Duration::try_from_secs_f64(self.max_age.get()).unwrap_or_default();
        let mut registry = Registry::with_prefix("worker_gate");
        let waiting = self.waiting();
        let known = waiting.as_ref().filter(|waiting| now.since(waiting.at) <= COUNT_HOLDS);
        let messages = known.map(|known| &known.messages);
        registry.register_collector(Box::new(State::new(&self.gate, snapshot, max_age, messages, now)));
        registry
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        // It is replaced as a whole, and never left half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
