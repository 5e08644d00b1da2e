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
    confirmed: Arc<AtomicU32>,
    count: u32,
}

impl Flood {
    /// Starts publishing; returns at once.
    pub(crate) fn start(vhost: &Vhost, exchange: &str, key: &str, prefix: &str, count: u32) -> Self {
        let confirmed = Arc::new(AtomicU32::new(0));
        let (exchange, key, prefix) = (ShortString::from(exchange), ShortString::from(key), prefix.to_owned());
        let connection = connect(vhost.url());
        let channel = channel(&connection);
        on({
            let channel = channel.clone();
            async move { channel.confirm_select(ConfirmSelectOptions::default()).await }
        })
        .unwrap();
        let done = Arc::clone(&confirmed);
        spawn(async move {
            let _connection = connection;
            let mut in_flight = FuturesUnordered::new();
            for number in 0..count {
                let (body, properties) = task(&format!("{prefix}{number}"));
                let options = BasicPublishOptions { mandatory: true, ..Default::default() };
                in_flight.push(
                    channel.basic_publish(exchange.clone(), key.clone(), options, &body, properties).await.unwrap(),
                );
                while in_flight.len() >= IN_FLIGHT {
                    assert!(matches!(in_flight.next().await.unwrap().unwrap(), Confirmation::Ack(None)));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
            while let Some(confirmation) = in_flight.next().await {
                assert!(matches!(confirmation.unwrap(), Confirmation::Ack(None)));
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { confirmed, count }
    }

    /// How many the broker has confirmed so far.
    pub(crate) fn confirmed(&self) -> u32 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Waits until all have been confirmed.
    #[track_caller]
    pub(crate) fn finish(self) {
        until(super::wait::LONG, "everything is published", || self.confirmed() == self.count);
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
