//! Task messages as Celery writes them (protocol 2), for tests that need more of them, or sooner, than Celery can publish.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use uuid::Uuid;

/// One task of tests/it/app.py. Its id is its first argument too.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    name: &'static str,
    id: String,
    more: Vec<Value>,
    priority: u8,
}

impl Task {
    /// `app.mark`: leaves a mark and is done.
    pub(crate) fn mark(id: impl Into<String>) -> Self {
        Self { name: "app.mark", id: id.into(), more: Vec::new(), priority: 0 }
    }

    /// `app.slow`: leaves a mark, takes so many seconds, and leaves another.
    pub(crate) fn slow(id: impl Into<String>, seconds: f64) -> Self {
        Self { name: "app.slow", more: vec![json!(seconds)], ..Self::mark(id) }
    }

    /// The same with a priority. On Redis the lowest comes first, on RabbitMQ the highest.
    pub(crate) fn with_priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// As an AMQP message.
    pub(crate) fn to_amqp(&self) -> (Vec<u8>, BasicProperties) {
        let mut headers = FieldTable::default();
        for (name, value) in self.headers() {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_correlation_id(self.id.as_str().into())
            .with_delivery_mode(2)
            .with_priority(self.priority)
            .with_headers(headers);
        (self.body().into_bytes(), properties)
    }

    /// As an element of a list of Redis, published with this exchange and key ("" and a queue's name, for a queue).
    pub(crate) fn to_redis(&self, exchange: &str, key: &str) -> String {
        let headers: serde_json::Map<String, Value> =
            self.headers().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        json!({
            "body": STANDARD.encode(self.body()),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": {
                "correlation_id": self.id,
                "delivery_mode": 2,
                "delivery_info": { "exchange": exchange, "routing_key": key },
                "priority": self.priority,
                "body_encoding": "base64",
                "delivery_tag": Uuid::new_v4().to_string(),
            },
        })
        .to_string()
    }

    /// What it is sorted by on Redis.
    pub(crate) fn priority(&self) -> u8 {
        self.priority
    }

    fn headers(&self) -> [(&'static str, &str); 4] {
        [("lang", "py"), ("task", self.name), ("id", &self.id), ("root_id", &self.id)]
    }

    fn body(&self) -> String {
        let mut arguments = vec![json!(self.id)];
        arguments.extend(self.more.iter().cloned());
        json!([arguments, {}, { "callbacks": null, "errbacks": null, "chain": null, "chord": null }]).to_string()
    }
}
