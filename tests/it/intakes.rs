//! Intakes of each type, and what a message looks like after it was held, given back and taken back.

use std::{collections::BTreeMap, time::Duration};

use lapin::{
    BasicProperties, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString},
};

use crate::support::{
    celery::App,
    gate::{Host, MANAGED},
    runtime::on,
    vhost::{Message, Vhost, channel, connect, vhost},
    wait::until,
};

const SOON: Duration = Duration::from_secs(30);
const LANE: &str = "codex-0";
const HELD: &str = "codex-0.held";
const OTHER: &str = "codex-1";
const DRIFTED: &str = "approval_policy = \"on-request\"\n";

/// Settings with one worker, whose lane is [`LANE`], on such an intake.
fn settings(host: &Host, vhost: &Vhost, intake: &str) -> String {
    let mut settings = host.settings_without_workers(&vhost.url());
    host.add_worker(&mut settings, LANE, intake);
    settings
}

/// Publishes each message, and panics if the broker had no queue for one.
#[track_caller]
fn publish(url: String, exchange: &str, messages: Vec<(String, Vec<u8>, BasicProperties)>) {
    let (connection, exchange) = (connect(url), ShortString::from(exchange));
    let channel = channel(&connection);
    let unrouted = on(async move {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let mut unrouted = Vec::new();
        for (key, body, properties) in messages {
            let publish =
                channel.basic_publish(exchange.clone(), key.as_str().into(), options, &body, properties).await?;
            if !matches!(publish.await?, Confirmation::Ack(None)) {
                unrouted.push(key);
            }
        }
        connection.close(200, "done".into()).await?;
        lapin::Result::Ok(unrouted)
    });
    assert_eq!(unrouted.unwrap(), Vec::<String>::new());
}

/// Messages with a key and a body of its own each, so that a hash intake deals them out.
fn numbered(numbers: std::ops::Range<u32>) -> Vec<(String, Vec<u8>, BasicProperties)> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    numbers.map(|n| (format!("key-{n}"), n.to_string().into_bytes(), properties.clone())).collect()
}

/// How often each body is among the messages.
fn times<'a>(messages: impl IntoIterator<Item = &'a Message>) -> BTreeMap<u32, u32> {
    let mut times = BTreeMap::new();
    for message in messages {
        *times.entry(message.text().parse().unwrap()).or_default() += 1;
    }
    times
}

fn each_once(numbers: std::ops::Range<u32>) -> BTreeMap<u32, u32> {
    numbers.map(|n| (n, 1)).collect()
}

#[test]
fn a_topic_intake_leads_what_its_patterns_match_to_the_lane_once_and_the_rest_to_the_unrouted() {
    let (vhost, host) = (vhost(), Host::new("topic"));
    let keys = r#"exchange = "codex", type = "topic", keys = ["codex.*.low", "codex.eu.#"]"#;
    let gate = host.start(&settings(&host, &vhost, keys));
    gate.wait_for_edge(SOON, LANE, "open");
    // The third matches both patterns.
    let matching = ["codex.us.low", "codex.eu", "codex.eu.low", "codex.eu.high.night"];
    let other = ["codex.us.high", "codex.low", "codex.us.east.low", ""];
    for key in matching.iter().chain(&other) {
        vhost.publish("codex", key, [format!("open {key}")]);
    }
    vhost.wait_for_messages(SOON, LANE, 4);
    assert_eq!(vhost.waiting("codex.unrouted"), 4);
    let expect = |prefix: &str, keys: &[&str]| keys.iter().map(|key| format!("{prefix} {key}")).collect::<Vec<_>>();
    let texts = |queue: &str| vhost.drain(queue).iter().map(|m| m.text().to_owned()).collect::<Vec<_>>();
    assert_eq!(texts(LANE), expect("open", &matching));
    assert_eq!(texts("codex.unrouted"), expect("open", &other));

    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, LANE, "shut");
    for key in matching.iter().chain(&other) {
        vhost.publish("codex", key, [format!("shut {key}")]);
    }
    vhost.wait_for_messages(SOON, HELD, 4);
    assert_eq!(texts("codex.unrouted"), expect("shut", &other));
    host.set_profile(MANAGED);
    vhost.wait_for_messages(SOON, LANE, 4);
    let messages = vhost.drain(LANE);
    let keys: Vec<_> = messages.iter().map(|message| message.routing_key.as_str()).collect();
    assert_eq!(keys, matching, "oldest first, with the keys they were published with");
    assert!(messages.iter().all(|message| message.exchange == "codex"));
}

#[test]
fn two_workers_on_one_direct_intake_each_get_their_own_and_one_is_held_alone() {
    let (vhost, host, unfit) = (vhost(), Host::new("two"), Host::new("two-unfit"));
    let mut text = settings(&host, &vhost, r#"exchange = "codex", type = "direct", keys = ["codex-0", "zero"]"#);
    // The other worker has a home, and so a profile, of its own.
    unfit.set_profile(DRIFTED);
    unfit.add_worker(&mut text, OTHER, r#"exchange = "codex", type = "direct", keys = ["codex-1"]"#);
    let gate = host.start(&text);
    gate.wait_for_edge(SOON, LANE, "open");
    gate.wait_until(SOON, OTHER, "quarantined");
    // Its holding queue is there before the gate owns it for the first time.
    until(SOON, "the other lane is watched", || vhost.is_intercepted(OTHER));
    for key in ["codex-0", "codex-1", "zero", "nobody"] {
        vhost.publish("codex", key, [key]);
    }
    vhost.wait_for_messages(SOON, LANE, 2);
    until(SOON, "the other's is held", || vhost.waiting("codex-1.held") > 0);
    assert_eq!(vhost.waiting("codex.unrouted"), 1);
    assert_eq!(vhost.waiting(OTHER), 0);

    unfit.set_profile(MANAGED);
    vhost.wait_for_messages(SOON, OTHER, 1);
    assert_eq!(vhost.drain(OTHER)[0].text(), "codex-1");
    let mine: Vec<_> = vhost.drain(LANE).iter().map(|message| message.text().to_owned()).collect();
    assert_eq!(mine, ["codex-0", "zero"]);
    assert_eq!((vhost.waiting(HELD), vhost.waiting("codex-1.held")), (0, 0));
}

#[test]
fn what_one_gate_on_a_hash_intake_shuts_out_goes_to_the_other_and_waits_when_both_are_shut() {
    let (vhost, host, other) = (vhost(), Host::new("hash-0"), Host::new("hash-1"));
    let intake = r#"exchange = "codex", type = "x-consistent-hash", keys = ["10"]"#;
    let gate = host.start(&settings(&host, &vhost, intake));
    let mut text = other.settings_without_workers(&vhost.url());
    other.add_worker(&mut text, OTHER, intake);
    let other_gate = other.start(&text);
    gate.wait_for_edge(SOON, LANE, "open");
    other_gate.wait_for_edge(SOON, OTHER, "open");

    publish(vhost.url(), "codex", numbered(0..100));
    assert_eq!(vhost.waiting(LANE) + vhost.waiting(OTHER), 100);
    assert!(vhost.waiting(LANE) > 0 && vhost.waiting(OTHER) > 0, "{}", vhost.waiting(LANE));

    // What waited in the lane that is shut goes to the other, and so does all that comes.
    other.set_profile(DRIFTED);
    other_gate.wait_for_edge(SOON, OTHER, "shut");
    publish(vhost.url(), "codex", numbered(100..150));
    vhost.wait_for_messages(SOON, LANE, 150);
    assert_eq!(vhost.waiting(OTHER), 0);

    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, LANE, "shut");
    publish(vhost.url(), "codex", numbered(150..170));
    vhost.wait_for_messages(SOON, "codex.held", 170);
    for empty in [LANE, OTHER, HELD, "codex-1.held"] {
        assert_eq!(vhost.waiting(empty), 0, "{empty}");
    }

    // The other one, this time.
    other.set_profile(MANAGED);
    vhost.wait_for_messages(SOON, OTHER, 170);
    host.set_profile(MANAGED);
    gate.wait_for_edge(SOON, LANE, "open");
    publish(vhost.url(), "codex", numbered(170..270));
    until(SOON, "all have arrived", || vhost.waiting(LANE) + vhost.waiting(OTHER) == 270);
    assert!(vhost.waiting(LANE) > 0, "it has its share again");
    let messages: Vec<_> = [vhost.drain(LANE), vhost.drain(OTHER)].into_iter().flatten().collect();
    assert_eq!(times(&messages), each_once(0..270));
    for message in &messages {
        assert_eq!(message.exchange, "codex");
        assert_eq!(message.routing_key, format!("key-{}", message.text()));
    }
}

#[test]
fn a_message_that_has_been_in_one_lane_of_a_hash_intake_is_at_home_in_every_other() {
    let (vhost, host, other) = (vhost(), Host::new("home-0"), Host::new("home-1"));
    let intake = r#"exchange = "codex", type = "x-consistent-hash", keys = ["1"]"#;
    let gate = host.start(&settings(&host, &vhost, intake));
    gate.wait_for_edge(SOON, LANE, "open");
    publish(vhost.url(), "codex", numbered(0..20));
    let mut text = other.settings_without_workers(&vhost.url());
    other.add_worker(&mut text, OTHER, intake);
    let other_gate = other.start(&text);
    other_gate.wait_for_edge(SOON, OTHER, "open");
    // To and fro: each gate in turn is the only fit one, and the second time round a message knows every lane.
    for _ in 0..2 {
        host.set_profile(DRIFTED);
        vhost.wait_for_messages(SOON, OTHER, 20);
        host.set_profile(MANAGED);
        gate.wait_for_edge(SOON, LANE, "open");
        other.set_profile(DRIFTED);
        vhost.wait_for_messages(SOON, LANE, 20);
        other.set_profile(MANAGED);
        other_gate.wait_for_edge(SOON, OTHER, "open");
    }
    assert_eq!(times(&vhost.drain(LANE)), each_once(0..20));
    assert_eq!((vhost.waiting(HELD), vhost.waiting("codex-1.held"), vhost.waiting("codex.held")), (0, 0, 0));
}

#[test]
fn a_retry_of_a_task_that_was_once_taken_back_is_taken_back_again_for_whoever_is_fit() {
    let (vhost, host, other) = (vhost(), Host::new("retry-0"), Host::new("retry-1"));
    let intake = r#"exchange = "codex", type = "x-consistent-hash", keys = ["1"]"#;
    let gate = host.start(&settings(&host, &vhost, intake));
    gate.wait_for_edge(SOON, LANE, "open");
    publish(vhost.url(), "codex", numbered(0..1));
    let mut text = other.settings_without_workers(&vhost.url());
    other.add_worker(&mut text, OTHER, intake);
    let other_gate = other.start(&text);
    other_gate.wait_for_edge(SOON, OTHER, "open");
    host.set_profile(DRIFTED);
    vhost.wait_for_messages(SOON, OTHER, 1);
    let task = vhost.drain(OTHER).remove(0);

    // Celery copies headers that it does not know to the retry, which may well go to the first worker.
    host.set_profile(MANAGED);
    gate.wait_for_edge(SOON, LANE, "open");
    other.set_profile(DRIFTED);
    other_gate.wait_for_edge(SOON, OTHER, "shut");
    publish(vhost.url(), "codex", vec![(task.routing_key, task.body, task.properties)]);
    vhost.wait_for_messages(SOON, LANE, 1);
    other.set_profile(MANAGED);
    other_gate.wait_for_edge(SOON, OTHER, "open");
    host.set_profile(DRIFTED);
    vhost.wait_for_messages(SOON, OTHER, 1);
    assert_eq!(vhost.waiting(HELD), 0);
}

#[test]
fn a_lane_that_celery_declared_first_is_used_as_it_is() {
    let (vhost, host) = (vhost(), Host::new("plain-lane"));
    let app = App::new(&vhost.url(), "codex", LANE);
    let _worker = app.worker(LANE, LANE, &["-c", "1"]);
    let settings = host.settings(&vhost.url(), LANE) + "queue_arguments = { x-max-priority = 10 }\n";
    let mut gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    gate.wait_for_log(SOON, "the lane exists with other arguments");
    app.send("app.mark", "t-", 5, &[]);
    let runs = app.wait_for_runs(SOON, 5);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
}

#[test]
fn a_lane_with_priorities_gives_its_worker_the_most_urgent_first() {
    let (vhost, host) = (vhost(), Host::new("priority"));
    let settings =
        host.settings(&vhost.url(), LANE) + "queue_arguments = { x-max-priority = 9, x-queue-mode = \"lazy\" }\n";
    let gate = host.start(&settings);
    gate.wait_for_edge(SOON, LANE, "open");
    let lane = vhost.list("queues").into_iter().find(|queue| queue["name"] == LANE).unwrap();
    assert_eq!((&lane["arguments"]["x-max-priority"], &lane["arguments"]["x-queue-mode"]), (&9.into(), &"lazy".into()));
    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, LANE, "shut");
    let prioritized = [1_u8, 9, 5, 9, 0].into_iter().enumerate();
    let messages = prioritized.map(|(n, priority)| {
        let properties = BasicProperties::default().with_delivery_mode(2).with_priority(priority);
        (LANE.to_owned(), format!("{priority}-{n}").into_bytes(), properties)
    });
    publish(vhost.url(), "codex", messages.collect());
    vhost.wait_for_messages(SOON, HELD, 5);
    host.set_profile(MANAGED);
    vhost.wait_for_messages(SOON, LANE, 5);
    let order: Vec<_> = vhost.drain(LANE).iter().map(|message| message.text().to_owned()).collect();
    assert_eq!(order, ["9-1", "9-3", "5-2", "1-0", "0-4"]);

    // A worker's Celery that declares the same finds nothing wrong with it.
    let channel = channel(&connect(vhost.url()));
    let declared = on(async move {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-priority".into(), AMQPValue::LongInt(9));
        arguments.insert("x-queue-mode".into(), AMQPValue::LongString("lazy".into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(LANE.into(), options, arguments).await.map(drop)
    });
    declared.unwrap();
}

/// A table with a value of every type that AMQP 0-9-1 has.
fn every_type() -> FieldTable {
    let mut inner = FieldTable::default();
    inner.insert("deep".into(), AMQPValue::LongString("down".into()));
    let mut array = FieldArray::default();
    array.push(AMQPValue::LongInt(1));
    array.push(AMQPValue::FieldTable(inner.clone()));
    let mut table = FieldTable::default();
    let values = [
        ("bool", AMQPValue::Boolean(true)),
        ("i8", AMQPValue::ShortShortInt(-8)),
        ("u8", AMQPValue::ShortShortUInt(200)),
        ("i16", AMQPValue::ShortInt(-1600)),
        ("u16", AMQPValue::ShortUInt(60_000)),
        ("i32", AMQPValue::LongInt(i32::MIN)),
        ("u32", AMQPValue::LongUInt(u32::MAX)),
        ("i64", AMQPValue::LongLongInt(i64::MIN)),
        ("f32", AMQPValue::Float(0.1)),
        ("f64", AMQPValue::Double(-0.1)),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("text", AMQPValue::LongString("h\u{e4}ppy \u{1f600}".into())),
        ("no text", AMQPValue::LongString(LongString::from([0, 0xff, 0xfe, b'\n'].as_slice()))),
        ("long", AMQPValue::LongString("x".repeat(70_000).into())),
        ("array", AMQPValue::FieldArray(array)),
        ("time", AMQPValue::Timestamp(1_795_000_000)),
        ("table", AMQPValue::FieldTable(inner)),
        ("bytes", AMQPValue::ByteArray(ByteArray::from([0, 1, 2, 0xff].as_slice()))),
        ("void", AMQPValue::Void),
        // What Celery sends.
        ("task", AMQPValue::LongString("app.mark".into())),
        ("id", AMQPValue::LongString("0199d1a2-0000-7000-8000-000000000000".into())),
        ("eta", AMQPValue::LongString("2026-11-23T12:00:00.123456+00:00".into())),
        ("expires", AMQPValue::Void),
        ("retries", AMQPValue::LongInt(2)),
        // Of no concern to the gate, whatever it looks like.
        ("x-worker-gate-else", AMQPValue::LongString("mine".into())),
    ];
    for (name, value) in values {
        table.insert(name.into(), value);
    }
    table
}

/// Messages that something could go wrong with; their keys are all [`LANE`].
pub(crate) fn odd() -> Vec<(String, Vec<u8>, BasicProperties)> {
    let plain = BasicProperties::default();
    let full = BasicProperties::default()
        .with_content_type("application/x-python-serialize".into())
        .with_content_encoding("binary".into())
        .with_headers(every_type())
        .with_delivery_mode(2)
        .with_priority(7)
        .with_correlation_id("0199d1a2-0000-7000-8000-000000000000".into())
        .with_reply_to("amq.gen-answers".into())
        .with_expiration("3600000".into())
        .with_message_id("m-\u{e4}-1".into())
        .with_timestamp(1_795_000_000)
        .with_type("a type".into())
        .with_app_id("an app".into())
        .with_cluster_id("a cluster".into());
    let all_bytes: Vec<u8> = (0..=u8::MAX).collect();
    let messages = [
        (all_bytes.clone(), full),
        (Vec::new(), plain.clone()),
        (b"no properties".to_vec(), plain.clone()),
        (Vec::new(), plain.clone().with_headers(every_type())),
        // More than one frame, and exactly one, less its 8 bytes of frame.
        (all_bytes.repeat(1200), plain.clone().with_delivery_mode(2)),
        (vec![0xce; 128 * 1024 - 8], plain.clone().with_delivery_mode(1)),
        (b"AMQP\0\0\x09\x01\xce".to_vec(), plain.clone().with_priority(0).with_correlation_id("x".repeat(255).into())),
        (b"{\"not\": json".to_vec(), plain.with_content_type(String::new().into())),
    ];
    messages.into_iter().map(|(body, properties)| (LANE.to_owned(), body, properties)).collect()
}

/// Compares what is in the lane with what was published: way, body and properties, byte for byte.
#[track_caller]
pub(crate) fn assert_unchanged(messages: &[Message], sent: &[(String, Vec<u8>, BasicProperties)], exchange: &str) {
    assert_eq!(messages.len(), sent.len());
    for (index, (message, (key, body, properties))) in messages.iter().zip(sent).enumerate() {
        assert_eq!((message.exchange.as_str(), &message.routing_key), (exchange, key), "message {index}");
        assert!(&message.body == body, "message {index}: {} bytes, {} expected", message.body.len(), body.len());
        let headers = |properties: &BasicProperties| properties.headers().clone().unwrap_or_default();
        let (got, expected) = (headers(&message.properties), headers(properties));
        let other = |name: &&ShortString| got.inner().get(*name) != expected.inner().get(*name);
        let names: Vec<_> = got.inner().keys().chain(expected.inner().keys()).filter(other).collect();
        assert!(names.is_empty(), "message {index}: the headers {names:?} differ");
        assert_eq!(&message.properties, properties, "message {index}");
    }
}

#[test]
fn a_message_is_the_same_after_it_was_held_and_given_back() {
    let (vhost, host) = (vhost(), Host::new("same-held"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_for_edge(SOON, LANE, "open");
    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, LANE, "shut");
    let sent = odd();
    publish(vhost.url(), "codex", sent.clone());
    vhost.wait_for_messages(SOON, HELD, u32::try_from(sent.len()).unwrap());
    host.set_profile(MANAGED);
    vhost.wait_for_messages(SOON, LANE, u32::try_from(sent.len()).unwrap());
    assert_unchanged(&vhost.drain(LANE), &sent, "codex");
}

#[test]
fn a_message_is_the_same_after_it_was_taken_back_twice() {
    let (vhost, host) = (vhost(), Host::new("same-taken"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_for_edge(SOON, LANE, "open");
    let (sent, count) = (odd(), u32::try_from(odd().len()).unwrap());
    publish(vhost.url(), "codex", sent.clone());
    for _ in 0..2 {
        vhost.wait_for_messages(SOON, LANE, count);
        host.set_profile(DRIFTED);
        gate.wait_for_edge(SOON, LANE, "shut");
        vhost.wait_for_messages(SOON, HELD, count);
        host.set_profile(MANAGED);
        gate.wait_for_edge(SOON, LANE, "open");
    }
    vhost.wait_for_messages(SOON, LANE, count);
    assert_unchanged(&vhost.drain(LANE), &sent, "codex");
}

#[test]
fn a_message_that_came_past_the_shut_edge_is_the_same_when_it_is_given_back() {
    let (vhost, host) = (vhost(), Host::new("same-bypass"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_for_edge(SOON, LANE, "open");
    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, LANE, "shut");
    let (sent, count) = (odd(), u32::try_from(odd().len()).unwrap());
    // Its key is the lane's name, so the anonymous exchange takes it straight there.
    publish(vhost.url(), "", sent.clone());
    vhost.wait_for_messages(SOON, HELD, count);
    host.set_profile(MANAGED);
    vhost.wait_for_messages(SOON, LANE, count);
    assert_unchanged(&vhost.drain(LANE), &sent, "");
}

#[test]
fn a_message_that_names_its_user_is_moved_like_any_other_and_only_loses_the_name() {
    let (vhost, host) = (vhost(), Host::new("user-id"));
    let user = format!("producer.{}", vhost.name());
    vhost.add_user(&user, ".*", ".*", ".*");
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_for_edge(SOON, LANE, "open");
    let url = vhost.url_as(&user, "secret", vhost.broker().port());
    let plain = BasicProperties::default().with_delivery_mode(2).with_headers(every_type());
    let message = |n: u32, properties| (LANE.to_owned(), n.to_string().into_bytes(), properties);
    let named = plain.clone().with_user_id(user.as_str().into());
    publish(url, "codex", vec![message(0, named), message(1, plain.clone())]);
    vhost.wait_for_messages(SOON, LANE, 2);
    host.set_profile(DRIFTED);
    vhost.wait_for_messages(SOON, HELD, 2);
    host.set_profile(MANAGED);
    vhost.wait_for_messages(SOON, LANE, 2);
    assert_unchanged(&vhost.drain(LANE), &[message(0, plain.clone()), message(1, plain)], "codex");
}
