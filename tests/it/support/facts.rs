//! A subscriber to the gate's facts.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use lapin::{
    Connection,
    options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::Value;

use super::{
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

/// A queue of our own, bound to the facts' exchange.
pub(crate) struct Facts {
    all: Arc<Mutex<Vec<Fact>>>,
    /// How many [`Facts::next`] has passed.
    passed: usize,
    // The queue lives as long as its connection.
    _connection: Arc<Connection>,
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
        Self { all, passed: 0, _connection: connection }
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
}
