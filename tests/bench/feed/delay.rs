//! What the way over the gate adds to a task on an idle system: published to the shared queue, or straight to a queue of the
//! same consumer.

use std::{
    sync::mpsc::{Receiver, Sender, channel as std_channel},
    thread,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions},
    types::FieldTable,
};

use super::{FLOOR_LANE, INTAKE, LANE, SOON, WORKER, calm, settings, signs::Signs};
use crate::{
    support::{
        facts::Facts,
        gate::Host,
        redis::Redis,
        runtime::{on, spawn},
        vhost::{channel, connect, vhost},
    },
    table::{Sample, Table},
};

const MESSAGES: usize = 300;
/// The first ones find caches cold on every side.
const WARM_UP: usize = 10;
const SIZE: usize = 1024;

pub(crate) fn measure() -> Vec<Table> {
    vec![on_redis(), on_rabbitmq()]
}

fn on_redis() -> Table {
    let (redis, host) = (Redis::start(), Host::new("delay-redis"));
    let _signs = Signs::start(&redis, vec![WORKER.to_owned()], Duration::from_secs(1));
    let mut facts = Facts::on_redis(&redis);
    let (came, arrivals) = std_channel();
    pop(&redis, came);
    let gate = host.start(&settings(&host, &redis.url(), 1));
    facts.next(SOON, "worker-admitted", WORKER);
    let (mut publisher, body) = (redis.connect().unwrap(), vec![b'x'; SIZE]);
    let times = Times::of(&arrivals, |queue| {
        ::redis::cmd("LPUSH").arg(queue).arg(&body).query::<i64>(&mut publisher).unwrap();
    });
    assert!(gate.stop().success());
    times.table("feed on Redis: what is added to a task, idle system, a client in BRPOP on the lane")
}

/// Takes one after the other, as a worker does that has nothing else to do.
fn pop(redis: &Redis, came: Sender<Instant>) {
    let mut connection = redis.connect().unwrap();
    thread::spawn(move || {
        loop {
            let pop = ::redis::cmd("BRPOP").arg(LANE).arg(FLOOR_LANE).arg(1).query(&mut connection);
            let Ok(popped): ::redis::RedisResult<Option<(String, Vec<u8>)>> = pop else { return };
            if popped.is_some() && came.send(Instant::now()).is_err() {
                return;
            }
        }
    });
}

fn on_rabbitmq() -> Table {
    let (vhost, host) = (vhost(), Host::new("delay-rabbitmq"));
    for queue in [INTAKE, LANE, FLOOR_LANE] {
        vhost.declare_queue(queue);
    }
    let mut facts = Facts::of(&vhost);
    let (came, arrivals) = std_channel();
    let consuming = connect(vhost.url());
    consume(&channel(&consuming), &came);
    let gate = host.start(&settings(&host, &vhost.url(), 1));
    facts.next(SOON, "worker-admitted", WORKER);
    let connection = connect(vhost.url());
    let publisher = channel(&connection);
    let times = Times::of(&arrivals, |queue| {
        let publisher = publisher.clone();
        let persistent = BasicProperties::default().with_delivery_mode(2);
        on(async move {
            let options = BasicPublishOptions::default();
            publisher.basic_publish("".into(), queue.into(), options, &[b'x'; SIZE], persistent).await.map(drop)
        })
        .unwrap();
    });
    assert!(gate.stop().success());
    times.table("feed on RabbitMQ: what is added to a task, idle system, a consumer that acknowledges at once")
}

/// Both queues on one channel, one message at a time.
fn consume(channel: &lapin::Channel, came: &Sender<Instant>) {
    for queue in [LANE, FLOOR_LANE] {
        let (channel, came) = (channel.clone(), came.clone());
        let mut deliveries = on(async move {
            channel.basic_qos(1, BasicQosOptions::default()).await?;
            channel
                .basic_consume(queue.into(), queue.into(), BasicConsumeOptions::default(), FieldTable::default())
                .await
        })
        .unwrap();
        spawn(async move {
            while let Some(Ok(delivery)) = deliveries.next().await {
                let at = Instant::now();
                let _ = delivery.ack(BasicAckOptions::default()).await;
                let _ = came.send(at);
            }
        });
    }
}

#[derive(Default)]
struct Times {
    gate: Sample,
    floor: Sample,
}

impl Times {
    /// In turn, with a pause that keeps step with nobody: each way gets a message every 50 ms or so.
    fn of(arrivals: &Receiver<Instant>, mut publish: impl FnMut(&'static str)) -> Self {
        calm();
        let mut times = Self::default();
        for n in 0..WARM_UP + MESSAGES {
            for (queue, sample) in [(INTAKE, &mut times.gate), (FLOOR_LANE, &mut times.floor)] {
                thread::sleep(Duration::from_micros(rand::random_range(15_000..35_000)));
                let begin = Instant::now();
                publish(queue);
                let came = arrivals.recv_timeout(SOON).unwrap();
                if n >= WARM_UP {
                    sample.push_time(came - begin);
                }
            }
        }
        times
    }

    fn table(&self, title: &str) -> Table {
        let mut table = Table::new(title);
        table
            .row("published to the shared queue -> out of the lane", "ms", &self.gate)
            .against("the floor", &self.floor);
        table.row("floor: published to a queue of the same consumer", "ms", &self.floor);
        table.row("added, median less median", "ms", &Sample::one(self.gate.median() - self.floor.median()));
        table.at_most(3.0);
        table.note("depth 1; from just before the publish, one message at a time, in turn with the floor");
        table
    }
}
