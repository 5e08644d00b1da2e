//! Publishes events on the fanout exchange: in order, persistent, with confirms; on Redis to PUB/SUB and to a stream.
//!
//! At least once: when the link goes between a publish and its confirm, the event is published again on the next
//! channel, and those after it in their order. The two have one `id`.

use std::{future::pending, sync::Arc, time::Duration};

use ::redis::aio::MultiplexedConnection;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, ready, try_join_all},
    stream::FuturesOrdered,
};
use lapin::{
    BasicProperties, Channel, Confirmation, ExchangeKind, PublisherConfirm,
    options::{BasicPublishOptions, ExchangeDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Map, Value};
use tokio::{sync::watch, time::sleep};

use super::{event::Event, outbox::Shared};
use crate::{
    control::roll::{self, beat_queue},
    edge::celery::EVENTS,
    redis::envelope,
    rush::Rush,
};

/// Before an event that the broker refused is tried again, unless there is a new channel sooner.
const RETRY: Duration = Duration::from_secs(1);

/// Published and not yet confirmed. A crowd of 150 workers has 300 facts a second, and a busy broker takes some
/// milliseconds to confirm one.
const IN_FLIGHT: usize = 64;

/// So many events stay on the stream, or some more: 20 MB of Redis' memory at 2 KiB each.
pub const STREAM_LENGTH: u32 = 10_000;

/// The field of the stream's entries which has the event as JSON.
pub const STREAM_FIELD: &str = "event";

const PERSISTENT: u8 = 2;
/// As Celery publishes its own events.
const TRANSIENT: u8 = 1;

/// Where events go out.
#[derive(Debug, Clone)]
pub enum Outlet {
    /// The fanout exchange.
    RabbitMq {
        /// In confirm mode, on the connection for publishing.
        channel: Channel,
        /// What goes before them.
        rush: Rush,
        /// Whether Celery's own event exchange gets them, too.
        mirror: bool,
    },
    /// PUB/SUB and a stream.
    Redis(RedisOutlet),
}

/// Where events go out on Redis: to whoever listens, as kombu's fanout exchange does it, and on a stream for late readers.
#[derive(Debug, Clone)]
pub struct RedisOutlet {
    /// For commands.
    pub connection: MultiplexedConnection,
    /// What goes before events.
    pub rush: Rush,
    /// The exchange's PUB/SUB channel. Whoever binds a queue to a fanout with a pattern, as Celery's event receiver does, listens
    /// to the same with `/` and a key behind it.
    pub channel: String,
    /// The stream's key.
    pub stream: String,
    /// The key of what every gate said last.
    pub gates: String,
    /// The PUB/SUB channel of Celery's own events, without the key behind it, if they are published there, too.
    pub celeryev: Option<String>,
}

impl Outlet {
    /// Whether it is worth trying.
    pub fn works(&self) -> bool {
        match self {
            Self::RabbitMq { channel, .. } => channel.status().connected(),
            // Its giver takes it away.
            Self::Redis(_) => true,
        }
    }

    fn rush(&self) -> &Rush {
        match self {
            Self::RabbitMq { rush, .. } => rush,
            Self::Redis(outlet) => &outlet.rush,
        }
    }

    /// Sends an event; the future resolves when the broker has it.
    async fn send(
        &self,
        exchange: &str,
        event: &Event,
    ) -> Result<BoxFuture<'static, Result<(), PublishError>>, PublishError> {
        match self {
            Self::RabbitMq { channel, mirror, .. } => {
                let (key, body) = (event.routing_key(), event.to_json());
                // The broker remembers what a gate said last; if it has no such queue, nobody misses it.
                let beat = event.is_about_gate().then(|| beat_queue(event.gate()));
                let for_celery = if *mirror { event.for_celery() } else { None };
                let mut copies = vec![(exchange, key.as_str(), PERSISTENT, body.as_str())];
                copies.extend(beat.as_ref().map(|queue| ("", queue.as_str(), PERSISTENT, body.as_str())));
                copies.extend(for_celery.as_ref().map(|body| (EVENTS, key.as_str(), TRANSIENT, body.as_str())));
                // All in one go, because each publish by itself would wake lapin's thread.
                let confirms = try_join_all(copies.into_iter().map(async |(exchange, key, mode, body)| {
                    publish(channel, exchange, key, properties(event, mode), body).await
                }));
                let confirms = confirms.await?;
                Ok(async move {
                    for confirm in confirms {
                        confirmed(confirm.await)?;
                    }
                    Ok(())
                }
                .boxed())
            }
            Self::Redis(outlet) => {
                outlet.publish(exchange, event).await?;
                Ok(ready(Ok(())).boxed())
            }
        }
    }
}

/// The key of the hash that has what every gate said last.
pub fn gates(prefix: &str) -> String {
    format!("{prefix}{}", roll::HASH)
}

/// The key of the stream that has an exchange's events on Redis.
pub fn stream(prefix: &str, exchange: &str) -> String {
    format!("{prefix}{exchange}")
}

impl RedisOutlet {
    async fn publish(&self, exchange: &str, event: &Event) -> Result<(), PublishError> {
        let (body, key) = (event.to_json(), event.routing_key());
        let hostname: Map<String, Value> = [("hostname".to_owned(), event.hostname().into())].into_iter().collect();
        let message = envelope::wrap(&body, &hostname, exchange, &key);
        let for_celery = self.celeryev.as_ref().and_then(|channel| Some((channel, event.for_celery()?)));
        let mut pipeline = ::redis::pipe();
        pipeline.atomic();
        pipeline
            .cmd("XADD")
            .arg(&self.stream)
            .arg("MAXLEN")
            .arg("~")
            .arg(STREAM_LENGTH)
            .arg("*")
            .arg(STREAM_FIELD)
            .arg(&body)
            .ignore();
        pipeline.cmd("PUBLISH").arg(&self.channel).arg(&message).ignore();
        pipeline.cmd("PUBLISH").arg(format!("{}/{key}", self.channel)).arg(&message).ignore();
        if let Some((channel, body)) = for_celery {
            let message = envelope::wrap(&body, &hostname, EVENTS, &key);
            pipeline.cmd("PUBLISH").arg(format!("{channel}/{key}")).arg(&message).ignore();
        }
        if event.is_about_gate() {
            pipeline.cmd("HSET").arg(&self.gates).arg(event.gate()).arg(&body).ignore();
        }
        Ok(pipeline.query_async(&mut self.connection.clone()).await?)
    }
}

/// Declares a durable exchange that events go to: a fanout, or Celery's own topic. Harmless if it is there already.
///
/// # Errors
/// The broker's; 406 if there is an exchange of that name and another type, which also ends the channel.
pub async fn declare(channel: &Channel, exchange: &str, kind: ExchangeKind) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(exchange.into(), kind, options, FieldTable::default()).await
}

/// Why the broker does not have an event.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("publish a fact: {0}")]
    Broken(#[from] lapin::Error),
    #[error("publish a fact: {}", crate::redis::text(.0))]
    BrokenRedis(#[from] ::redis::RedisError),
    #[error("publish a fact: the broker did not take it")]
    Refused,
}

/// Publishes until the writer has ended and nothing is left, or there is no channel for what is left.
pub(super) async fn run(shared: Arc<Shared>, exchange: String, mut channels: watch::Receiver<Option<Outlet>>) {
    while let Some(outlet) = live_channel(&mut channels, &shared).await {
        let result = tokio::select! {
            result = publish_all(&outlet, &exchange, &shared) => result,
            // A publish that waits on a channel that was given up would wait for ever. Dropped, it may still have
            // reached the broker: that is the "at least" in at least once.
            () = another(&mut channels) => continue,
        };
        match result {
            Ok(()) => return,
            Err(err) => {
                tracing::warn!("failed to {err}; it is kept and tried again");
                tokio::select! {
                    () = sleep(RETRY) => {}
                    () = another(&mut channels) => {}
                }
            }
        }
    }
}

/// Publishes what there is on one channel, until there will be no more.
async fn publish_all(outlet: &Outlet, exchange: &str, shared: &Shared) -> Result<(), PublishError> {
    let (mut in_flight, mut last, mut more) = (FuturesOrdered::new(), None, true);
    loop {
        // Cancel-safe: a stream's `next` keeps what it has, and so does the backlog.
        tokio::select! {
            biased;
            Some((event, confirm)) = in_flight.next(), if !in_flight.is_empty() => {
                confirm?;
                shared.published(&event);
            }
            event = shared.next(last), if more && in_flight.len() < IN_FLIGHT => match event {
                Some(event) => {
                    outlet.rush().quiet().await;
                    last = Some(event.seq());
                    let confirm = outlet.send(exchange, &event).await?;
                    in_flight.push_back(async move { (event, confirm.await) });
                }
                None => more = false,
            },
            else => return Ok(()),
        }
    }
}

/// Waits for a channel that works; `None` if everything is written and there still is none.
async fn live_channel(channels: &mut watch::Receiver<Option<Outlet>>, shared: &Shared) -> Option<Outlet> {
    loop {
        let outlet = channels.borrow_and_update().clone();
        if let Some(outlet) = outlet.filter(Outlet::works) {
            return Some(outlet);
        }
        tokio::select! {
            () = another(channels) => {}
            () = shared.writer_ended() => return None,
        }
    }
}

/// Resolves when there is news of the channel. Never, once its giver has ended: while the gate stops, the last channel is
/// good for as long as it works.
async fn another(channels: &mut watch::Receiver<Option<Outlet>>) {
    if channels.changed().await.is_err() {
        pending::<()>().await;
    }
}

async fn publish(
    channel: &Channel,
    exchange: &str,
    key: &str,
    properties: BasicProperties,
    body: &str,
) -> lapin::Result<PublisherConfirm> {
    let options = BasicPublishOptions::default();
    channel.basic_publish(exchange.into(), key.into(), options, body.as_bytes(), properties).await
}

fn properties(event: &Event, delivery_mode: u8) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("hostname".into(), AMQPValue::LongString(event.hostname().into()));
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_delivery_mode(delivery_mode)
        .with_headers(headers)
}

fn confirmed(confirm: lapin::Result<Confirmation>) -> Result<(), PublishError> {
    match confirm? {
        Confirmation::Ack(_) => Ok(()),
        Confirmation::Nack(_) => Err(PublishError::Refused),
        // The channel's giver forgot confirm mode. To publish again and again would make it worse.
        Confirmation::NotRequested => {
            tracing::warn!("the channel for facts is not in confirm mode: a fact may be lost unseen");
            Ok(())
        }
    }
}
