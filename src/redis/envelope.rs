//! A message as kombu's virtual transports write it (kombu/transport/virtual/base.py, `Channel.prepare_message`; kombu/transport/redis.py,
//! `_put_fanout`): one JSON object with the body in base64.

use ::redis::{PushInfo, PushKind, Value as Reply};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

/// Wraps a JSON body.
pub fn wrap(body: &str, headers: &Map<String, Value>, exchange: &str, routing_key: &str) -> String {
    json!({
        "body": BASE64_STANDARD.encode(body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "delivery_mode": 2,
            "delivery_info": { "exchange": exchange, "routing_key": routing_key },
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": uuid::Uuid::new_v4().to_string(),
        },
    })
    .to_string()
}

/// A message that was taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The body's bytes.
    pub body: Vec<u8>,
    /// The headers, as they came.
    pub headers: Map<String, Value>,
    /// Where it was published to.
    pub exchange: String,
    /// With this key.
    pub routing_key: String,
}

/// Takes a message apart; `None` if it is none of kombu's.
pub fn unwrap(text: &[u8]) -> Option<Message> {
    let mut message: Value = serde_json::from_slice(text).ok()?;
    let properties = &message["properties"];
    let info = |name: &str| properties["delivery_info"][name].as_str().unwrap_or_default().to_owned();
    let (exchange, routing_key) = (info("exchange"), info("routing_key"));
    let body = message["body"].as_str()?;
    let body = match properties["body_encoding"].as_str() {
        Some("base64") => BASE64_STANDARD.decode(body).ok()?,
        _ => body.as_bytes().to_vec(),
    };
    let headers = if let Value::Object(headers) = message["headers"].take() { headers } else { Map::new() };
    Some(Message { body, headers, exchange, routing_key })
}

/// What has come on a pattern that was subscribed to.
pub fn by_pattern(push: &PushInfo) -> Option<&[u8]> {
    match push.data.get(2) {
        Some(Reply::BulkString(text)) if push.kind == PushKind::PMessage => Some(text),
        Some(_) | None => None,
    }
}

/// The event, as JSON, that has come so.
pub fn event(push: &PushInfo) -> Option<Value> {
    serde_json::from_slice(&unwrap(by_pattern(push)?)?.body).ok()
}

/// The PUB/SUB channel of a fanout exchange. Celery's own options are kombu's defaults: `fanout_prefix` and
/// `fanout_patterns` on.
pub fn fanout_channel(prefix: &str, db: u32, exchange: &str, routing_key: &str) -> String {
    match routing_key {
        "" => format!("{prefix}/{db}.{exchange}"),
        key => format!("{prefix}/{db}.{exchange}/{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_comes_out_as_it_was() {
        let headers = json!({ "hostname": "h" }).as_object().unwrap().clone();
        let message = unwrap(wrap("{\"a\":\"ü\"}", &headers, "x", "a.b").as_bytes()).unwrap();
        let (exchange, routing_key) = ("x".to_owned(), "a.b".to_owned());
        assert_eq!(message, Message { body: "{\"a\":\"ü\"}".into(), headers, exchange, routing_key });
    }

    #[test]
    fn what_is_no_message_of_kombus_is_none() {
        for text in
            ["", "[]", "{}", "{\"body\": 1}", "{\"body\": \"*\", \"properties\": {\"body_encoding\": \"base64\"}}"]
        {
            assert_eq!(unwrap(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_channel_has_the_database_and_the_key_in_its_name() {
        assert_eq!(fanout_channel("", 3, "celeryev", "worker.online"), "/3.celeryev/worker.online");
        assert_eq!(fanout_channel("p:", 0, "x", ""), "p:/0.x");
    }
}
