//! The address on a message of kombu's: by which exchange and key it came. Celery publishes a task's retry there, and kombu puts
//! there what a stopped worker had not finished (FACTS.md).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

/// What of a message leads to the address; the rest is not looked at.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    properties: Properties<'a>,
}

#[derive(Deserialize)]
struct Properties<'a> {
    #[serde(borrow)]
    delivery_info: &'a RawValue,
}

/// The message as if it had been published to this exchange with this key. All else is as it was, byte for byte; what is no
/// message of kombu's is as it was altogether.
pub(super) fn readdressed<'a>(message: &'a [u8], exchange: &str, key: &str) -> Cow<'a, [u8]> {
    match replaced(message, exchange, key) {
        Some(message) => Cow::Owned(message),
        None => Cow::Borrowed(message),
    }
}

fn replaced(message: &[u8], exchange: &str, key: &str) -> Option<Vec<u8>> {
    let text = str::from_utf8(message).ok()?;
    let envelope: Envelope<'_> = serde_json::from_str(text).ok()?;
    let raw = envelope.properties.delivery_info.get();
    let mut address: Map<String, Value> = serde_json::from_str(raw).ok()?;
    address.insert("exchange".to_owned(), exchange.into());
    address.insert("routing_key".to_owned(), key.into());
    // It is a part of the text.
    let start = (raw.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    let (head, tail) = (text.get(..start)?, text.get(start + raw.len()..)?);
    Some([head, &Value::Object(address).to_string(), tail].concat().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_codex(message: &str) -> String {
        String::from_utf8(readdressed(message.as_bytes(), "codex", "codex-1").into_owned()).unwrap()
    }

    #[test]
    fn the_address_is_another_and_every_other_byte_is_the_same() {
        let odd = r#" {"body": "W1si\u00e4", "headers": {"delivery_info": {"exchange": "x"}, "n": 1e400, "none": [],
            "big": 123456789012345678901234567890, "text": "\"delivery_info\": {"}, "properties": {"priority": 0,
            "delivery_info": {"exchange": "a", "x": [1.50], "routing_key": "b"}, "t": "}"}, "content-type": "é"}"#;
        let expected = odd.replace(
            r#"{"exchange": "a", "x": [1.50], "routing_key": "b"}"#,
            r#"{"exchange":"codex","x":[1.5],"routing_key":"codex-1"}"#,
        );
        assert_eq!(to_codex(odd), expected);
        let (bare, whole) =
            (r#"{"delivery_info":{}}"#, r#"{"delivery_info":{"exchange":"codex","routing_key":"codex-1"}}"#);
        assert_eq!(to_codex(&format!("{{\"properties\":{bare}}}")), format!("{{\"properties\":{whole}}}"));
    }

    #[test]
    fn what_is_no_message_of_kombus_is_left_as_it_is() {
        let half = r#"{"properties":"#;
        let odd = [r#"{"properties":{}}"#, r#"{"properties":{"delivery_info":"x"}}"#];
        for other in ["", "text", "[]", "{}", half].into_iter().chain(odd) {
            assert_eq!(to_codex(other), other);
        }
        assert_eq!(readdressed(b"\xff\xfe", "a", "b").as_ref(), b"\xff\xfe");
    }
}
