//! The names of what a route edge declares (DESIGN.md 4.1).

use lapin::types::ShortString;

use crate::{
    edge::held,
    settings::{IntakeType, RouteIntake, Worker},
};

/// Every exchange and queue of one worker's route edge.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Where producers publish.
    pub(crate) intake: ShortString,
    /// Behind the intake: takes what no open edge took.
    pub(crate) intake_held: ShortString,
    /// Behind that: keys that no worker has.
    pub(crate) unrouted: ShortString,
    /// The way itself; exists only while open.
    pub(crate) edge: ShortString,
    /// The lock: exclusive to the gate's control connection.
    pub(crate) owner: ShortString,
    /// The key by which the owner queue is bound to the edge exchange. No message can carry it, so all of them go on to the
    /// alternate exchange, and none to the owner queue.
    pub(crate) never: String,
    /// Behind the edge.
    pub(crate) lane_exchange: ShortString,
    /// The keys by which messages come to this worker; `None` for a hash intake, where any key may.
    pub(crate) keys: Option<(IntakeType, Vec<String>)>,
    /// What the worker consumes.
    pub(crate) lane: ShortString,
    /// This worker's holding queue.
    pub(crate) lane_held: ShortString,
    /// Where what the intake could not deliver waits: the lane's own holding queue, but for a hash intake, whose messages
    /// belong to no worker, one queue that all its gates share.
    pub(crate) holding: ShortString,
    /// For a feed: the queue that its workers share, which is also where messages wait.
    pub(crate) shared: Option<ShortString>,
}

impl Names {
    pub(crate) fn new(worker: &Worker, intake: &RouteIntake, shared: Option<&str>) -> Self {
        let (exchange, lane) = (&intake.exchange, &worker.lane);
        let shared: Option<ShortString> = shared.map(Into::into);
        let lane_held = shared.clone().unwrap_or_else(|| held(lane).into());
        let intake_held: ShortString = held(exchange).into();
        Self {
            intake: exchange.as_str().into(),
            keys: match intake.kind {
                IntakeType::Direct | IntakeType::Topic => Some((intake.kind, intake.keys.clone())),
                IntakeType::ConsistentHash => None,
            },
            unrouted: format!("{exchange}.unrouted").into(),
            edge: format!("worker-gate.edge.{}", worker.name).into(),
            owner: owner_queue(worker.name.as_str()),
            never: uuid::Uuid::new_v4().to_string(),
            lane_exchange: format!("{lane}.lane").into(),
            lane: lane.as_str().into(),
            holding: match intake.kind {
                IntakeType::Direct | IntakeType::Topic => lane_held.clone(),
                IntakeType::ConsistentHash => intake_held.clone(),
            },
            intake_held,
            lane_held,
            shared,
        }
    }
}

impl Names {
    /// Whether a message with this key is for this worker, as the settings are now.
    pub(crate) fn takes(&self, key: &str) -> bool {
        match &self.keys {
            None => true,
            Some((IntakeType::Topic, patterns)) => patterns.iter().any(|pattern| {
                let (pattern, key): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), key.split('.').collect());
                matches(&pattern, &key)
            }),
            Some((IntakeType::Direct | IntakeType::ConsistentHash, keys)) => keys.iter().any(|own| own == key),
        }
    }
}

/// AMQP 0-9-1's topic patterns: `*` is one word, `#` any number of them.
fn matches(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], rest) => rest.is_empty(),
        (["#", more @ ..], rest) => (0..=rest.len()).any(|from| matches(more, &rest[from..])),
        ([word, more @ ..], [first, rest @ ..]) => (*word == "*" || word == first) && matches(more, rest),
        (_, []) => false,
    }
}

/// The exchange by which a gate feeds the lanes of a shared queue.
pub(crate) fn feed_exchange(queue: &str) -> String {
    format!("{queue}.feed")
}

/// The owner queue of a worker, which is also the owner's mailbox.
pub(crate) fn owner_queue(worker: &str) -> ShortString {
    format!("worker-gate.owner.{worker}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_pattern_matches_as_the_broker_matches_it() {
        let is = |pattern: &str, key: &str| {
            let (pattern, key): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), key.split('.').collect());
            matches(&pattern, &key)
        };
        assert!(is("a.b", "a.b") && is("a.*", "a.b") && is("#", "a.b") && is("a.#", "a") && is("#.c", "a.b.c"));
        assert!(is("a.#.c", "a.c") && is("*.#", "a.b.c"));
        assert!(!is("a.*", "a") && !is("a.*", "a.b.c") && !is("a", "a.b") && !is("b.#", "a.b") && !is("a.b.c", "a.b"));
    }
}
