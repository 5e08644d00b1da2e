//! Which way leads to a worker. Pure.

use serde_json::{Map, Value};

use super::Crew;
use crate::{
    doctor::told::{Queue, Told},
    settings::IntakeType,
};

/// The kinds of edges, as settings name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Edge {
    /// RabbitMQ routes.
    Route,
    /// The gate moves.
    Feed,
}

/// A way from producers to a worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Way {
    /// The worker goes on consuming its queue.
    Route {
        /// That queue.
        lane: String,
        /// What producers publish to.
        exchange: String,
        /// Its type.
        kind: IntakeType,
        /// With this key.
        key: String,
        /// What the queue is declared with.
        arguments: Map<String, Value>,
        /// Nobody has published to that exchange so far.
        is_new: bool,
    },
    /// The worker is to consume a queue of its own.
    Feed {
        /// The queue that it consumes now.
        intake: String,
        /// The one that it is to consume.
        lane: String,
        /// Why this way and no route; a sentence.
        why: &'static str,
    },
}

/// The queue that a fed worker consumes. Its whole node name, because workers of one name on two hosts may share a queue.
fn lane_of(node: &str) -> String {
    format!("{node}.lane")
}

/// The way to one worker, and what it consumes beside; or why there is none.
pub(super) fn way(node: &str, crew: &Crew, is_redis: bool, wanted: Option<Edge>) -> Result<(Way, Vec<String>), String> {
    let told = crew.workers.get(node);
    let all: Vec<&Queue> = told.and_then(|told| told.queues.as_ref()).into_iter().flatten().collect();
    let Some(first) = all.iter().find(|queue| !queue.is_fleeting && queue.kind != "fanout") else {
        return Err("it consumes no queue that tasks could wait in; start it with -Q and a queue".to_owned());
    };
    if first.name == lane_of(node) {
        return Err(format!(
            "it consumes {} already, the lane of a feed, and where that is fed from no worker knows; keep the settings that you \
             have, or start it with -Q and the queue that producers publish to",
            first.name
        ));
    }
    let beside = all.iter().filter(|queue| queue.name != first.name).map(|queue| queue.name.clone()).collect();
    let feed = |why| Way::Feed { intake: first.name.clone(), lane: lane_of(node), why };
    let way = if is_redis {
        if wanted == Some(Edge::Route) {
            return Err("a route needs RabbitMQ, and this is a Redis; leave --edge route out".to_owned());
        }
        feed("On Redis the gate moves the messages.")
    } else if wanted == Some(Edge::Feed) {
        feed("As was asked for with --edge feed.")
    } else if wanted.is_none() && is_shared(node, &first.name, crew) {
        feed("It is not the only one that consumes this queue.")
    } else {
        match intake(first) {
            Some((exchange, kind, key, is_new)) => {
                Way::Route { lane: first.name.clone(), exchange, kind, key, arguments: first.arguments.clone(), is_new }
            }
            None => feed("The queue is bound to an exchange that cannot be a route's intake."),
        }
    };
    Ok((way, beside))
}

/// Whether somebody else consumes the queue, also somebody who has not answered.
fn is_shared(node: &str, queue: &str, crew: &Crew) -> bool {
    let others = crew.workers.iter().any(|(other, told)| other != node && told.consumes(queue));
    others || crew.consumers.get(queue).is_some_and(|count| *count > 1)
}

/// The exchange that producers are to name for what this queue's worker gets, its type and key, and whether it is a new one.
fn intake(queue: &Queue) -> Option<(String, IntakeType, String, bool)> {
    let (exchange, kind) = (queue.exchange.as_str(), queue.kind.as_str());
    if kind == "direct" && (exchange.is_empty() || exchange == queue.name) {
        // As Celery declares a queue of which nothing is said but its name. An intake of the lane's name would be led past the
        // gate by the worker itself.
        return Some((format!("{}.intake", queue.name), IntakeType::Direct, queue.name.clone(), true));
    }
    let kind = match kind {
        "direct" => IntakeType::Direct,
        "topic" => IntakeType::Topic,
        _ => return None,
    };
    let fits = !exchange.is_empty() && exchange != queue.name && !exchange.starts_with("amq.");
    fits.then(|| (exchange.to_owned(), kind, queue.key.clone(), false))
}

/// What a worker says of how it works.
pub(super) fn about(told: &Told) -> String {
    let pool = told.process.as_ref().map(|(_, pool)| pool.as_str()).filter(|pool| !pool.is_empty());
    let works = told.prefetch.map(|(prefetch, most)| {
        let beforehand =
            if prefetch == 0 { "any number of messages".to_owned() } else { format!("{prefetch} messages") };
        format!("{most} at once, takes {beforehand} beforehand")
    });
    let parts: Vec<String> = [pool.map(|pool| format!("pool {pool}")), works].into_iter().flatten().collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn queue(name: &str, exchange: &str, kind: &str, key: &str) -> Queue {
        let [name, exchange, kind, key] = [name, exchange, kind, key].map(str::to_owned);
        Queue { name, exchange, kind, key, ..Queue::default() }
    }

    fn own(name: &str) -> Queue {
        queue(name, name, "direct", name)
    }

    fn crew(workers: &[(&str, &[Queue])], consumers: &[(&str, u32)]) -> Crew {
        let told = |queues: &[Queue]| Told { queues: Some(queues.to_vec()), ..Told::default() };
        Crew {
            workers: workers.iter().map(|(node, queues)| ((*node).to_owned(), told(queues))).collect(),
            consumers: consumers.iter().map(|(queue, count)| ((*queue).to_owned(), *count)).collect(),
        }
    }

    fn way_of(crew: &Crew) -> Way {
        way("a@h", crew, false, None).unwrap().0
    }

    #[test]
    fn a_queue_of_a_workers_own_is_routed_to_by_an_exchange_that_is_not_of_its_name() {
        let mut plain = own("q");
        plain.arguments = json!({ "x-max-priority": 9 }).as_object().unwrap().clone();
        let Way::Route { lane, exchange, kind, key, arguments, is_new } =
            way_of(&crew(&[("a@h", &[plain])], &[("q", 1)]))
        else {
            panic!("no route");
        };
        assert_eq!((lane.as_str(), exchange.as_str(), key.as_str()), ("q", "q.intake", "q"));
        assert!(is_new && kind == IntakeType::Direct && arguments.contains_key("x-max-priority"));
    }

    #[test]
    fn a_named_exchange_of_a_fitting_type_is_the_intake_itself() {
        for (kind, expected) in [("direct", IntakeType::Direct), ("topic", IntakeType::Topic)] {
            let way = way_of(&crew(&[("a@h", &[queue("q", "x", kind, "k")])], &[("q", 1)]));
            let Way::Route { exchange, kind, key, is_new, .. } = way else { panic!("no route") };
            assert_eq!((exchange.as_str(), kind, key.as_str(), is_new), ("x", expected, "k", false));
        }
    }

    #[test]
    fn whatever_cannot_be_routed_to_is_fed() {
        for queue in [
            queue("q", "x", "headers", "k"),
            queue("q", "q", "topic", "q"),
            queue("q", "amq.direct", "direct", "k"),
            queue("q", "", "topic", ""),
        ] {
            let way = way_of(&crew(&[("a@h", std::slice::from_ref(&queue))], &[("q", 1)]));
            assert!(matches!(way, Way::Feed { .. }), "{queue:?}");
        }
    }

    #[test]
    fn a_queue_that_others_consume_is_fed_from_also_if_they_do_not_answer() {
        let (mine, others) = ([own("q")], [own("other"), own("q")]);
        for crew in [crew(&[("a@h", &mine), ("b@h", &others)], &[("q", 1)]), crew(&[("a@h", &mine)], &[("q", 2)])] {
            let Way::Feed { intake, lane, .. } = way_of(&crew) else { panic!("no feed") };
            assert_eq!((intake.as_str(), lane.as_str()), ("q", "a@h.lane"));
        }
    }

    #[test]
    fn redis_is_always_fed_from_and_what_was_asked_for_holds() {
        let crew = crew(&[("a@h", &[own("q")])], &[("q", 2)]);
        assert!(matches!(way("a@h", &crew, true, None), Ok((Way::Feed { .. }, _))));
        assert!(matches!(way("a@h", &crew, false, Some(Edge::Feed)), Ok((Way::Feed { .. }, _))));
        assert!(matches!(way("a@h", &crew, false, Some(Edge::Route)), Ok((Way::Route { .. }, _))));
        assert!(way("a@h", &crew, true, Some(Edge::Route)).unwrap_err().contains("needs RabbitMQ"));
    }

    #[test]
    fn the_first_queue_that_lasts_is_taken_and_the_others_are_named() {
        let fleeting = Queue { is_fleeting: true, ..own("fleeting") };
        let queues = [queue("all", "all", "fanout", ""), fleeting.clone(), own("q"), own("low")];
        let (way_, beside) = way("a@h", &crew(&[("a@h", &queues)], &[]), false, None).unwrap();
        assert!(matches!(way_, Way::Route { lane, .. } if lane == "q"));
        assert_eq!(beside, ["all", "fleeting", "low"]);
        assert!(way("a@h", &crew(&[("a@h", &[fleeting])], &[]), false, None).is_err());
        assert!(
            way("a@h", &crew(&[("a@h", &[own("a@h.lane")])], &[]), true, None)
                .unwrap_err()
                .contains("the lane of a feed")
        );
    }
}
