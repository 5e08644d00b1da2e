//! Celery's remote control on the wire (FACTS.md, "Celery's wire"), whichever broker carries it. No edge depends on an
//! answer: users turn remote control off, and an idle worker may have lost its mailbox without noticing (celery#9237).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    failpoint::Point,
    model::{ExposedTask, Since, WorkerName},
};

/// The fanout exchange of all mailboxes.
pub(crate) const PIDBOX: &str = "celery.pidbox";
/// The exchange for answers, of which every Celery application makes use.
pub(crate) const REPLIES: &str = "reply.celery.pidbox";
/// The exchange for events: a topic on RabbitMQ, a fanout on Redis (celery/events/event.py, `get_exchange`).
pub(crate) const EVENTS: &str = "celeryev";
/// For a worker to answer. A round trip takes 20 to 30 ms (FACTS.md); a worker whose main process is busy takes longer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_millis(800);
/// With this header kombu's answers say what they answer.
pub(crate) const TICKET: &str = "ticket";

/// A command without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    /// Stop consuming the lane.
    CancelConsumer,
    /// Consume it again.
    AddConsumer,
    /// Warm shutdown: running tasks finish, prefetched ones go back.
    Shutdown,
}

impl Command {
    /// Its method and arguments.
    pub(super) fn call(self, lane: &str) -> (&'static str, Value) {
        match self {
            Self::CancelConsumer => ("cancel_consumer", json!({ "queue": lane })),
            Self::AddConsumer => ("add_consumer", json!({ "queue": lane })),
            Self::Shutdown => ("shutdown", json!({})),
        }
    }

    /// The point at which it has been sent.
    pub(super) const fn sent(self) -> Point {
        match self {
            Self::CancelConsumer => Point::CancelSent,
            Self::AddConsumer => Point::WakeSent,
            Self::Shutdown => Point::RecycleSent,
        }
    }
}

/// A node's name as Celery writes it in full: what has no @ is the host of a node called celery (celery/utils/nodenames.py).
pub(crate) fn node(worker: &WorkerName) -> String {
    let worker = worker.as_str();
    if worker.contains('@') { worker.to_owned() } else { format!("celery@{worker}") }
}

/// The queue that a worker declares for its remote control (kombu/pidbox.py).
pub(super) fn mailbox(worker: &WorkerName) -> String {
    format!("{}.{PIDBOX}", node(worker))
}

/// A new question's ticket.
pub(crate) fn ticket() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// When a question is of no use any more, in seconds since the epoch.
pub(crate) fn expires() -> f64 {
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ANSWER_LIMIT).as_secs_f64()
}

/// One question, or command, as kombu's pidbox reads it (kombu/pidbox.py), to one node or to all. The answer goes by the
/// exchange and key `reply_to`.
pub(crate) fn question(
    node: Option<&str>,
    method: &str,
    arguments: &Value,
    ticket: &str,
    reply_to: Option<(&str, &str)>,
) -> String {
    json!({
        "method": method,
        "arguments": arguments,
        "destination": node.map(|node| [node]),
        "pattern": null,
        "matcher": null,
        TICKET: ticket,
        "reply_to": reply_to.map(|(exchange, key)| json!({ "exchange": exchange, "routing_key": key })),
    })
    .to_string()
}

/// What a worker has, from its answers to `reserved` and `active`. `time_start` is in seconds since the epoch, and null for
/// what was not started (celery/worker/request.py, `info`). Since when a task is in doubt, who knows the evidence says.
pub(super) fn tasks(reserved: &Value, active: &Value) -> Vec<ExposedTask> {
    let mut tasks = BTreeMap::new();
    for (answer, active) in [(reserved, false), (active, true)] {
        let found =
            answer.as_object().into_iter().flat_map(|nodes| nodes.values()).filter_map(Value::as_array).flatten();
        for task in found {
            let text = |key: &str| task[key].as_str().unwrap_or_default().to_owned();
            let started =
                task["time_start"].as_f64().and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok());
            let started_at = started.and_then(|since| Timestamp::from_duration(since).ok()).filter(|_| active);
            let (id, name, since) = (text("id"), text("name"), Since::Drift);
            tasks.insert(id.clone(), ExposedTask { id, name, active, started_at, ended_at: None, since });
        }
    }
    tasks.into_values().collect()
}

/// Which queues workers consume, by node, from an answer to `active_queues`.
pub(crate) fn queues(answer: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let name = |queue: &Value| queue["name"].as_str().map(str::to_owned);
    let of = |(node, queues): (&String, &Value)| {
        let queues = queues.as_array().into_iter().flatten().filter_map(name).collect();
        (node.clone(), queues)
    };
    answer.as_object().into_iter().flatten().map(of).collect()
}

/// The node that an event is a sign of life of, or, with `false`, of its end. `None` for all other events: those by which a gate
/// tells of a worker (`events.mirror_celeryev`) come also when the worker is dead.
pub(crate) fn beat(event: &Value) -> Option<(&str, bool)> {
    let is_alive = match event["type"].as_str()? {
        "worker-online" | "worker-heartbeat" => true,
        "worker-offline" => false,
        _ => return None,
    };
    Some((event["hostname"].as_str()?, is_alive))
}

/// The process that a heartbeat of this node names.
pub(super) fn process(event: &Value, node: &str) -> Option<u32> {
    let pid = event["pid"].as_u64().filter(|_| beat(event) == Some((node, true)))?;
    u32::try_from(pid).ok()
}

/// What is said of a worker that has not answered.
pub(super) fn silent() -> String {
    format!("the worker did not answer within {} ms; it may be busy, or just gone", ANSWER_LIMIT.as_millis())
}

/// Asked so, a worker sends task events from now on, and says whether it has done so before (celery/worker/control.py,
/// `enable_events`).
pub(super) const ENABLE_EVENTS: &str = "enable_events";

/// The answer to that.
pub(super) fn were_events_on(answer: &Value) -> Option<bool> {
    let said = answer.as_object()?.values().next()?["ok"].as_str()?;
    Some(said.contains("already"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_worker_says_of_itself_is_a_sign_of_its_life() {
        let event = |kind: &str| json!({ "type": kind, "hostname": "a@h", "pid": 7 });
        for (kind, expected) in [
            ("worker-online", Some(("a@h", true))),
            ("worker-heartbeat", Some(("a@h", true))),
            ("worker-offline", Some(("a@h", false))),
            ("worker-admitted", None),
            ("worker-quarantined", None),
            ("task-started", None),
        ] {
            let event = event(kind);
            assert_eq!(beat(&event), expected, "{kind}");
            let process = process(&event, "a@h");
            assert_eq!(process, expected.filter(|(_, is_alive)| *is_alive).map(|_| 7), "{kind}");
        }
        assert_eq!(process(&event("worker-heartbeat"), "b@h"), None);
    }
}
