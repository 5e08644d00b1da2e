//! How fast a backlog is given back and taken back.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lapin::{
    Channel,
    options::QueueDeclareOptions,
    types::{FieldTable, ShortString},
};

use crate::{
    bare::Bare,
    drift::DRIFTED,
    support::{
        facts::Facts,
        gate::{Host, MANAGED},
        runtime::{on, spawn},
        vhost::{channel, connect, vhost},
    },
    table::{Sample, Table},
};

const ROUNDS: usize = 3;
const MESSAGES: u32 = 10_000;
/// A Celery message with a few arguments.
const SIZE: usize = 1024;
const SOON: Duration = Duration::from_secs(60);
const LANE: &str = "codex-0";
const HELD: &str = "codex-0.held";

pub(crate) fn measure() -> Vec<Table> {
    let (vhost, host) = (vhost(), Host::new("giveback"));
    let mut facts = Facts::of(&vhost);
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    facts.next(SOON, "worker-admitted", LANE);
    host.set_profile(DRIFTED);
    facts.next(SOON, "worker-quarantined", LANE);
    let bare = Bare::new(&vhost, "floor");
    let looks = channel(&connect(vhost.url()));
    let body = vec![b'x'; SIZE];
    for (intake, key) in [("codex", LANE), ("floor.in", "key")] {
        // Not all at once: lapin keeps what the broker has not yet read.
        for _ in 0..10 {
            vhost.publish(intake, key, vec![body.clone(); MESSAGES as usize / 10]);
        }
    }
    let (mut given, mut given_floor, mut taken, mut taken_floor) = <(Sample, Sample, Sample, Sample)>::default();
    for _ in 0..ROUNDS {
        host.set_profile(MANAGED);
        given.push(rate(&looks, LANE));
        facts.next(SOON, "worker-admitted", LANE);
        let floor = bare.clone();
        let moving = Arc::new(());
        let held = Arc::clone(&moving);
        spawn(async move {
            floor.open().await.unwrap();
            floor.move_all("held", 512, MESSAGES as usize).await.unwrap();
            drop(held);
        });
        given_floor.push(rate(&looks, "floor.lane"));
        wait_for_end(&moving);

        host.set_profile(DRIFTED);
        taken.push(rate(&looks, HELD));
        facts.next(SOON, "worker-quarantined", LANE);
        let floor = bare.clone();
        let held = Arc::clone(&moving);
        spawn(async move {
            floor.shut().await.unwrap();
            floor.move_all("lane", 10_000, MESSAGES as usize).await.unwrap();
            drop(held);
        });
        taken_floor.push(rate(&looks, "floor.held"));
        wait_for_end(&moving);
    }
    assert!(gate.stop().success());
    let mut table = Table::new("giveback: 10,000 held messages of 1 KiB, each published, confirmed, then acknowledged");
    table.row("given back, worker-gate", "messages/s", &given).against("the floor", &given_floor);
    table.row("floor: a bare client with the same window of 128", "messages/s", &given_floor);
    table.row("taken back out of the lane, worker-gate", "messages/s", &taken).against("the floor", &taken_floor);
    table.row("floor: a bare client with the same window of 128", "messages/s", &taken_floor);
    vec![table]
}

/// Watches a queue fill up, from the first message to the last one.
fn rate(channel: &Channel, queue: &str) -> f64 {
    let mut first: Option<(Instant, u32)> = None;
    let begin = Instant::now();
    loop {
        let messages = count(channel, queue);
        let now = Instant::now();
        let (since, at_first) = *first.get_or_insert((now, messages));
        if messages == 0 {
            first = None;
        }
        if messages >= MESSAGES {
            return f64::from(MESSAGES - at_first) / (now - since).as_secs_f64();
        }
        assert!(begin.elapsed() < SOON, "{messages} of {MESSAGES} came to {queue} within {SOON:?}");
        // Often enough for a thousandth of the time, seldom enough not to take part in the race.
        thread::sleep(Duration::from_millis(2));
    }
}

fn count(channel: &Channel, queue: &str) -> u32 {
    let (channel, queue) = (channel.clone(), ShortString::from(queue));
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    on(async move { channel.queue_declare(queue, options, FieldTable::default()).await }).unwrap().message_count()
}

/// Waits until nobody but the caller has it.
fn wait_for_end(moving: &Arc<()>) {
    crate::support::wait::until(SOON, "the bare client is done", || Arc::strong_count(moving) == 1);
}
