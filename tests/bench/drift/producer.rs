//! Publishes all the time, and remembers when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, sync_channel},
    },
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::time::Interval;

use super::{SOON, since};
use crate::support::{
    runtime::{on, spawn},
    vhost::{Vhost, channel, connect},
};

/// What may be on its way to the broker.
const IN_FLIGHT: usize = 200;

/// How often it publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// A message a millisecond.
    Steady,
    /// As fast as the broker takes them.
    Full,
}

/// What the producer knows of a message. Its body is its number, which is its place in the list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Just before it was published.
    pub(super) at: SystemTime,
    /// The broker has said that it has it.
    pub(super) confirmed: SystemTime,
}

pub(super) struct Producer {
    stop: Arc<AtomicBool>,
    sent: Receiver<Vec<Sent>>,
}

impl Producer {
    pub(super) fn start(vhost: &Vhost, exchange: &str, key: &str, pace: Pace) -> Self {
        let (result, sent) = sync_channel(1);
        let producer = Self { stop: Arc::default(), sent };
        let (exchange, key, stop) = (ShortString::from(exchange), ShortString::from(key), Arc::clone(&producer.stop));
        let connection = connect(vhost.url());
        let channel = channel(&connection);
        on({
            let channel = channel.clone();
            async move { channel.confirm_select(ConfirmSelectOptions::default()).await }
        })
        .unwrap();
        spawn(async move {
            let _connection = connection;
            let (mut in_flight, mut next, mut done) = (FuturesUnordered::new(), 0, Vec::new());
            let mut tick = tokio::time::interval(Duration::from_millis(1));
            loop {
                // Cancel-safe: a stream and an interval keep what is not taken.
                tokio::select! {
                    biased;
                    Some(message) = in_flight.next(), if !in_flight.is_empty() => done.push(message),
                    () = turn(pace, &mut tick), if in_flight.len() < IN_FLIGHT && !stop.load(Relaxed) => {
                        in_flight.push(publish(channel.clone(), exchange.clone(), key.clone(), next));
                        next += 1;
                    }
                    else => break,
                }
            }
            done.sort_unstable_by_key(|(number, _)| *number);
            let _ = result.send(done.into_iter().map(|(_, sent)| sent).collect());
        });
        producer
    }

    /// Everything that it has sent, all of it confirmed.
    pub(super) fn stop(self) -> Vec<Sent> {
        self.stop.store(true, Relaxed);
        self.sent.recv_timeout(SOON).unwrap()
    }
}

/// When the next message is due.
async fn turn(pace: Pace, tick: &mut Interval) {
    if pace == Pace::Steady {
        tick.tick().await;
    }
}

/// Transient, so that a confirm says that the message is in its queue, and not that it is on the disk.
async fn publish(channel: Channel, exchange: ShortString, key: ShortString, number: usize) -> (usize, Sent) {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let at = SystemTime::now();
    let body = number.to_string();
    let publish = channel.basic_publish(exchange, key, options, body.as_bytes(), BasicProperties::default());
    assert_eq!(publish.await.unwrap().await.unwrap(), Confirmation::Ack(None));
    (number, Sent { at, confirmed: SystemTime::now() })
}

/// The number in a message.
pub(super) fn number(body: &[u8]) -> usize {
    std::str::from_utf8(body).unwrap().parse().unwrap()
}

/// Confirmed messages a second until this moment.
pub(super) fn rate(sent: &[Sent], until: SystemTime) -> f64 {
    let before = sent.iter().filter(|sent| sent.confirmed < until).count();
    f64::from(u32::try_from(before).unwrap()) / since(sent[0].at, until).as_secs_f64()
}
