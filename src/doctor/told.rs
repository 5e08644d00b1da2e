//! What Celery's workers say of themselves over remote control (celery/worker/control.py), whichever broker carries it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::{edge::celery, settings::Settings};

/// What one worker is known to be like. What it was not heard to say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Which queues it consumes, in its own order; from `active_queues`.
    pub(crate) queues: Option<Vec<Queue>>,
    /// How many messages it takes beforehand, 0 for no limit, and how many it can work on at once; from `stats`.
    pub(crate) prefetch: Option<(u64, u64)>,
    /// Its process, and what it has for a pool, such as `prefork`; from `stats`.
    pub(crate) process: Option<(u32, String)>,
    /// Its tasks that are acknowledged before they have run; from `registered`.
    pub(crate) early: Option<BTreeSet<String>>,
    /// Whether it was heard to send heartbeats.
    pub(crate) beats: bool,
}

impl Told {
    /// Whether it answers over remote control.
    pub(crate) fn answers(&self) -> bool {
        self.queues.is_some()
    }

    /// Whether it consumes this queue, as it says itself.
    pub(crate) fn consumes(&self, queue: &str) -> bool {
        self.queues.iter().flatten().any(|consumed| consumed.name == queue)
    }

    /// Whether it has answered everything.
    fn is_complete(&self) -> bool {
        self.answers() && self.prefetch.is_some() && self.early.is_some()
    }
}

/// A queue, as the worker that consumes it declares it (kombu/entity.py, `as_dict`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    /// Its name.
    pub(crate) name: String,
    /// The exchange that the worker binds it to; "" is the anonymous one.
    pub(crate) exchange: String,
    /// That exchange's type.
    pub(crate) kind: String,
    /// With this key.
    pub(crate) key: String,
    /// It goes with its worker, as a broadcast's does.
    pub(crate) is_fleeting: bool,
    /// As RabbitMQ takes them.
    pub(crate) arguments: Map<String, Value>,
}

impl Queue {
    fn read(queue: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let is = |name: &str| queue[name].as_bool() == Some(true);
        Some(Self {
            name: queue["name"].as_str()?.to_owned(),
            exchange: text(&queue["exchange"]["name"]),
            kind: text(&queue["exchange"]["type"]),
            key: text(&queue["routing_key"]),
            is_fleeting: is("auto_delete") || is("exclusive"),
            arguments: arguments(queue),
        })
    }
}

/// What a queue is declared with: its arguments, and those that kombu has names of its own for, in seconds where RabbitMQ counts
/// milliseconds (kombu/entity.py, `RABBITMQ_QUEUE_ARGUMENTS`).
fn arguments(queue: &Value) -> Map<String, Value> {
    let mut arguments = queue["queue_arguments"].as_object().cloned().unwrap_or_default();
    for (name, argument, factor) in [
        ("expires", "x-expires", 1000.0),
        ("message_ttl", "x-message-ttl", 1000.0),
        ("max_length", "x-max-length", 1.0),
        ("max_length_bytes", "x-max-length-bytes", 1.0),
        ("max_priority", "x-max-priority", 1.0),
    ] {
        if let Some(value) = queue[name].as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "a count or milliseconds; kombu truncates as well")]
            arguments.insert(argument.to_owned(), json!((value * factor) as i64));
        }
    }
    arguments
}

/// Every worker that was heard, by its node name.
pub(crate) type Workers = BTreeMap<String, Told>;

/// What all workers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Queues,
    Stats,
    Tasks,
}

impl Question {
    pub(super) const ALL: [Self; 3] = [Self::Queues, Self::Stats, Self::Tasks];

    /// Its method and arguments.
    pub(super) fn call(self) -> (&'static str, Value) {
        match self {
            Self::Queues => ("active_queues", json!({})),
            Self::Stats => ("stats", json!({})),
            Self::Tasks => ("registered", json!({ "taskinfoitems": ["acks_late"] })),
        }
    }

    /// Takes an answer in, which is one of a single worker.
    pub(super) fn answered(self, answer: &Value, workers: &mut Workers) {
        for (node, said) in answer.as_object().into_iter().flatten() {
            let told = workers.entry(node.clone()).or_default();
            match self {
                Self::Queues => {
                    told.queues = said.as_array().map(|queues| queues.iter().filter_map(Queue::read).collect());
                }
                Self::Stats => {
                    told.prefetch = prefetch(said);
                    told.process = process(said);
                }
                Self::Tasks => told.early = said.as_array().map(|tasks| early(tasks)),
            }
        }
    }
}

fn prefetch(stats: &Value) -> Option<(u64, u64)> {
    let pool = &stats["pool"];
    // Not every pool has processes, and not every one says how many it may have at the most.
    let processes = pool["max-concurrency"].as_u64().or_else(|| Some(pool["processes"].as_array()?.len() as u64));
    Some((stats["prefetch_count"].as_u64()?, processes.unwrap_or(1).max(1)))
}

/// The pool's class is told as `celery.concurrency.prefork:TaskPool`.
fn process(stats: &Value) -> Option<(u32, String)> {
    let pid = u32::try_from(stats["pid"].as_u64()?).ok()?;
    let class = stats["pool"]["implementation"].as_str().unwrap_or_default();
    let module = class.split(':').next().and_then(|path| path.rsplit('.').next()).unwrap_or_default();
    Some((pid, module.to_owned()))
}

/// Tasks are listed as `name [acks_late=False]`.
fn early(tasks: &[Value]) -> BTreeSet<String> {
    let name = |task: &Value| Some(task.as_str()?.strip_suffix(" [acks_late=False]")?.to_owned());
    tasks.iter().filter_map(name).collect()
}

/// Takes in an event of Celery's, if it is a heartbeat.
pub(super) fn heard(event: &Value, workers: &mut Workers) {
    if let Some((node, true)) = celery::beat(event) {
        workers.entry(node.to_owned()).or_default().beats = true;
    }
}

/// For answers, which take 30 ms; a worker that is not known yet may take longer.
const ANSWERS: Duration = Duration::from_secs(1);
/// For the answer of a worker that is expected to give one, on a machine that is busy.
const AN_ANSWER: Duration = Duration::from_millis(2_500);

/// Until when to wait for answers of these nodes and of all others, after so much has been answered.
pub(super) fn ask_until(nodes: &BTreeSet<String>, workers: &Workers, asked: Instant) -> Instant {
    let all = nodes.iter().all(|node| workers.get(node).is_some_and(Told::is_complete));
    asked + if all { ANSWERS } else { AN_ANSWER }
}

/// The same where nobody knows who will answer: until somebody has, and each of those with everything.
pub(crate) fn anybody_until(workers: &Workers, asked: Instant) -> Instant {
    let all = !workers.is_empty() && workers.values().all(Told::is_complete);
    asked + if all { ANSWERS } else { AN_ANSWER }
}

/// The names of these workers, as Celery has them.
pub(super) fn nodes(settings: &Settings) -> BTreeSet<String> {
    settings.workers.iter().map(|worker| celery::node(&worker.name)).collect()
}

/// For the heartbeat of every worker that answers: one every 2 s, two may be late.
const HEARTBEATS: Duration = Duration::from_secs(6);
/// For the one of a worker that does not answer, and may be away.
const A_HEARTBEAT: Duration = Duration::from_secs(3);

/// Until when to listen for heartbeats of these nodes, after so much has been heard. What has come by then is to be taken in.
pub(super) fn hear_until(nodes: &BTreeSet<String>, workers: &Workers, begun: Instant) -> Instant {
    let told = |node| workers.get(node).map(|told| (told.answers(), told.beats));
    if nodes.iter().any(|node| told(node) == Some((true, false))) {
        begun + HEARTBEATS
    } else if nodes.iter().any(|node| told(node).is_none()) {
        begun + A_HEARTBEAT
    } else {
        Instant::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_answers_is_put_together() {
        let mut workers = Workers::new();
        Question::Queues.answered(&json!({ "a@h": [{ "name": "lane" }, { "name": "x" }] }), &mut workers);
        let pool = json!({ "implementation": "celery.concurrency.prefork:TaskPool", "max-concurrency": 2 });
        let stats = json!({ "a@h": { "prefetch_count": 8, "pid": 7, "pool": pool } });
        Question::Stats.answered(&stats, &mut workers);
        let tasks = json!({ "a@h": ["app.a [acks_late=False]", "app.b [acks_late=True]", "app.c"] });
        Question::Tasks.answered(&tasks, &mut workers);
        let told = &workers["a@h"];
        assert!(told.answers() && told.consumes("lane") && told.consumes("x") && !told.consumes("y"));
        assert_eq!(told.prefetch, Some((8, 2)));
        assert_eq!(told.process, Some((7, "prefork".to_owned())));
        assert_eq!(told.early, Some(BTreeSet::from(["app.a".to_owned()])));
        assert!(!told.beats);
    }

    #[test]
    fn a_queue_is_told_as_rabbitmq_takes_it() {
        let exchange = json!({ "name": "codex", "type": "topic" });
        let queue = json!({
            "name": "q", "exchange": exchange, "routing_key": "a.*", "queue_arguments": { "x-queue-type": "quorum" },
            "message_ttl": 1.5, "max_priority": 9, "auto_delete": false, "exclusive": false, "expires": null,
        });
        let read = Queue::read(&queue).unwrap();
        assert_eq!((read.exchange.as_str(), read.kind.as_str(), read.key.as_str()), ("codex", "topic", "a.*"));
        let expected = json!({ "x-queue-type": "quorum", "x-message-ttl": 1500, "x-max-priority": 9 });
        assert_eq!(Value::Object(read.arguments), expected);
        assert!(!read.is_fleeting && Queue::read(&json!({ "name": "b", "auto_delete": true })).unwrap().is_fleeting);
    }

    #[test]
    fn a_heartbeat_is_a_sign_of_life_and_a_goodbye_is_none() {
        let mut workers = Workers::new();
        heard(&json!({ "type": "worker-offline", "hostname": "b@h" }), &mut workers);
        heard(&json!({ "type": "worker-heartbeat", "hostname": "a@h" }), &mut workers);
        assert_eq!(workers.keys().collect::<Vec<_>>(), ["a@h"]);
        assert!(workers["a@h"].beats && !workers["a@h"].answers());
    }

    #[test]
    fn an_answer_that_is_an_error_says_nothing() {
        let mut workers = Workers::new();
        for question in Question::ALL {
            question.answered(&json!({ "a@h": { "error": "no" } }), &mut workers);
        }
        assert_eq!(workers["a@h"], Told::default());
    }
}
