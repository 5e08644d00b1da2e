//! What came past a shut edge, by the exchange and key that the message says it came by, and what to change so that it comes no
//! more.

use crate::{
    model::Way,
    settings::{EdgeKind, FeedIntake},
};

/// How messages should come to a worker, to be held against how they came.
#[derive(Debug)]
pub(super) struct Rightly {
    lane: String,
    /// The exchange that producers publish to; `None` where they publish to a queue.
    exchange: Option<String>,
    /// The entry of `task_routes` that takes the right way.
    route: String,
}

impl Rightly {
    pub(super) fn of(lane: &str, edge: &EdgeKind) -> Self {
        let exchange = |exchange: &str, keys: &[String]| {
            let key = keys.first().map_or("", String::as_str);
            (Some(exchange.to_owned()), format!("{{\"exchange\": {exchange:?}, \"routing_key\": {key:?}}}"))
        };
        let (exchange, route) = match edge {
            EdgeKind::Route(intake) => exchange(&intake.exchange, &intake.keys),
            EdgeKind::Feed(feed) => match &feed.intake {
                FeedIntake::Queue(queue) => (None, format!("{{\"queue\": {queue:?}}}")),
                FeedIntake::Exchange { exchange: name, keys, .. } => exchange(name, keys),
            },
        };
        Self { lane: lane.to_owned(), exchange, route }
    }

    /// So many messages came by this exchange and key.
    pub(super) fn past(&self, exchange: &str, key: &str, messages: u64) -> Way {
        let (lane, route) = (&self.lane, &self.route);
        let remedy = if exchange.is_empty() {
            format!(
                "somebody publishes to the queue {lane} itself: route the task with both exchange and key, as in task_routes = \
                 {{\"your.task\": {route}}}"
            )
        } else if self.exchange.as_deref() == Some(exchange) {
            format!(
                "the gate has removed that binding; an app with Queue({lane:?}, exchange={exchange:?}, …) in its task_queues makes \
                 it again: take the exchange out of it there"
            )
        } else if exchange == lane {
            format!(
                "an app publishes with queue={lane:?}, to the exchange that Celery makes for every queue: route the task with both \
                 exchange and key, as in task_routes = {{\"your.task\": {route}}}"
            )
        } else {
            format!(
                "remove the binding of the queue {lane} to the exchange {exchange} (rabbitmqctl list_bindings), and take it out of \
                 the task_queues of the app that made it"
            )
        };
        Way { by: format!("exchange '{exchange}' key '{key}'"), remedy, messages }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::settings::{Feed, IntakeType, RouteIntake};

    fn remedy(edge: &EdgeKind, exchange: &str) -> String {
        Rightly::of("codex-0", edge).past(exchange, "k", 3).remedy
    }

    #[test]
    fn each_way_past_the_edge_has_its_own_remedy() {
        let (exchange, keys) = ("codex".to_owned(), vec!["codex-0".to_owned()]);
        let route = &EdgeKind::Route(RouteIntake { exchange, kind: IntakeType::Direct, keys });
        let routed = r#"task_routes = {"your.task": {"exchange": "codex", "routing_key": "codex-0"}}"#;
        assert!(remedy(route, "").ends_with(routed));
        assert!(remedy(route, "codex-0").contains("queue=\"codex-0\"") && remedy(route, "codex-0").ends_with(routed));
        assert!(remedy(route, "codex").starts_with("the gate has removed that binding"));
        assert!(remedy(route, "other").contains("to the exchange other"));
        let intake = FeedIntake::Queue("codex".to_owned());
        let feed = EdgeKind::Feed(Feed { intake, depth: 1, offline_after: Duration::from_secs(10) });
        assert!(remedy(&feed, "").ends_with(r#"{"your.task": {"queue": "codex"}}"#));
    }
}
