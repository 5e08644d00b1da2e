//! `worker-gate events`: every fact of every gate on this broker, as it happens, to a reader, a program or a webhook.
//!
//! ```text
//! broker ──▶ rabbitmq | redis: one after the other, acknowledged when it is done with
//!               └─▶ view: counted, filtered, tried again ──▶ lines | exec: a program | webhook: body, POST
//! ```

use std::{
    io::{self, Write},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use crate::{
    amqp::{self, Retry},
    glob,
    settings::{self, BrokerUrl},
};

pub mod args;
pub mod body;
mod counts;
pub mod exec;
mod patience;
mod rabbitmq;
mod redis;
mod view;
pub mod webhook;

use exec::Exec;
use view::View;
use webhook::Webhook;

/// Between two attempts to come back; doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What the connection is called at the broker.
const PURPOSE: &str = "worker-gate events";

/// How many events may be on their way to a reader that is slow, such as a pager. The rest waits at the broker.
const WINDOW: u16 = 256;

/// An event as it was published: one flat JSON object.
type Event = Map<String, Value>;

/// What is wanted of the events.
#[derive(Debug)]
pub struct Subscription {
    /// Which.
    pub filter: Filter,
    /// Those of so long ago or less. Without a name only such as the broker still has, and Redis alone has any.
    pub since: Option<Duration>,
    /// The name under which the broker keeps what comes while nobody is here; `None`: it keeps nothing.
    pub durable: Option<String>,
    /// Where they go.
    pub target: Target,
}

/// Which events are meant.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Patterns of `type`; none means every type.
    pub kinds: Vec<String>,
    /// Patterns of workers' names; none means every worker, and also what is about gates alone.
    pub workers: Vec<String>,
}

/// Where events go.
#[derive(Debug)]
pub enum Target {
    /// To the output, one line for people each.
    Lines,
    /// To the output, one JSON object a line, as it was published.
    Json,
    /// To a program each.
    Program(Exec),
    /// By a POST each.
    Webhook(Webhook),
}

impl Filter {
    fn takes(&self, event: &Event) -> bool {
        let is = |patterns: &[String], field: &str| {
            let value = event.get(field).and_then(Value::as_str);
            patterns.is_empty()
                || value.is_some_and(|value| patterns.iter().any(|pattern| glob::matches(pattern, value)))
        };
        is(&self.kinds, "type") && is(&self.workers, "worker_name")
    }
}

/// Why there are no events, or no more.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// No connection: at the start for any reason, later for one that waiting will not mend.
    #[error(transparent)]
    Connect(#[from] amqp::ConnectError),
    /// Likewise.
    #[error(transparent)]
    ConnectRedis(#[from] crate::redis::ConnectError),
    /// The broker refuses the subscription, and trying again will not mend it.
    #[error("subscribe to {exchange:?} (events.exchange): {detail}; the user needs {needs}")]
    Refused {
        /// `events.exchange`
        exchange: String,
        /// What the broker said.
        detail: String,
        /// The rights without which there is no subscription.
        needs: &'static str,
    },
    /// The name of a durable subscriber is that of a queue which is none's.
    #[error(
        "subscribe as {name:?} (--durable): there is a queue of this name that is no subscriber's ({detail}); choose another \
         name, or delete that queue"
    )]
    Taken {
        /// The name.
        name: String,
        /// What the broker said.
        detail: String,
    },
    /// Something of the past is asked of a broker that keeps none of it.
    #[error(
        "look back: RabbitMQ keeps no events for those who come late, so --since alone is for Redis; with --durable NAME \
         it keeps them for this subscriber from now on, and what a gate has done, `worker-gate audit` shows on its host"
    )]
    NothingKept,
    /// There is no such program.
    #[error(transparent)]
    Program(#[from] exec::NoProgram),
    /// Nothing can be posted there.
    #[error(transparent)]
    Webhook(#[from] webhook::NoWebhook),
    /// Signals cannot be listened to, or nobody takes the output. A reader that went away is not an error.
    #[error("write the output")]
    Output(#[from] io::Error),
}

impl EventsError {
    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect(error) => error.retry(),
            Self::ConnectRedis(error) => error.retry(),
            Self::Refused { .. }
            | Self::Taken { .. }
            | Self::NothingKept
            | Self::Program(_)
            | Self::Webhook(_)
            | Self::Output(_) => Retry::NeedsPerson,
        }
    }

    /// Whether a permission is what is missing.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_permission(),
            Self::ConnectRedis(error) => error.is_permission(),
            Self::Refused { .. } => true,
            Self::Taken { .. } | Self::NothingKept | Self::Program(_) | Self::Webhook(_) | Self::Output(_) => false,
        }
    }

    /// Whether the command line asks for what there is not.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Taken { .. } | Self::NothingKept | Self::Program(_) | Self::Webhook(_) => true,
            Self::Connect(_) | Self::ConnectRedis(_) | Self::Refused { .. } | Self::Output(_) => false,
        }
    }
}

/// Brings each event where the subscription says, until SIGINT, SIGTERM, or until `out` has no reader any more. What happens
/// to the link, and what could not be delivered or has been missed, is told on `notes`.
///
/// # Errors
/// When the broker cannot be reached at the start, or refuses.
pub async fn events(
    broker: &settings::Broker,
    exchange: &str,
    subscription: Subscription,
    out: &mut (dyn Write + Send),
    notes: &mut (dyn Write + Send),
) -> Result<(), EventsError> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut view = View::new(subscription, Timestamp::now(), out, notes);
    let result = tokio::select! {
        result = follow(broker, exchange, &mut view) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    view.stop().await;
    result
}

async fn follow(broker: &settings::Broker, exchange: &str, view: &mut View<'_>) -> Result<(), EventsError> {
    match broker.urls.first() {
        Some(BrokerUrl::Redis(_)) => redis::follow(broker, exchange, view).await,
        Some(BrokerUrl::Amqp(_)) | None => rabbitmq::follow(broker, exchange, view).await,
    }
}

/// The pauses between attempts to come back.
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Self(RETRY.0)
    }

    async fn next(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY.1);
    }
}

/// When it happened, by the clock of its gate.
fn time_of(event: &Event) -> Option<Timestamp> {
    let since = SignedDuration::try_from_secs_f64(event.get("timestamp")?.as_f64()?).ok()?;
    Timestamp::from_duration(since).ok()
}

/// A field of the reason: its code, detail or remedy. "" if there is none.
fn reason<'a>(event: &'a Event, part: &str) -> &'a str {
    event.get("reason").and_then(|reason| reason.get(part)).and_then(Value::as_str).unwrap_or_default()
}

/// A field that is text. "" if there is none.
fn field<'a>(event: &'a Event, name: &str) -> &'a str {
    event.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_filter_takes_what_fits_one_of_its_patterns_of_each_kind() {
        let takes = |kinds: &[&str], workers: &[&str], event: Value| {
            let owned = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            Filter { kinds: owned(kinds), workers: owned(workers) }.takes(event.as_object().unwrap())
        };
        let admitted = || json!({"type": "worker-admitted", "worker_name": "codex-0@h"});
        let beat = || json!({"type": "gate-heartbeat", "hostname": "worker-gate@g"});
        assert!(takes(&[], &[], admitted()) && takes(&[], &[], beat()));
        assert!(takes(&["gate-*", "worker-admitted"], &[], admitted()) && takes(&["gate-*"], &[], beat()));
        assert!(!takes(&["worker"], &[], admitted()));
        assert!(takes(&[], &["codex-1@h", "codex-?@*"], admitted()));
        assert!(!takes(&[], &["*"], beat()), "an event about a gate is about no worker");
        assert!(!takes(&["worker-held"], &["codex-*"], admitted()));
    }
}
