//! What is posted of an event.

use clap::ValueEnum;
use serde_json::Value;

use super::{Event, field};

mod alertmanager;
mod chat;

/// The shapes of a POST's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Body {
    /// The event as it was published
    #[default]
    Event,
    /// An alert for Alertmanager's /api/v2/alerts, fired or resolved; only for events that make one
    Alertmanager,
    /// {"text": "..."} for Slack, Mattermost and Google Chat; not for health checks and heartbeats
    Chat,
}

/// The body for an event, which is `published` as it came; `None` if nothing is to be said of it.
pub(super) fn of(body: Body, event: &Event, published: &str) -> Option<String> {
    match body {
        Body::Event => Some(published.to_owned()),
        Body::Alertmanager => alertmanager::body(event),
        Body::Chat => chat::body(event),
    }
}

/// What happened, as the main clause of a sentence.
fn headline(event: &Event) -> String {
    let (worker, gate) = (field(event, "worker_name"), field(event, "gate"));
    match field(event, "type") {
        "worker-quarantined" => format!("worker {worker} is quarantined"),
        "worker-admitted" => format!("worker {worker} is admitted"),
        "worker-held" => format!("worker {worker} is held"),
        "worker-bypass" => format!("something comes to worker {worker} past its shut edge"),
        "worker-recycled" => format!("worker {worker} was asked to start anew"),
        "worker-config-managed" => format!("the config of worker {worker} is as it should be"),
        "worker-config-drifted" => format!("the config of worker {worker} has drifted"),
        "worker-command" => format!("worker {worker}: {}", order(event)),
        "worker-version-changed" => format!("a tool of worker {worker} has another version"),
        "fleet-suspect" => format!("a check of worker {worker} fails on much of the fleet"),
        "gate-online" => format!("gate {gate} has started"),
        "gate-offline" => format!("gate {gate} has stopped"),
        "gate-settings-loaded" => format!("gate {gate} has new settings"),
        "gate-settings-refused" => format!("gate {gate} refuses its new settings"),
        "gate-command-refused" => format!("gate {gate} refuses a command"),
        other => format!("{other} of {}", field(event, "hostname")),
    }
}

/// What an operator asked for, and what became of it.
fn order(event: &Event) -> String {
    let command = event.get("command").unwrap_or(&Value::Null);
    let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (by, ask, outcome) = (part(&command["by"]["claims"]), part(&command["ask"]), part(&command["outcome"]));
    format!("{by} asked for {ask} ({})", outcome.replace('_', " "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_order_is_told_with_who_gave_it_and_what_became_of_it() {
        let event = json!({
            "type": "worker-command", "worker_name": "w",
            "command": {"ask": "hold", "by": {"user": null, "claims": "ada@ops"}, "reason": "new disk", "outcome": "held"},
        });
        assert_eq!(headline(event.as_object().unwrap()), "worker w: ada@ops asked for hold (held)");
    }

    #[test]
    fn an_event_is_posted_as_it_was_published() {
        let event = json!({"type": "gate-heartbeat"}).as_object().unwrap().clone();
        assert_eq!(of(Body::Event, &event, "{ }").unwrap(), "{ }");
        assert_eq!(of(Body::Alertmanager, &event, "{ }"), None);
        assert_eq!(of(Body::Chat, &event, "{ }"), None);
    }
}
