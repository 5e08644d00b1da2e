//! Who consumes the lane: somebody who counts what comes, in the place of a worker and much faster, or a Celery worker.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use lapin::{
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use serde_json::{Value, json};

use crate::{
    place::{LANE, Place, Site, WORKER},
    support::{
        celery::{App, Worker},
        redis::Redis,
        runtime::{on, spawn},
        vhost::{Vhost, channel, connect},
        wait::{LONG, until},
    },
};

/// As many as a Celery worker with two processes has in hand.
const PREFETCH: u16 = 8;

/// How long a message takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    Fast,
    /// Longer than a producer takes, so that some wait in the lane.
    Slow,
    /// None is done.
    Not,
}

/// What has come out of the lane, and who takes it.
pub(crate) struct Crew {
    celery: Option<App>,
    worker: Option<Worker>,
    counter: Option<Counter>,
    book: Arc<Book>,
}

/// What those who count have counted.
#[derive(Default)]
struct Book {
    runs: Mutex<BTreeMap<String, u32>>,
    /// Microseconds for each message; the highest value stands for none at all.
    pause: AtomicU64,
}

impl Book {
    fn note(&self, id: &str) {
        *self.runs.lock().unwrap().entry(id.to_owned()).or_default() += 1;
    }

    fn pause(&self) -> Duration {
        Duration::from_micros(self.pause.load(Relaxed))
    }
}

/// Somebody who counts; leaves when told to.
struct Counter {
    leave: Arc<AtomicBool>,
    gone: mpsc::Receiver<()>,
}

impl Crew {
    pub(crate) fn new(place: &Place, celery: bool) -> Self {
        let celery = celery.then(|| App::routed(&place.url(), json!({})));
        Self { celery, worker: None, counter: None, book: Arc::default() }
    }

    pub(crate) fn set_pace(&self, pace: Pace) {
        let pause = match pace {
            Pace::Fast => 0,
            Pace::Slow => 1_000,
            Pace::Not => u64::MAX,
        };
        self.book.pause.store(pause, Relaxed);
    }

    /// Comes, and consumes the lane.
    #[track_caller]
    pub(crate) fn arrive(&mut self, place: &Place) {
        match (&self.celery, &place.site) {
            (Some(app), _) => self.worker = Some(app.worker(LANE, WORKER, &["-c", "1"])),
            (None, Site::Rabbitmq(vhost)) => self.counter = Some(count_on_rabbitmq(vhost, Arc::clone(&self.book))),
            (None, Site::Redis(redis)) => self.counter = Some(count_on_redis(redis, Arc::clone(&self.book))),
        }
    }

    /// Goes, in good order: what it has in hand and has not counted goes back to the lane.
    #[track_caller]
    pub(crate) fn leave(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            assert!(worker.stop().is_some(), "{}", worker.log());
        }
        if let Some(counter) = self.counter.take() {
            counter.leave.store(true, Relaxed);
            counter.gone.recv_timeout(LONG).unwrap();
        }
    }

    /// Waits for a Celery worker that goes by itself.
    #[track_caller]
    pub(crate) fn wait_until_gone(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            assert!(worker.wait().success(), "{}", worker.log());
        }
    }

    pub(crate) fn is_there(&self) -> bool {
        self.worker.is_some() || self.counter.is_some()
    }

    /// How often each message has come.
    pub(crate) fn runs(&self) -> BTreeMap<String, u32> {
        self.celery.as_ref().map_or_else(|| self.book.runs.lock().unwrap().clone(), App::runs)
    }

    /// How many have come, those that came twice counted twice.
    pub(crate) fn total(&self) -> usize {
        self.celery
            .as_ref()
            .map_or_else(|| self.book.runs.lock().unwrap().values().map(|times| *times as usize).sum(), App::written)
    }

    /// Waits until nothing is in the lane, or nobody there, and nothing has come for a while; says how many have come.
    #[track_caller]
    pub(crate) fn settle(&self, place: &Place) -> usize {
        // A Celery worker may have something in its hands that it has not begun.
        let calm = Duration::from_millis(if self.celery.is_some() { 1_000 } else { 200 });
        let (mut last, mut since) = (self.total(), Instant::now());
        until(LONG, "what was in the lane has run", || {
            let now = self.total();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            since.elapsed() > calm && (!self.is_there() || place.in_lane() == 0)
        });
        last
    }
}

fn count_on_rabbitmq(vhost: &Vhost, book: Arc<Book>) -> Counter {
    let connection = connect(vhost.url());
    let channel = channel(&connection);
    // As a worker does: whoever comes before the gate has to have something to consume.
    vhost.declare_queue(LANE);
    let mut deliveries = on(async move {
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        channel.basic_consume(LANE.into(), "crew".into(), BasicConsumeOptions::default(), FieldTable::default()).await
    })
    .unwrap();
    let (leave, (tell, gone)) = (Arc::<AtomicBool>::default(), mpsc::channel());
    let leaves = Arc::clone(&leave);
    spawn(async move {
        while !leaves.load(Relaxed) {
            let next = tokio::time::timeout(Duration::from_millis(50), deliveries.next());
            let Ok(Some(Ok(delivery))) = next.await else { continue };
            while book.pause() > Duration::from_secs(1) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if !book.pause().is_zero() {
                tokio::time::sleep(book.pause()).await;
            }
            if let Some(id) = id(&delivery) {
                book.note(&id);
            }
            // The connection ends only after it, or the next one would have the message as well.
            let _ = delivery.ack(BasicAckOptions::default()).await;
        }
        let _ = connection.close(200, "done".into()).await;
        let _ = tell.send(());
    });
    Counter { leave, gone }
}

/// A message of the gate's own has none.
fn id(delivery: &Delivery) -> Option<String> {
    let id = delivery.properties.headers().as_ref()?.inner().get("id")?;
    id.as_long_string().map(ToString::to_string)
}

fn count_on_redis(redis: &Redis, book: Arc<Book>) -> Counter {
    let (mut connection, mut mouth) = (redis.connect().unwrap(), redis.connect().unwrap());
    let channel = |key: &str| format!("/{}.celeryev/{key}", redis.database());
    let [alive, offline] = ["worker.heartbeat", "worker.offline"].map(channel);
    let (leave, (tell, gone)) = (Arc::<AtomicBool>::default(), mpsc::channel());
    let leaves = Arc::clone(&leave);
    thread::spawn(move || {
        let mut say = |channel: &str, kind: &str| {
            // Its server goes with its case.
            let _ = redis::cmd("PUBLISH").arg(channel).arg(sign(kind)).query::<i64>(&mut mouth);
        };
        let mut said: Option<Instant> = None;
        while !leaves.load(Relaxed) {
            if said.is_none_or(|said| said.elapsed() > Duration::from_secs(1)) {
                said = Some(Instant::now());
                say(&alive, "worker-heartbeat");
            }
            let taken = redis::cmd("BRPOP").arg(LANE).arg(0.1).query::<Option<(String, String)>>(&mut connection);
            match taken {
                Ok(Some((_, message))) => {
                    let message: Value = serde_json::from_str(&message).unwrap();
                    book.note(message["headers"]["id"].as_str().unwrap());
                    thread::sleep(book.pause());
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
        say(&offline, "worker-offline");
        let _ = tell.send(());
    });
    Counter { leave, gone }
}

/// An event of a Celery worker, as kombu publishes it (celery/events/event.py, kombu/transport/virtual/base.py).
fn sign(kind: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let body = json!({ "hostname": WORKER, "type": kind, "timestamp": now, "freq": 2.0 });
    json!({
        "body": STANDARD.encode(body.to_string()),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": { "hostname": WORKER },
        "properties": {
            "delivery_mode": 1,
            "delivery_info": { "exchange": "celeryev", "routing_key": kind.replace('-', ".") },
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "6b3ff3ad-3b19-4a8f-9b0f-0c7f1f6b1d10",
        },
    })
    .to_string()
}
