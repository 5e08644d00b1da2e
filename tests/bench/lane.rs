//! The end of the way: a consumer of the lane that notes when each message came.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use lapin::{Connection, options::BasicConsumeOptions, types::FieldTable};

use crate::support::{
    runtime::{on, spawn},
    vhost::{Vhost, channel, connect},
    wait::eventually,
};

/// A message that came.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) at: SystemTime,
    pub(crate) body: Vec<u8>,
}

/// Consumes a lane without acknowledging anything, which is the least that a worker does.
pub(crate) struct Lane {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    // The consumer lives as long as its connection.
    _connection: Arc<Connection>,
}

impl Lane {
    #[track_caller]
    pub(crate) fn consume(vhost: &Vhost, lane: &str) -> Self {
        let connection = connect(vhost.url());
        let (channel, lane) = (channel(&connection), lane.to_owned());
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consume =
            async move { channel.basic_consume(lane.into(), "bench".into(), options, FieldTable::default()).await };
        let mut consumer = on(consume).unwrap();
        let arrivals = Arc::<Mutex<Vec<_>>>::default();
        let heard = Arc::clone(&arrivals);
        spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let at = SystemTime::now();
                heard.lock().unwrap().push(Arrival { at, body: delivery.data });
            }
        });
        Self { arrivals, _connection: connection }
    }

    /// Takes what has come so far.
    pub(crate) fn take(&self) -> Vec<Arrival> {
        std::mem::take(&mut *self.arrivals.lock().unwrap())
    }

    /// Waits until so many have come, and takes them.
    #[track_caller]
    pub(crate) fn wait(&self, bound: Duration, messages: usize) -> Vec<Arrival> {
        let what = format!("{messages} messages in the lane");
        eventually(bound, &what, || (self.arrivals.lock().unwrap().len() >= messages).then_some(()));
        self.take()
    }
}
