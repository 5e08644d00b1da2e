//! A producer at full rate: messages as Celery writes them, as fast as the broker takes them, each confirmed.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::json;

use super::{
    runtime::{on, spawn},
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
                    let (body, properties) = task(&format!("{prefix}{next}"));
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

/// Body and properties of Celery's task message, protocol 2.
fn task(id: &str) -> (Vec<u8>, BasicProperties) {
    let body = json!([[id], {}, { "callbacks": null, "errbacks": null, "chain": null, "chord": null }]);
    let mut headers = FieldTable::default();
    for (name, value) in [("lang", "py"), ("task", "app.mark"), ("id", id), ("root_id", id)] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_correlation_id(id.into())
        .with_delivery_mode(2)
        .with_headers(headers);
    (body.to_string().into_bytes(), properties)
}
