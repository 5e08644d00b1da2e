//! A producer that publishes at a steady rate until it is told to stop, whatever becomes of the gate meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};

use crate::{
    place::{Place, Site},
    support::{
        redis::Redis,
        runtime::{on, spawn},
        tasks::Task,
        vhost::{Vhost, channel, connect},
        wait::{LONG, until},
    },
};

/// How often a few are published.
const TICK: Duration = Duration::from_millis(10);
/// What may be on its way to the broker.
const IN_FLIGHT: usize = 200;

/// Publishes `app.mark` tasks with the ids `m-0`, `m-1`, …
pub(crate) struct Load(Arc<Tally>);

#[derive(Default)]
struct Tally {
    /// So many each [`TICK`].
    pace: AtomicUsize,
    stop: AtomicBool,
    ended: AtomicBool,
    published: AtomicUsize,
    returned: AtomicUsize,
}

impl Load {
    /// Starts with so many a second.
    pub(crate) fn start(place: &Place, rate: usize) -> Self {
        let load = Self(Arc::default());
        load.set_rate(rate);
        // The ways in turn.
        let ways = [place.way(0), place.way(1)];
        match &place.site {
            Site::Rabbitmq(vhost) => publish_to_rabbitmq(vhost, ways, Arc::clone(&load.0)),
            Site::Redis(redis) => publish_to_redis(redis, ways[0].1, Arc::clone(&load.0)),
        }
        load
    }

    pub(crate) fn set_rate(&self, rate: usize) {
        self.0.pace.store(rate / 100, Relaxed);
    }

    pub(crate) fn published(&self) -> usize {
        self.0.published.load(Relaxed)
    }

    /// Waits until the broker has all of them, and says how many they are, and how many of them it had handed back.
    #[track_caller]
    pub(crate) fn stop(self) -> (usize, usize) {
        self.0.stop.store(true, Relaxed);
        until(LONG, "everything is published", || self.0.ended.load(Relaxed));
        (self.published(), self.0.returned.load(Relaxed))
    }
}

/// A case that has failed leaves no producer behind.
impl Drop for Load {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

fn publish_to_rabbitmq(vhost: &Vhost, ways: [(&'static str, &'static str); 2], tally: Arc<Tally>) {
    let connection = connect(vhost.url());
    let channel = channel(&connection);
    on({
        let channel = channel.clone();
        async move { channel.confirm_select(ConfirmSelectOptions::default()).await }
    })
    .unwrap();
    spawn(async move {
        let _connection = connection;
        let mut in_flight = FuturesUnordered::new();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let stop = tally.stop.load(Relaxed);
            let now = if stop { 0 } else { tally.pace.load(Relaxed) };
            for _ in 0..now.min(IN_FLIGHT - in_flight.len().min(IN_FLIGHT)) {
                let n = tally.published.fetch_add(1, Relaxed);
                let (body, properties) = Task::mark(format!("m-{n}")).to_amqp();
                in_flight.push(publish(&channel, ways[n % 2], &body, properties).await);
            }
            while let Some(confirmed) = in_flight.next().now_or_never().flatten() {
                match confirmed.unwrap() {
                    Confirmation::Ack(None) => {}
                    Confirmation::Ack(Some(returned)) => {
                        tally.returned.fetch_add(1, Relaxed);
                        let (body, properties) = (&returned.delivery.data, returned.delivery.properties.clone());
                        let key = returned.delivery.routing_key.as_str();
                        let way = if key == ways[0].1 { ways[0] } else { ways[1] };
                        in_flight.push(publish(&channel, way, body, properties).await);
                    }
                    refused @ (Confirmation::Nack(_) | Confirmation::NotRequested) => panic!("{refused:?}"),
                }
            }
            if stop && in_flight.is_empty() {
                break;
            }
        }
        tally.ended.store(true, Relaxed);
    });
}

async fn publish(
    channel: &Channel,
    (exchange, key): (&str, &str),
    body: &[u8],
    properties: BasicProperties,
) -> PublisherConfirm {
    // What nobody takes comes back: a dead gate's edge goes in several steps, and the broker may route between two of them.
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap()
}

fn publish_to_redis(redis: &Redis, list: &'static str, tally: Arc<Tally>) {
    let mut connection = redis.connect().unwrap();
    thread::spawn(move || {
        while !tally.stop.load(Relaxed) {
            let first = tally.published.load(Relaxed);
            let next = first + tally.pace.load(Relaxed);
            let mut pushes = redis::pipe();
            for n in first..next {
                let message = Task::mark(format!("m-{n}")).to_redis("", list);
                pushes.cmd("LPUSH").arg(list).arg(message).ignore();
            }
            let () = pushes.query(&mut connection).unwrap();
            tally.published.store(next, Relaxed);
            thread::sleep(TICK);
        }
        tally.ended.store(true, Relaxed);
    });
}
