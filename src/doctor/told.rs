//! What Celery's workers say of themselves over remote control (celery/worker/control.py), whichever broker carries it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{edge::celery, settings::Settings};

/// What one worker is known to be like. What it was not heard to say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Which queues it consumes; from `active_queues`.
    pub(super) queues: Option<BTreeSet<String>>,
    /// How many messages it takes beforehand, 0 for no limit, and how many it can work on at once; from `stats`.
    pub(super) prefetch: Option<(u64, u64)>,
    /// Its tasks that are acknowledged before they have run; from `registered`.
    pub(super) early: Option<BTreeSet<String>>,
    /// Whether it was heard to send heartbeats.
    pub(super) beats: bool,
}

impl Told {
    /// Whether it answers over remote control.
    pub(super) fn answers(&self) -> bool {
        self.queues.is_some()
    }

    /// Whether it consumes this queue, as it says itself.
    pub(super) fn consumes(&self, queue: &str) -> bool {
        self.queues.as_ref().is_some_and(|queues| queues.contains(queue))
    }
}

/// Every worker that was heard, by its node name.
pub(super) type Workers = BTreeMap<String, Told>;

/// What all workers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
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
                Self::Queues => told.queues = said.as_array().map(|queues| names(queues)),
                Self::Stats => told.prefetch = prefetch(said),
                Self::Tasks => told.early = said.as_array().map(|tasks| early(tasks)),
            }
        }
    }
}

fn names(queues: &[Value]) -> BTreeSet<String> {
    queues.iter().filter_map(|queue| queue["name"].as_str()).map(str::to_owned).collect()
}

fn prefetch(stats: &Value) -> Option<(u64, u64)> {
    let pool = &stats["pool"];
    // Not every pool has processes, and not every one says how many it may have at the most.
    let processes = pool["max-concurrency"].as_u64().or_else(|| Some(pool["processes"].as_array()?.len() as u64));
    Some((stats["prefetch_count"].as_u64()?, processes.unwrap_or(1).max(1)))
}

/// Tasks are listed as `name [acks_late=False]`.
fn early(tasks: &[Value]) -> BTreeSet<String> {
    let name = |task: &Value| Some(task.as_str()?.strip_suffix(" [acks_late=False]")?.to_owned());
    tasks.iter().filter_map(name).collect()
}

/// Takes in an event of Celery's, if it is a heartbeat.
pub(super) fn heard(event: &Value, workers: &mut Workers) {
    let is_alive = matches!(event["type"].as_str(), Some("worker-heartbeat" | "worker-online"));
    if let (true, Some(node)) = (is_alive, event["hostname"].as_str()) {
        workers.entry(node.to_owned()).or_default().beats = true;
    }
}

/// For answers, which take 30 ms; a worker that is not known yet may take longer.
const ANSWERS: Duration = Duration::from_secs(1);
/// For the answer of a worker that is expected to give one, on a machine that is busy.
const AN_ANSWER: Duration = Duration::from_millis(2_500);

/// Until when to wait for answers of these nodes and of all others, after so much has been answered.
pub(super) fn ask_until(nodes: &BTreeSet<String>, workers: &Workers, asked: Instant) -> Instant {
    let is_complete = |told: &Told| told.answers() && told.prefetch.is_some() && told.early.is_some();
    let all = nodes.iter().all(|node| workers.get(node).is_some_and(is_complete));
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
        let stats = json!({ "a@h": { "prefetch_count": 8, "pool": { "max-concurrency": 2, "processes": [1, 2] } } });
        Question::Stats.answered(&stats, &mut workers);
        let tasks = json!({ "a@h": ["app.a [acks_late=False]", "app.b [acks_late=True]", "app.c"] });
        Question::Tasks.answered(&tasks, &mut workers);
        let told = &workers["a@h"];
        assert!(told.answers() && told.consumes("lane") && told.consumes("x") && !told.consumes("y"));
        assert_eq!(told.prefetch, Some((8, 2)));
        assert_eq!(told.early, Some(BTreeSet::from(["app.a".to_owned()])));
        assert!(!told.beats);
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
