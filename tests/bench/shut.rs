//! From an edit of the profile to the broker's word that the edge is shut, and to the first message that is held.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime},
};

use lapin::{BasicProperties, Channel, options::BasicPublishOptions};

use crate::{
    bare::Bare,
    lane::Lane,
    support::{
        facts::Facts,
        gate::{Host, MANAGED},
        runtime::{on, spawn},
        vhost::{Message, channel, connect, vhost},
        wait::until,
    },
    table::{Sample, Table},
};

const ROUNDS: usize = 40;
const SOON: Duration = Duration::from_secs(30);
const LANE: &str = "codex-0";
pub(crate) const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

pub(crate) fn measure() -> Vec<Table> {
    let (vhost, host) = (vhost(), Host::new("shut"));
    let mut facts = Facts::of(&vhost);
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    facts.next(SOON, "worker-admitted", LANE);
    let (bare, lane) = (Bare::new(&vhost, "floor"), Lane::consume(&vhost, LANE));
    let publish = channel(&connect(vhost.url()));
    let (mut seen_to_shut, mut edit_to_held, mut missed, mut floor) = <(Sample, Sample, Sample, Sample)>::default();
    for _ in 0..ROUNDS {
        // The edit must not keep step with the gate's looks at the file.
        thread::sleep(Duration::from_millis(rand::random_range(100..500)));
        let producer = Producer::start(&publish);
        until(SOON, "the messages flow", || !lane.take().is_empty());
        let edited = SystemTime::now();
        host.set_profile(DRIFTED);
        let fact = facts.next(SOON, "worker-quarantined", LANE);
        let sent = producer.stop();
        seen_to_shut.push(fact.body["latency_ms"].as_f64().unwrap());
        // What the intercept took out of the lane is there as well, with a header that says so.
        let was_moved = |message: &Message| {
            message.properties.headers().as_ref().is_some_and(|h| h.inner().contains_key("x-worker-gate-moved"))
        };
        let held = vhost.drain("codex-0.held");
        let first = held.iter().filter(|message| !was_moved(message)).map(number).min().unwrap();
        edit_to_held.push_time(sent[first].duration_since(edited).unwrap_or_default());
        let is_too_late = |n: &usize| sent[*n] > edited;
        let came = lane.take().into_iter().map(|arrival| std::str::from_utf8(&arrival.body).unwrap().parse().unwrap());
        missed.push(f64::from(u32::try_from(came.filter(is_too_late).count()).unwrap()));
        let bare = bare.clone();
        floor.push_time(on(async move {
            bare.open().await.unwrap();
            bare.shut().await.unwrap()
        }));
        host.set_profile(MANAGED);
        facts.next(SOON, "worker-admitted", LANE);
        lane.take();
    }
    assert!(gate.stop().success());
    let mut table =
        Table::new("shut: the profile is edited by a rename while a producer publishes 1,000 messages a second");
    table.row("gate sees it -> edge shut, confirmed", "ms", &seen_to_shut).against("the floor", &floor);
    table.row("floor: exchange.unbind by a bare client", "ms", &floor);
    table.row("edit -> first message that is held", "ms", &edit_to_held);
    table.row("messages sent after the edit that still went to the worker", "", &missed);
    table.note("a message is published every millisecond, which is also how finely the edit's effect can be seen");
    vec![table]
}

fn number(message: &Message) -> usize {
    message.text().parse().unwrap()
}

/// Publishes a number every millisecond to the intake, and remembers when.
struct Producer {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Option<Vec<SystemTime>>>>,
}

impl Producer {
    fn start(channel: &Channel) -> Self {
        let producer = Self { stop: Arc::default(), done: Arc::default() };
        let (channel, stop, done) = (channel.clone(), Arc::clone(&producer.stop), Arc::clone(&producer.done));
        spawn(async move {
            let (mut sent, mut tick) = (Vec::new(), tokio::time::interval(Duration::from_millis(1)));
            while !stop.load(Relaxed) {
                tick.tick().await;
                let body = sent.len().to_string();
                sent.push(SystemTime::now());
                let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                let publish = channel.basic_publish("codex".into(), LANE.into(), options, body.as_bytes(), properties);
                publish.await.unwrap();
            }
            *done.lock().unwrap() = Some(sent);
        });
        producer
    }

    fn stop(self) -> Vec<SystemTime> {
        self.stop.store(true, Relaxed);
        let mut sent = None;
        until(SOON, "the producer stops", || {
            sent = self.done.lock().unwrap().take();
            sent.is_some()
        });
        sent.unwrap()
    }
}
