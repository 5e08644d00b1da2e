//! On RabbitMQ events come to a queue of the subscriber's: one of its own, from the moment on at which it is bound, or one that
//! stays.

use std::{io, ops::ControlFlow, time::Duration};

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer, ErrorKind, ExchangeKind,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;

use super::{EventsError, PURPOSE, Pauses, View, WINDOW};
use crate::{
    amqp::{self, Link, Retry},
    report::outbox::declare,
    settings,
};

/// For a queue and a binding: loopback takes a millisecond, a broker that hangs takes for ever.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// For the goodbye to the broker; a queue of our own goes with the connection in any case.
const GOODBYE: Duration = Duration::from_secs(1);

/// Events that wait for a subscriber that is slow: 20 MB of the broker's at 2 KiB each. Beyond that the oldest goes.
const BACKLOG: i32 = 10_000;

/// The same for one that may be away: a gate with ten workers, which has some twenty heartbeats and health checks a minute,
/// fills it in three days.
const DURABLE_BACKLOG: i32 = 100_000;

const NEEDS: &str = "configure, write and read rights";
const DURABLE_NEEDS: &str =
    "configure, write and read rights for a queue of the name behind --durable, and read rights for the exchange";

pub(super) async fn follow(broker: &settings::Broker, exchange: &str, view: &mut View<'_>) -> Result<(), EventsError> {
    if view.since().is_some() && view.durable().is_none() {
        return Err(EventsError::NothingKept);
    }
    let mut link = amqp::connect(broker, PURPOSE).await?;
    loop {
        let subscribed = subscribe(&link, exchange, view.durable()).await;
        let lost = match subscribed {
            Ok((consumer, others)) => {
                view.note(&format!("subscribed to {exchange}"))?;
                if let (Some(name), 1..) = (view.durable(), others) {
                    let note = format!("another subscriber uses the name {name:?}; this one takes over when it goes");
                    view.note(&note)?;
                }
                match show_all(consumer, view).await? {
                    ControlFlow::Break(()) => {
                        link.close(GOODBYE).await;
                        return Ok(());
                    }
                    ControlFlow::Continue(lost) => lost,
                }
            }
            Err(SubscribeError::Fatal(error)) => {
                link.close(GOODBYE).await;
                return Err(error);
            }
            Err(SubscribeError::Lost(lost)) => lost,
        };
        let meanwhile = match view.durable() {
            Some(_) => "the queue keeps what comes until it is back",
            None => "events are missed until it is back",
        };
        view.note(&format!("the link was lost ({lost}); {meanwhile}"))?;
        link = reconnect(broker, view).await?;
    }
}

async fn reconnect(broker: &settings::Broker, view: &mut View<'_>) -> Result<Link, EventsError> {
    let mut pauses = Pauses::new();
    loop {
        pauses.next().await;
        match amqp::connect(broker, PURPOSE).await {
            Ok(link) => return Ok(link),
            Err(error) => view.failed(error.into())?,
        }
    }
}

/// Handles events until their source ends, with the cause, or until nobody reads them any more.
///
/// A delivery may be tried for longer than RabbitMQ waits for an acknowledgement (`consumer_timeout`, half an hour): it then
/// ends the channel and gives the event again, which is known again by its id.
async fn show_all(mut source: Consumer, view: &mut View<'_>) -> io::Result<ControlFlow<(), String>> {
    loop {
        let delivery = match source.next().await {
            Some(Ok(delivery)) => delivery,
            Some(Err(err)) => return Ok(ControlFlow::Continue(err.to_string())),
            None => return Ok(ControlFlow::Continue("the broker ended the subscription".to_owned())),
        };
        if view.handle(&delivery.data).await?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        // If the link is gone the source says so next.
        _ = delivery.ack(BasicAckOptions::default()).await;
    }
}

#[derive(Debug)]
enum SubscribeError {
    Lost(String),
    Fatal(EventsError),
}

impl SubscribeError {
    fn new(err: &lapin::Error, exchange: &str, durable: Option<&str>) -> Self {
        let detail = err.to_string();
        match (amqp::retry(err), durable) {
            (Retry::NeedsPerson, Some(name)) if has_code(err, 406) && detail.contains("for queue") => {
                Self::Fatal(EventsError::Taken { name: name.to_owned(), detail })
            }
            (Retry::NeedsPerson, _) => {
                let needs = if durable.is_some() { DURABLE_NEEDS } else { NEEDS };
                let exchange = exchange.to_owned();
                Self::Fatal(EventsError::Refused { exchange, detail, needs })
            }
            (Retry::Soon | Retry::AfterReconnect, _) => Self::Lost(detail),
        }
    }
}

/// The events, and how many others consume the same queue.
async fn subscribe(link: &Link, exchange: &str, durable: Option<&str>) -> Result<(Consumer, u32), SubscribeError> {
    let subscribing = async {
        let channel = link.connection().create_channel().await?;
        match consume(&channel, exchange, durable).await {
            // No gate has been here yet. Whoever comes first makes the exchange, so that nothing is missed; the error
            // has ended the channel.
            Err(err) if has_code(&err, 404) => {
                let channel = link.connection().create_channel().await?;
                declare(&channel, exchange, ExchangeKind::Fanout).await?;
                consume(&channel, exchange, durable).await
            }
            result => result,
        }
    };
    match timeout(SUBSCRIBE_TIMEOUT, subscribing).await {
        Ok(result) => result.map_err(|err| SubscribeError::new(&err, exchange, durable)),
        Err(_) => Err(SubscribeError::Lost("no answer in time".to_owned())),
    }
}

fn has_code(err: &lapin::Error, code: u16) -> bool {
    matches!(err.kind(), ErrorKind::ProtocolError(error) if error.get_id() == code)
}

/// Without a name, a queue of our own, which the broker names and removes with the connection.
async fn consume(channel: &Channel, exchange: &str, durable: Option<&str>) -> lapin::Result<(Consumer, u32)> {
    let none = QueueDeclareOptions::default();
    let options = match durable {
        Some(_) => QueueDeclareOptions { durable: true, ..none },
        None => QueueDeclareOptions { exclusive: true, auto_delete: true, ..none },
    };
    let name = durable.unwrap_or_default();
    let queue = channel.queue_declare(name.into(), options, arguments(durable.is_some())).await?;
    let (name, others) = (queue.name().clone(), queue.consumer_count());
    let bind = QueueBindOptions::default();
    channel.queue_bind(name.clone(), exchange.into(), "".into(), bind, FieldTable::default()).await?;
    channel.basic_qos(WINDOW, BasicQosOptions::default()).await?;
    let consumer =
        channel.basic_consume(name, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
    Ok((consumer, others))
}

/// What the queue is like. Two who share one would get every other event, in no order; so the second waits for the first to go.
fn arguments(durable: bool) -> FieldTable {
    let mut arguments = FieldTable::default();
    let most = if durable { DURABLE_BACKLOG } else { BACKLOG };
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(most));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("drop-head".into()));
    if durable {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    arguments
}
