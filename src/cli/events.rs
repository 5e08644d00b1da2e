//! `worker-gate events`: every fact of every gate on this broker, as it happens.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::line::{line, word};
use crate::{
    amqp::{self, Retry},
    settings::{self, BrokerUrl},
};

mod rabbitmq;
mod redis;

/// Between two attempts to come back; doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What the connection is called at the broker.
const PURPOSE: &str = "worker-gate events";

/// How many events may be on their way to a reader that is slow, such as a pager. The rest waits at the broker.
const WINDOW: u16 = 256;

/// Which events are shown.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this `type`.
    pub kind: Option<String>,
    /// Only this worker's; events of gates have none.
    pub worker: Option<String>,
    /// Before those that come, those of so long ago or less that the broker still has.
    pub since: Option<Duration>,
}

impl Filter {
    fn takes(&self, event: &Map<String, Value>) -> bool {
        let is = |wanted: &Option<String>, name: &str| match wanted {
            Some(wanted) => event.get(name).and_then(Value::as_str) == Some(wanted),
            None => true,
        };
        is(&self.kind, "type") && is(&self.worker, "worker_name")
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
    /// Something of the past is asked of a broker that keeps none of it.
    #[error(
        "look back: RabbitMQ keeps no events for those who come late, so --since is for Redis alone; what a gate has done, \
         `worker-gate audit` shows on its host"
    )]
    NothingKept,
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
            Self::Refused { .. } | Self::NothingKept | Self::Output(_) => Retry::NeedsPerson,
        }
    }

    /// Whether a permission is what is missing.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_permission(),
            Self::ConnectRedis(error) => error.is_permission(),
            Self::Refused { .. } => true,
            Self::NothingKept | Self::Output(_) => false,
        }
    }
}

/// Writes one line per event to `out` until SIGINT, SIGTERM, or until `out` has no reader any more. With `json` a line
/// is the published object. What happens to the link is told on `notes`, and whether events of the time without one can be
/// shown: Redis has kept them, and on RabbitMQ they are missed, which shows as a hole in `seq`.
///
/// # Errors
/// When the broker cannot be reached at the start, or refuses.
pub async fn events(
    broker: &settings::Broker,
    exchange: &str,
    filter: &Filter,
    json: bool,
    out: &mut (dyn Write + Send),
    notes: &mut (dyn Write + Send),
) -> Result<(), EventsError> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut view = View { filter, json, out, notes };
    tokio::select! {
        result = follow(broker, exchange, &mut view) => result,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
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

/// Where events go, and how.
struct View<'a> {
    filter: &'a Filter,
    json: bool,
    out: &'a mut (dyn Write + Send),
    notes: &'a mut (dyn Write + Send),
}

impl View<'_> {
    /// Shows an event, or breaks if nobody reads any more.
    fn show(&mut self, body: &[u8]) -> io::Result<ControlFlow<()>> {
        match self.write(body) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(err) => Err(err),
        }
    }

    fn write(&mut self, body: &[u8]) -> io::Result<()> {
        let Ok(event) = serde_json::from_slice::<Map<String, Value>>(body) else {
            let start = String::from_utf8_lossy(&body[..body.len().min(80)]);
            return self.note(&format!("somebody published what is not an event: {}", word(&start.into())));
        };
        if !self.filter.takes(&event) {
            return Ok(());
        }
        match (self.json, str::from_utf8(body)) {
            // As it was published, to the byte, unless it would not be one line.
            (true, Ok(text)) if !text.contains(['\n', '\r']) => writeln!(self.out, "{text}")?,
            (true, _) => writeln!(self.out, "{}", Value::from(event))?,
            (false, _) => writeln!(self.out, "{}", line(&event))?,
        }
        self.out.flush()
    }

    /// Takes in that an attempt to come back has failed; it was the last one if waiting will not mend it.
    fn failed(&mut self, error: EventsError) -> Result<(), EventsError> {
        if error.retry() == Retry::NeedsPerson {
            return Err(error);
        }
        Ok(self.note(&format!("failed to {error}; trying again"))?)
    }

    fn note(&mut self, note: &str) -> io::Result<()> {
        writeln!(self.notes, "worker-gate events: {note}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(filter: &Filter, json: bool, bodies: &[&str]) -> (String, String) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let mut view = View { filter, json, out: &mut out, notes: &mut notes };
        for body in bodies {
            assert!(view.show(body.as_bytes()).unwrap().is_continue());
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    const ADMITTED: &str = r#"{"type":"worker-admitted","worker_name":"codex-0","timestamp":1.50}"#;
    const BEAT: &str = r#"{"type":"gate-heartbeat","hostname":"worker-gate@g"}"#;

    #[test]
    fn json_is_what_was_published_one_object_a_line() {
        let spread = "{\"type\":\n\"x\"}";
        let (out, _) = shown(&Filter::default(), true, &[ADMITTED, BEAT, spread]);
        assert_eq!(out, format!("{ADMITTED}\n{BEAT}\n{{\"type\":\"x\"}}\n"));
    }

    #[test]
    fn a_filter_takes_the_whole_type_and_the_whole_worker_name() {
        let filter = |kind: Option<&str>, worker: Option<&str>| {
            let filter = Filter { kind: kind.map(str::to_owned), worker: worker.map(str::to_owned), since: None };
            shown(&filter, true, &[ADMITTED, BEAT]).0
        };
        assert_eq!(filter(Some("gate-heartbeat"), None), format!("{BEAT}\n"));
        assert_eq!(filter(None, Some("codex-0")), format!("{ADMITTED}\n"));
        assert_eq!(filter(Some("worker"), None), "");
        assert_eq!(filter(None, Some("codex")), "");
    }

    #[test]
    fn what_is_not_an_event_is_noted_and_not_shown() {
        let (out, notes) = shown(&Filter::default(), true, &["[1]", "\u{1b}[2J"]);
        assert_eq!(out, "");
        assert_eq!(notes.lines().count(), 2);
        assert!(!notes.contains('\u{1b}'), "{notes:?}");
    }
}
