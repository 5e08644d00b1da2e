//! `worker-gate events`: every fact of every gate on this broker, as it happens.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer, ErrorKind,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::{Map, Value};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use super::line::{line, word};
use crate::{
    amqp::{self, ConnectError, Link, Retry},
    report::outbox::declare,
    settings,
};

/// Between two attempts to come back; doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// For a queue and a binding: loopback takes a millisecond, a broker that hangs takes for ever.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// For the goodbye to the broker; the queue goes with the connection in any case.
const GOODBYE: Duration = Duration::from_secs(1);

/// How many events may be on their way to a reader that is slow, such as a pager. The rest waits at the broker.
const WINDOW: u16 = 256;

/// Which events are shown.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this `type`.
    pub kind: Option<String>,
    /// Only this worker's; events of gates have none.
    pub worker: Option<String>,
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
    Connect(#[from] ConnectError),
    /// The broker refuses the subscription, and trying again will not mend it.
    #[error("subscribe to {exchange:?} (events.exchange): {detail}; the user needs configure, write and read rights")]
    Refused {
        /// `events.exchange`
        exchange: String,
        /// What the broker said.
        detail: String,
    },
    /// Signals cannot be listened to, or nobody takes the output. A reader that went away is not an error.
    #[error("write the output")]
    Output(#[from] io::Error),
}

/// Writes one line per event to `out` until SIGINT, SIGTERM, or until `out` has no reader any more. With `json` a line
/// is the published object. What happens to the link is told on `notes`; events of the time without one are not seen,
/// and show as a hole in `seq`.
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
    let mut link = amqp::connect(broker, "worker-gate events").await?;
    loop {
        let lost = match subscribe(&link, exchange).await {
            Ok(consumer) => {
                view.note(&format!("subscribed to {exchange}"))?;
                match view.show_all(consumer).await? {
                    ControlFlow::Break(()) => {
                        link.close(GOODBYE).await;
                        return Ok(());
                    }
                    ControlFlow::Continue(lost) => lost,
                }
            }
            Err(SubscribeError::Refused(detail)) => {
                link.close(GOODBYE).await;
                return Err(EventsError::Refused { exchange: exchange.to_owned(), detail });
            }
            Err(SubscribeError::Lost(lost)) => lost,
        };
        view.note(&format!("the link was lost ({lost}); events are missed until it is back"))?;
        link = reconnect(broker, view).await?;
    }
}

async fn reconnect(broker: &settings::Broker, view: &mut View<'_>) -> Result<Link, EventsError> {
    let mut pause = RETRY.0;
    loop {
        sleep(pause).await;
        match amqp::connect(broker, "worker-gate events").await {
            Ok(link) => return Ok(link),
            Err(err) if err.retry() == Retry::NeedsPerson => return Err(err.into()),
            Err(err) => view.note(&format!("failed to {err}; trying again"))?,
        }
        pause = (pause * 2).min(RETRY.1);
    }
}

#[derive(Debug)]
enum SubscribeError {
    Lost(String),
    Refused(String),
}

impl From<lapin::Error> for SubscribeError {
    fn from(err: lapin::Error) -> Self {
        match amqp::retry(&err) {
            Retry::NeedsPerson => Self::Refused(err.to_string()),
            Retry::Soon | Retry::AfterReconnect => Self::Lost(err.to_string()),
        }
    }
}

async fn subscribe(link: &Link, exchange: &str) -> Result<Consumer, SubscribeError> {
    let subscribing = async {
        let channel = link.connection().create_channel().await?;
        match consume(&channel, exchange).await {
            // No gate has been here yet. Whoever comes first makes the exchange, so that nothing is missed; the error
            // has ended the channel.
            Err(err) if not_found(&err) => {
                let channel = link.connection().create_channel().await?;
                declare(&channel, exchange).await?;
                consume(&channel, exchange).await
            }
            result => result,
        }
    };
    match timeout(SUBSCRIBE_TIMEOUT, subscribing).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(SubscribeError::Lost("no answer in time".to_owned())),
    }
}

fn not_found(err: &lapin::Error) -> bool {
    matches!(err.kind(), ErrorKind::ProtocolError(error) if error.get_id() == 404)
}

/// A queue of our own, which the broker names and removes with the connection.
async fn consume(channel: &Channel, exchange: &str) -> lapin::Result<Consumer> {
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), own, FieldTable::default()).await?.name().clone();
    let bind = QueueBindOptions::default();
    channel.queue_bind(queue.clone(), exchange.into(), "".into(), bind, FieldTable::default()).await?;
    channel.basic_qos(WINDOW, BasicQosOptions::default()).await?;
    channel.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
}

/// Where events go, and how.
struct View<'a> {
    filter: &'a Filter,
    json: bool,
    out: &'a mut (dyn Write + Send),
    notes: &'a mut (dyn Write + Send),
}

impl View<'_> {
    /// Shows events until their source ends, with the cause, or until nobody reads them any more.
    async fn show_all(&mut self, mut source: Consumer) -> Result<ControlFlow<(), String>, EventsError> {
        loop {
            let delivery = match source.next().await {
                Some(Ok(delivery)) => delivery,
                Some(Err(err)) => return Ok(ControlFlow::Continue(err.to_string())),
                None => return Ok(ControlFlow::Continue("the broker ended the subscription".to_owned())),
            };
            match self.show(&delivery.data) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::BrokenPipe => return Ok(ControlFlow::Break(())),
                Err(err) => return Err(err.into()),
            }
            // If the link is gone the source says so next.
            _ = delivery.ack(BasicAckOptions::default()).await;
        }
    }

    fn show(&mut self, body: &[u8]) -> io::Result<()> {
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
            view.show(body.as_bytes()).unwrap();
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
            let filter = Filter { kind: kind.map(str::to_owned), worker: worker.map(str::to_owned) };
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
