//! A subscriber to the gate's facts.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use lapin::{
    Connection,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::Value;

use super::{
    redis::Redis,
    runtime::{on, spawn},
    vhost::{Vhost, channel, connect},
    wait::eventually,
};

/// The exchange of `events.exchange` in the settings that [`super::gate::Host`] writes.
pub(crate) const EXCHANGE: &str = "worker-gate.health";

/// One event as it came from the exchange.
#[derive(Debug, Clone)]
pub(crate) struct Fact {
    /// When it came here.
    pub(crate) received: SystemTime,
    pub(crate) body: Value,
}

impl Fact {
    /// About a worker, or the gate `worker-gate@NAME`.
    fn is_about(&self, whom: &str) -> bool {
        self.body["worker_name"] == whom || self.body["hostname"] == whom
    }

    /// Its `type`.
    pub(crate) fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }
}

/// A queue of our own, bound to the facts' exchange; on Redis, a subscription to its channel.
pub(crate) struct Facts {
    all: Arc<Mutex<Vec<Fact>>>,
    /// How many [`Facts::next`] has passed.
    passed: usize,
    _ear: Ear,
}

/// What hears for as long as it lives.
enum Ear {
    /// The queue lives as long as its connection.
    Amqp { _connection: Arc<Connection> },
    /// The thread ends when this is set.
    Redis(Arc<AtomicBool>),
}

impl Drop for Ear {
    fn drop(&mut self) {
        match self {
            Self::Amqp { .. } => {}
            Self::Redis(stop) => stop.store(true, Ordering::Relaxed),
        }
    }
}

impl Facts {
    /// Hears everything that is published from now on.
    #[track_caller]
    pub(crate) fn of(vhost: &Vhost) -> Self {
        vhost.declare_exchange(EXCHANGE, "fanout", None);
        let connection = connect(vhost.url());
        let channel = channel(&connection);
        let mut consumer = on(async move {
            let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
            let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
            let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
            channel.queue_bind(queue.clone(), EXCHANGE.into(), "".into(), bind, none).await?;
            let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
            channel.basic_consume(queue, "facts".into(), options, FieldTable::default()).await
        })
        .unwrap();
        let all = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&all);
        spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let body = serde_json::from_slice(&delivery.data).unwrap();
                heard.lock().unwrap().push(Fact { received: SystemTime::now(), body });
            }
        });
        Self { all, passed: 0, _ear: Ear::Amqp { _connection: connection } }
    }

    /// The same on Redis, where a fanout exchange is a channel, and each message has kombu's envelope round it. Hears what
    /// kombu's consumers hear that bind their queue without a key.
    #[track_caller]
    pub(crate) fn on_redis(redis: &Redis) -> Self {
        Self::on_channels(redis, "")
    }

    /// The same for those who bind their queue with the key `#`, as Celery's event receiver does.
    #[track_caller]
    pub(crate) fn on_redis_with_keys(redis: &Redis) -> Self {
        Self::on_channels(redis, "/*")
    }

    #[track_caller]
    fn on_channels(redis: &Redis, keys: &str) -> Self {
        let (all, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let mut connection = redis.connect().unwrap();
        let pattern = format!("/{}.{EXCHANGE}{keys}", redis.database());
        let (heard, ended) = (Arc::clone(&all), Arc::clone(&stop));
        let (ready, is_ready) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let mut subscription = connection.as_pubsub();
            subscription.psubscribe(pattern).unwrap();
            subscription.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            ready.send(()).unwrap();
            while !ended.load(Ordering::Relaxed) {
                match subscription.get_message() {
                    Ok(message) => {
                        let body = opened(message.get_payload_bytes());
                        heard.lock().unwrap().push(Fact { received: SystemTime::now(), body });
                    }
                    Err(e) if e.is_timeout() => {}
                    // Its server has been killed.
                    Err(_) => break,
                }
            }
        });
        is_ready.recv_timeout(Duration::from_secs(20)).unwrap();
        Self { all, passed: 0, _ear: Ear::Redis(stop) }
    }

    /// Everything heard so far.
    pub(crate) fn all(&self) -> Vec<Fact> {
        self.all.lock().unwrap().clone()
    }

    /// The next fact of this type about this worker (or `worker-gate@NAME`, for the gate), after the one that the last call gave.
    #[track_caller]
    pub(crate) fn next(&mut self, bound: Duration, kind: &str, worker: &str) -> Fact {
        let what = format!("a fact {kind} about {worker}");
        let passed = self.passed;
        let (index, fact) = eventually(bound, &what, || {
            let all = self.all.lock().unwrap();
            let mut new = all.iter().enumerate().skip(passed);
            new.find(|(_, f)| f.kind() == kind && f.is_about(worker)).map(|(i, f)| (i, f.clone()))
        });
        self.passed = index + 1;
        fact
    }

    /// The fact of this type about this worker that has so many others of its kind before it, since we began to hear.
    #[track_caller]
    pub(crate) fn nth(&self, bound: Duration, kind: &str, worker: &str, before: usize) -> Fact {
        let what = format!("{} facts {kind} about {worker}", before + 1);
        eventually(bound, &what, || {
            let all = self.all.lock().unwrap();
            all.iter().filter(|fact| fact.kind() == kind && fact.is_about(worker)).nth(before).cloned()
        })
    }
}

/// The body in an envelope as kombu makes it for a fanout (kombu/transport/virtual/base.py, `prepare_message`).
fn opened(envelope: &[u8]) -> Value {
    let envelope: Value = serde_json::from_slice(envelope).unwrap();
    assert_eq!(envelope["content-type"], "application/json", "{envelope}");
    assert_eq!(envelope["properties"]["body_encoding"], "base64", "{envelope}");
    assert_eq!(envelope["properties"]["delivery_info"]["exchange"], EXCHANGE, "{envelope}");
    let body = STANDARD.decode(envelope["body"].as_str().unwrap()).unwrap();
    serde_json::from_slice(&body).unwrap()
}
