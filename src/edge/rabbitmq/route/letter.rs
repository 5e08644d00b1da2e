//! Where a moved message goes, and what is written on it. Pure: a delivery and the names in, a destination out.

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{mover::Way, names::Names};
use crate::edge::rehome::entry_key;

/// Marks the probe message; a mover drops it.
pub(super) const PROBE_HEADER: &str = "x-worker-gate-probe";
/// On a message that the intercept published to the intake: the intercept's mark. One that comes back to the same intercept
/// came by a binding that passes the edge by. On a hash intake the mark goes with the message to whichever worker is fit, and
/// Celery copies it to its retries; that means nothing to any other intercept, nor to this worker's next one.
const MOVED_HEADER: &str = "x-worker-gate-moved";
/// On a message in the holding queue that did not come by the intake: how it came.
const EXCHANGE_HEADER: &str = "x-worker-gate-exchange";
const KEY_HEADER: &str = "x-worker-gate-key";
/// On a message that was held for a key that the worker no longer has, when it is published to the intake again.
const STRAY_HEADER: &str = "x-worker-gate-stray";

/// All that a gate ever writes on a message.
const OURS: [&str; 4] = [MOVED_HEADER, EXCHANGE_HEADER, KEY_HEADER, STRAY_HEADER];

/// Where a moved message goes next, and as what.
#[derive(Debug, PartialEq)]
pub(super) struct Destination {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) properties: BasicProperties,
}

/// Where a message goes that was taken out of the lane: to the intake again if it came by it, so that the broker decides
/// where it waits and a later retry of its task goes through the intake; else straight to the holding queue, with its way
/// remembered, because it would only come back the way it came.
pub(super) fn take_back(delivery: &Delivery, names: &Names, mark: &AMQPValue) -> Destination {
    if let Some(shared) = &names.shared {
        // Anybody's again; however it came to this lane, to the next one it comes by that one's edge.
        return Destination { exchange: ShortString::default(), key: shared.clone(), properties: plain(delivery) };
    }
    let mut headers = headers(&delivery.properties);
    let came_round = headers.inner().get(MOVED_HEADER) == Some(mark);
    if delivery.exchange == names.intake && !came_round {
        headers.insert(MOVED_HEADER.into(), mark.clone());
        return Destination {
            exchange: names.intake.clone(),
            key: delivery.routing_key.clone(),
            properties: with_headers(&delivery.properties, headers),
        };
    }
    let mut headers = without(&headers, &[MOVED_HEADER]);
    headers.insert(EXCHANGE_HEADER.into(), AMQPValue::LongString(delivery.exchange.as_str().into()));
    headers.insert(KEY_HEADER.into(), AMQPValue::LongString(delivery.routing_key.as_str().into()));
    Destination {
        exchange: ShortString::default(),
        key: names.lane_held.clone(),
        properties: with_headers(&delivery.properties, headers),
    }
}

/// Where a message goes that waited for a worker which is gone: the other's way in, as if it had been published there, however it
/// came. On a hash intake any key will do, so it keeps its own.
pub(super) fn rehome(delivery: &Delivery, to: &Names) -> Destination {
    if let Some(shared) = &to.shared {
        return Destination { exchange: ShortString::default(), key: shared.clone(), properties: plain(delivery) };
    }
    let entry = to.keys.as_ref().and_then(|(kind, keys)| entry_key(*kind, keys));
    let key = entry.or_else(|| header(&delivery.properties, KEY_HEADER));
    let key = key.map_or_else(|| delivery.routing_key.clone(), ShortString::from);
    Destination { exchange: to.intake.clone(), key, properties: plain(delivery) }
}

/// Where a message of a shared queue goes: by the edge, so that a later retry of its task goes the same way.
pub(super) fn feed(delivery: &Delivery, names: &Names) -> Destination {
    Destination { exchange: names.intake.clone(), key: names.lane.clone(), properties: plain(delivery) }
}

/// The key of a message that is to be given back and is not this worker's any more.
pub(super) fn stray_key(way: Way, delivery: &Delivery, names: &Names) -> Option<ShortString> {
    let came_by_intake = delivery.exchange == names.intake && header(&delivery.properties, EXCHANGE_HEADER).is_none();
    let is_stray = way == Way::GiveBack && came_by_intake && !names.takes(delivery.routing_key.as_str());
    is_stray.then(|| delivery.routing_key.clone())
}

/// Where a held message goes: by the intake if it came by it. One that came another way goes straight to the lane, by the
/// anonymous exchange: a second pass through an exchange that is not ours could reach other queues twice.
pub(super) fn give_back(delivery: &Delivery, names: &Names) -> Destination {
    let remembered = header(&delivery.properties, EXCHANGE_HEADER).zip(header(&delivery.properties, KEY_HEADER));
    let (exchange, key) =
        remembered.unwrap_or_else(|| (delivery.exchange.to_string(), delivery.routing_key.to_string()));
    let mut ours = without(&headers(&delivery.properties), &OURS);
    if exchange == names.intake.as_str() {
        let mut next = &names.intake;
        if !names.takes(&key) {
            // Whose key it is now, the intake knows. If it comes back, no one's that is open, by a pattern that nobody knows
            // any more.
            if header(&delivery.properties, STRAY_HEADER).is_some() {
                next = &names.unrouted;
            } else {
                ours.insert(STRAY_HEADER.into(), AMQPValue::LongString(names.lane.as_str().into()));
            }
        }
        let properties = with_headers(&delivery.properties, ours);
        Destination { exchange: next.clone(), key: key.into(), properties }
    } else {
        let properties = with_headers(&delivery.properties, ours);
        Destination { exchange: ShortString::default(), key: names.lane.clone(), properties }
    }
}

/// A message as it was before any gate had it.
fn plain(delivery: &Delivery) -> BasicProperties {
    let headers = without(&headers(&delivery.properties), &OURS);
    with_headers(&delivery.properties, headers)
}

fn headers(properties: &BasicProperties) -> FieldTable {
    properties.headers().clone().unwrap_or_default()
}

/// A header's text, if it is there and is a long string, which is how the gate and Celery's clients write text.
pub(super) fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    let value = properties.headers().as_ref()?.inner().get(name)?;
    value.as_long_string().map(ToString::to_string)
}

fn without(headers: &FieldTable, names: &[&str]) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in headers.inner() {
        if !names.contains(&name.as_str()) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// The same properties with other headers, and none where there are none. The user id is left out: the broker refuses a
/// message that carries another user's than the publisher's, and one such message would stop all the others.
fn with_headers(properties: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut copy = BasicProperties::default();
    macro_rules! keep {
        ($($field:ident => $with:ident),* $(,)?) => {
            $(if let Some(value) = properties.$field() {
                copy = copy.$with(value.clone());
            })*
        };
    }
    keep!(
        content_type => with_content_type,
        content_encoding => with_content_encoding,
        delivery_mode => with_delivery_mode,
        priority => with_priority,
        correlation_id => with_correlation_id,
        reply_to => with_reply_to,
        expiration => with_expiration,
        message_id => with_message_id,
        timestamp => with_timestamp,
        kind => with_type,
        app_id => with_app_id,
        cluster_id => with_cluster_id,
    );
    if headers.inner().is_empty() { copy } else { copy.with_headers(headers) }
}
