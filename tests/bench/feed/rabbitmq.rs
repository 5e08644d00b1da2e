//! How fast messages get through on RabbitMQ: beside RabbitMQ's own shovel plugin, between queues of the same kind.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, channel as std_channel},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{Connection, options::BasicConsumeOptions, types::FieldTable};
use serde_json::json;

use super::{FLOOR, FLOOR_LANE, INTAKE, LANE, SOON, WORKER, calm, settings};
use crate::{
    drift::DRIFTED,
    support::{
        facts::Facts,
        gate::{Host, MANAGED},
        rabbitmq::Broker,
        runtime::{on, spawn},
        vhost::{Vhost, channel, connect},
        wait::until,
    },
    table::{Sample, Table},
};

/// Many short ones, in turn: what else the machine does changes by the minute.
const ROUNDS: usize = 8;
/// So many messages a round.
pub(crate) const FILL: u32 = 20_000;
/// A Celery message with a few arguments.
const SIZE: usize = 1024;
/// More than may wait while the consumer takes everything at once.
const DEPTH: u32 = 5_000;

pub(crate) fn measure() -> Vec<Table> {
    let vhost = Vhost::on(Broker::with_plugin(Some("rabbitmq_shovel")));
    let host = Host::new("feed-rabbitmq");
    for queue in [INTAKE, LANE, FLOOR, FLOOR_LANE] {
        vhost.declare_queue(queue);
    }
    let (lane, floor_lane) = (Drain::new(&vhost, LANE), Drain::new(&vhost, FLOOR_LANE));
    let mut facts = Facts::of(&vhost);
    host.set_profile(DRIFTED);
    let gate = host.start(&settings(&host, &vhost.url(), DEPTH));
    facts.next(SOON, "worker-config-drifted", WORKER);
    let direct = format!("amqp:///{}", vhost.name());
    let (mut gated, mut shoveled, mut shoveled_inside) = <(Sample, Sample, Sample)>::default();
    let (mut ratio, mut ratio_inside) = <(Sample, Sample)>::default();
    let mut feed = || {
        host.set_profile(MANAGED);
        let rate = lane.rate();
        facts.next(SOON, "worker-admitted", WORKER);
        host.set_profile(DRIFTED);
        facts.next(SOON, "worker-quarantined", WORKER);
        calm();
        rate
    };
    for round in 0..ROUNDS {
        fill(&vhost, "", INTAKE);
        fill(&vhost, "", FLOOR);
        let (by_gate, by_shovel) = in_turn(round, &mut feed, || shovel(&vhost, &vhost.url(), &floor_lane));
        fill(&vhost, "", FLOOR);
        let inside = shovel(&vhost, &direct, &floor_lane);
        gated.push(by_gate);
        shoveled.push(by_shovel);
        shoveled_inside.push(inside);
        ratio.push(by_gate / by_shovel);
        ratio_inside.push(by_gate / inside);
    }
    assert!(gate.stop().success());
    let mut table = Table::new(
        "feed on RabbitMQ: 20,000 persistent messages of 1 KiB, from the first to the last that comes out of the lane",
    );
    table.row("worker-gate", "messages/s", &gated).against("the shovel", &shoveled);
    table.row("  in the shovel's of the same round", "x", &ratio).at_least(1.0);
    table.row("  in that of the shovel without a socket", "x", &ratio_inside);
    table.row("floor: the shovel plugin over loopback, as a gate has to", "messages/s", &shoveled);
    table.row("  and inside of the node, without a socket", "messages/s", &shoveled_inside);
    table.note(
        "shovel: ack-mode on-confirm, its default prefetch of 1000; classic durable queues, drained without acks",
    );
    vec![table]
}

/// Measures both. Who is second finds the node warmer, or busier with what the first one has left, so they take turns.
pub(crate) fn in_turn(round: usize, gate: impl FnOnce() -> f64, floor: impl FnOnce() -> f64) -> (f64, f64) {
    if round.is_multiple_of(2) {
        let by_gate = gate();
        (by_gate, floor())
    } else {
        let by_floor = floor();
        (gate(), by_floor)
    }
}

/// Publishes a round's messages by this exchange and key.
pub(crate) fn fill(vhost: &Vhost, exchange: &str, key: &str) {
    const BATCH: u32 = 2_000;
    // Not all at once: lapin keeps what the broker has not yet read.
    for _ in 0..FILL / BATCH {
        vhost.publish(exchange, key, vec![vec![b'x'; SIZE]; BATCH as usize]);
    }
    calm();
}

/// Lets RabbitMQ move the floor's messages, to itself at this address.
pub(crate) fn shovel(vhost: &Vhost, uri: &str, lane: &Drain) -> f64 {
    let path = format!("/parameters/shovel/{}/floor", vhost.name());
    let value = json!({
        "src-protocol": "amqp091", "src-uri": uri, "src-queue": FLOOR,
        "dest-protocol": "amqp091", "dest-uri": uri, "dest-queue": FLOOR_LANE,
        "ack-mode": "on-confirm",
    });
    vhost.broker().api("PUT", &path, Some(&json!({ "value": value })));
    let rate = lane.rate();
    vhost.broker().api("DELETE", &path, None);
    until(SOON, "the shovel is gone", || vhost.count(FLOOR).is_some_and(|count| count.consumers == 0));
    calm();
    rate
}

/// Takes everything out of a queue at once, and says how long a round's messages took.
pub(crate) struct Drain {
    rounds: Receiver<Duration>,
    // The consumer lives as long as its connection.
    _connection: Arc<Connection>,
}

impl Drain {
    pub(crate) fn new(vhost: &Vhost, queue: &str) -> Self {
        let connection = connect(vhost.url());
        let (channel, queue) = (channel(&connection), queue.to_owned());
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consume =
            async move { channel.basic_consume(queue.into(), "bench".into(), options, FieldTable::default()).await };
        let mut consumer = on(consume).unwrap();
        let (done, rounds) = std_channel();
        spawn(async move {
            let (mut count, mut first) = (0, Instant::now());
            while let Some(Ok(_)) = consumer.next().await {
                count += 1;
                if count == 1 {
                    first = Instant::now();
                }
                if count == FILL {
                    count = 0;
                    let _ = done.send(first.elapsed());
                }
            }
        });
        Self { rounds, _connection: connection }
    }

    /// Waits for all messages of a round.
    pub(crate) fn rate(&self) -> f64 {
        f64::from(FILL - 1) / self.rounds.recv_timeout(SOON).unwrap().as_secs_f64()
    }
}
