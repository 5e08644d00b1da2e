//! A producer at full rate: messages as Celery writes them, as fast as the broker takes them, each confirmed.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};

use super::{
    runtime::{on, spawn},
    tasks::Task,
    vhost::{Vhost, channel, connect},
    wait::until,
};

/// What may be on its way to the broker.
const IN_FLIGHT: usize = 200;

/// Publishes `app.mark` tasks with the ids `prefix` and a number until the count is reached.
pub(crate) struct Flood {
    tally: Arc<Tally>,
    count: u32,
}

#[derive(Default)]
struct Tally {
    confirmed: AtomicU32,
    returned: AtomicU32,
}

impl Flood {
    /// Starts publishing; returns at once. What the broker cannot route it hands back, and it is published again.
    pub(crate) fn start(vhost: &Vhost, exchange: &str, key: &str, prefix: &str, count: u32) -> Self {
        let flood = Self { tally: Arc::default(), count };
        let (exchange, key, prefix) = (ShortString::from(exchange), ShortString::from(key), prefix.to_owned());
        let connection = connect(vhost.url());
        let channel = channel(&connection);
        on({
            let channel = channel.clone();
            async move { channel.confirm_select(ConfirmSelectOptions::default()).await }
        })
        .unwrap();
        let tally = Arc::clone(&flood.tally);
        spawn(async move {
            let _connection = connection;
            #[expect(clippy::async_yields_async, reason = "the confirm comes later")]
            let publish = async |body: &[u8], properties| {
                let options = BasicPublishOptions { mandatory: true, ..Default::default() };
                channel.basic_publish(exchange.clone(), key.clone(), options, body, properties).await.unwrap()
            };
            let (mut in_flight, mut next) = (FuturesUnordered::new(), 0);
            while tally.confirmed.load(Ordering::Relaxed) < count {
                while next < count && in_flight.len() < IN_FLIGHT {
                    let (body, properties) = Task::mark(format!("{prefix}{next}")).to_amqp();
                    in_flight.push(publish(&body, properties).await);
                    next += 1;
                }
                match in_flight.next().await.unwrap().unwrap() {
                    Confirmation::Ack(None) => {
                        tally.confirmed.fetch_add(1, Ordering::Relaxed);
                    }
                    Confirmation::Ack(Some(returned)) => {
                        tally.returned.fetch_add(1, Ordering::Relaxed);
                        in_flight.push(publish(&returned.delivery.data, returned.delivery.properties.clone()).await);
                    }
                    refused @ (Confirmation::Nack(_) | Confirmation::NotRequested) => panic!("{refused:?}"),
                }
            }
        });
        flood
    }

    /// How many the broker has confirmed so far.
    pub(crate) fn confirmed(&self) -> u32 {
        self.tally.confirmed.load(Ordering::Relaxed)
    }

    /// Waits until all have been confirmed, and says how many the broker had handed back.
    #[track_caller]
    pub(crate) fn finish(self) -> u32 {
        until(super::wait::LONG, "everything is published", || self.confirmed() == self.count);
        self.tally.returned.load(Ordering::Relaxed)
    }
}
