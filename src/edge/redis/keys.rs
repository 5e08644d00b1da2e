//! The names of what a feed edge keeps in Redis.

use crate::{
    edge::held,
    settings::{Broker, Feed, FeedIntake, Worker},
};

/// Between the parts of kombu's names (kombu/transport/redis.py, `Channel.sep`).
pub(crate) const SEPARATOR: &str = "\u{6}\u{16}";

/// Every key of one worker's feed edge, with the prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    /// Who has the worker; expires with its gate.
    pub(super) owner: String,
    /// Counts the ownerships.
    pub(super) fence: String,
    /// There while the edge is open; expires with its gate.
    pub(super) edge: String,
    /// The lists of the queue from which the gate moves, most urgent first.
    pub(super) intake: Vec<String>,
    /// The lists of the queue that the worker consumes.
    pub(super) lane: Vec<String>,
}

impl Keys {
    pub(super) fn new(broker: &Broker, worker: &Worker, feed: &Feed) -> Self {
        let prefix = &broker.global_keyprefix;
        Self {
            owner: owner_key(prefix, worker.name.as_str()),
            fence: key(prefix, "fence", worker.name.as_str()),
            edge: key(prefix, "edge", worker.name.as_str()),
            intake: lists(broker, &source(worker, feed)),
            lane: lists(broker, &worker.lane),
        }
    }

    /// Owner, edge, intake and lane, as the scripts take them.
    pub(super) fn for_scripts(&self) -> impl Iterator<Item = &String> {
        [&self.owner, &self.edge].into_iter().chain(&self.intake).chain(&self.lane)
    }
}

fn key(prefix: &str, purpose: &str, worker: &str) -> String {
    format!("{prefix}worker-gate.{purpose}.{worker}")
}

/// The key that says who owns a worker.
pub(crate) fn owner_key(prefix: &str, worker: &str) -> String {
    key(prefix, "owner", worker)
}

/// The queue from which the gate moves: the shared one, or one of its own to which it binds the exchange.
pub(crate) fn source(worker: &Worker, feed: &Feed) -> String {
    match &feed.intake {
        FeedIntake::Queue(queue) => queue.clone(),
        FeedIntake::Exchange { .. } => held(&worker.lane),
    }
}

/// A queue is one list for each priority step, and the first has the queue's own name (kombu/transport/redis.py, `_q_for_pri`).
pub(crate) fn lists(broker: &Broker, queue: &str) -> Vec<String> {
    let prefix = &broker.global_keyprefix;
    let list = |step: &u8| match step {
        0 => format!("{prefix}{queue}"),
        step => format!("{prefix}{queue}{SEPARATOR}{step}"),
    };
    broker.priority_steps.iter().map(list).collect()
}
