//! On RabbitMQ events come to a queue of our own, from the moment on at which it is bound.

use std::{io, ops::ControlFlow, time::Duration};

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer, ErrorKind,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
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

/// For the goodbye to the broker; the queue goes with the connection in any case.
const GOODBYE: Duration = Duration::from_secs(1);

pub(super) async fn follow(broker: &settings::Broker, exchange: &str, view: &mut View<'_>) -> Result<(), EventsError> {
    if view.filter.since.is_some() {
        return Err(EventsError::NothingKept);
    }
    let mut link = amqp::connect(broker, PURPOSE).await?;
    loop {
        let lost = match subscribe(&link, exchange).await {
            Ok(consumer) => {
                view.note(&format!("subscribed to {exchange}"))?;
                match show_all(consumer, view).await? {
                    ControlFlow::Break(()) => {
                        link.close(GOODBYE).await;
                        return Ok(());
                    }
                    ControlFlow::Continue(lost) => lost,
                }
            }
            Err(SubscribeError::Refused(detail)) => {
                link.close(GOODBYE).await;
                let (exchange, needs) = (exchange.to_owned(), "configure, write and read rights");
                return Err(EventsError::Refused { exchange, detail, needs });
            }
            Err(SubscribeError::Lost(lost)) => lost,
        };
        view.note(&format!("the link was lost ({lost}); events are missed until it is back"))?;
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

/// Shows events until their source ends, with the cause, or until nobody reads them any more.
async fn show_all(mut source: Consumer, view: &mut View<'_>) -> io::Result<ControlFlow<(), String>> {
    loop {
        let delivery = match source.next().await {
            Some(Ok(delivery)) => delivery,
            Some(Err(err)) => return Ok(ControlFlow::Continue(err.to_string())),
            None => return Ok(ControlFlow::Continue("the broker ended the subscription".to_owned())),
        };
        if view.show(&delivery.data)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        // If the link is gone the source says so next.
        _ = delivery.ack(BasicAckOptions::default()).await;
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
