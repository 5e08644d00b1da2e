//! How a gate stays known that does not answer any more: the broker remembers its last word, and its name.
//!
//! Nobody can list queues over AMQP, so on RabbitMQ the roll is called. Each gate has a queue, `worker-gate.gate.<gate>`, in which
//! a message lives for no time at all: RabbitMQ takes a call out of it at once, as expired, and hands it on by the exchange
//! `worker-gate.roll` to whoever called, with the queue's name in a header (RabbitMQ's pages "Time-To-Live" and "Dead Letter
//! Exchanges"). So the broker answers for every gate that there has been, dead or alive. What a gate said last is in a queue
//! beside it, `worker-gate.beat.<gate>`, which has room for one message. On Redis both are one hash.
//!
//! A gate that has not been there for a day is forgotten: its queues expire.

use std::time::Duration;

use jiff::Timestamp;
use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Map, Value};

use crate::model::WorkerName;

/// RabbitMQ: where the roll is called; a fanout to the queues of all gates.
pub const CALL: &str = "worker-gate.roll-call";
/// RabbitMQ: by which the calls come back; direct, by the key of the call.
pub const ROLL: &str = "worker-gate.roll";
/// RabbitMQ: the header of a call that has come back with the name of the queue that it was in.
pub const CAME_FROM: &str = "x-first-death-queue";
/// Redis: every gate's last word, by its name.
pub const HASH: &str = "worker-gate.gates";
/// A gate that has been silent for so long is forgotten.
pub const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);
/// A gate says at least this often that it wants its queues: a queue counts as used when it is declared.
pub const RENEW: Duration = Duration::from_secs(3600);

/// RabbitMQ: the queue by which a gate is known.
pub fn name_queue(gate: &str) -> String {
    format!("worker-gate.gate.{gate}")
}

/// The gate whose queue this is.
pub fn gate_of(queue: &str) -> Option<&str> {
    queue.strip_prefix("worker-gate.gate.")
}

/// RabbitMQ: the queue that has what a gate said last.
pub fn beat_queue(gate: &str) -> String {
    format!("worker-gate.beat.{gate}")
}

/// Makes the two exchanges, if they are not there.
pub async fn declare_exchanges(channel: &Channel) -> lapin::Result<()> {
    for (name, kind) in [(CALL, ExchangeKind::Fanout), (ROLL, ExchangeKind::Direct)] {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await?;
    }
    Ok(())
}

/// Puts a gate on the roll, or keeps it there.
pub async fn enter(channel: &Channel, gate: &str) -> lapin::Result<()> {
    declare_exchanges(channel).await?;
    let ms = |time: Duration| AMQPValue::LongLongInt(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
    let declare = async |name: &str, arguments: &[(&str, AMQPValue)]| {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.into(), options, table).await
    };
    let name: ShortString = name_queue(gate).into();
    declare(
        name.as_str(),
        &[
            ("x-message-ttl", AMQPValue::LongLongInt(0)),
            ("x-dead-letter-exchange", AMQPValue::LongString(ROLL.into())),
            ("x-expires", ms(FORGOTTEN)),
        ],
    )
    .await?;
    channel
        .queue_bind(name, CALL.into(), ShortString::default(), QueueBindOptions::default(), FieldTable::default())
        .await?;
    declare(
        &beat_queue(gate),
        &[
            ("x-max-length", AMQPValue::LongLongInt(1)),
            ("x-message-ttl", ms(FORGOTTEN)),
            // Longer, so that the last word is there as long as the name is.
            ("x-expires", ms(FORGOTTEN * 2)),
        ],
    )
    .await?;
    Ok(())
}

/// What a gate said last: one of the events about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Beat {
    /// When, by the gate's own clock.
    pub at: Timestamp,
    /// Whether that was its goodbye.
    pub goodbye: bool,
    /// Its workers, as they were then.
    pub workers: Vec<WorkerName>,
}

impl Beat {
    /// Reads an event; `None` if it is none of a gate's.
    pub fn read(body: &[u8]) -> Option<Self> {
        let event: Map<String, Value> = serde_json::from_slice(body).ok()?;
        let seconds = event.get("timestamp")?.as_f64()?;
        let since = jiff::SignedDuration::try_from_secs_f64(seconds).ok()?;
        let workers = event.get("digest").and_then(|digest| digest.get("workers")?.as_array());
        let name = |worker: &Value| worker["worker_name"].as_str().map(WorkerName::new);
        Some(Self {
            at: Timestamp::from_duration(since).ok()?,
            goodbye: event.get("type")?.as_str()? == "gate-offline",
            workers: workers.into_iter().flatten().filter_map(name).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_says_when_and_whose_workers() {
        let text = br#"{"type":"gate-heartbeat","timestamp":1795341600.5,"gate":"g",
            "digest":{"admitted":1,"workers":[{"worker_name":"a","admission":"admitted"},{"worker_name":"b"}]}}"#;
        let beat = Beat::read(text).unwrap();
        assert_eq!(beat.at, "2026-11-22T10:00:00.5Z".parse().unwrap());
        assert!(!beat.goodbye);
        assert_eq!(beat.workers, ["a", "b"].map(WorkerName::new));
        assert!(Beat::read(br#"{"type":"gate-offline","timestamp":1}"#).unwrap().goodbye);
    }

    #[test]
    fn what_is_no_beat_is_none() {
        for text in ["", "[]", "{}", r#"{"type":"x"}"#, r#"{"type":"x","timestamp":1e300}"#] {
            assert_eq!(Beat::read(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_gate_is_known_by_the_name_of_its_queue() {
        assert_eq!(gate_of(&name_queue("host-1")), Some("host-1"));
        assert_eq!(gate_of(&beat_queue("host-1")), None);
    }
}
