//! On Redis: prefixes, priorities, producers that name an exchange, and that each message is there exactly once.

use serde_json::Value;

use super::{SOON, answer, half_way, rehome_with, rehomes_the_rest};
use crate::support::{
    celery::App,
    field::{Field, INTAKE},
    redis::{Redis, STEPS, list},
    tasks::Task,
    wait::until,
};

const LANE: &str = "codex-0.lane";
const HELD: &str = "codex-0.lane.held";
const OTHERS_HELD: &str = "codex-1.lane.held";

/// Settings on host `n`, for worker `n` alone, which gets what comes by the exchange with the key `k` and its number.
fn settings(field: &Field, n: usize) -> String {
    let mut settings = field.host(n).settings_without_workers(&field.url());
    let intake = format!(r#"exchange = "{INTAKE}", type = "direct", keys = ["k{n}"]"#);
    field.host(n).add_fed_worker(&mut settings, &field.name(n), &field.lane(n), &intake);
    settings
}

fn marks(prefix: &str, count: usize) -> impl Iterator<Item = Task> {
    (0..count).map(move |n| Task::mark(format!("{prefix}{n}")))
}

/// The same with each of kombu's priorities in turn.
fn in_turn(prefix: &str, count: usize) -> impl Iterator<Item = Task> {
    marks(prefix, count).zip(STEPS.into_iter().cycle()).map(|(task, step)| task.with_priority(step))
}

/// What these queues have as if they were one: for each priority, the first one's newest message first.
fn in_lists(redis: &Redis, queues: &[&str]) -> Vec<String> {
    let of = |queue: &str, step: u8| -> Vec<String> { redis.ask(&["LRANGE", &list(queue, step), "0", "-1"]) };
    STEPS.iter().flat_map(|step| queues.iter().flat_map(|queue| of(queue, *step)).collect::<Vec<_>>()).collect()
}

#[test]
fn held_tasks_of_an_exchange_run_on_the_other_worker_and_their_retries_go_by_its_own_key() {
    let field = Field::on_redis(Redis::start());
    let app = App::new(&field.url(), INTAKE, "k0");
    let gate = field.host(0).start(&settings(&field, 0));
    gate.wait_until(SOON, &field.name(0), "admitted");
    assert!(gate.stop().success());
    app.send("app.retry_once", "m-", 5, &[]);
    field.redis().wait_for_messages(SOON, HELD, 5);

    let gate = field.host(1).start(&settings(&field, 1));
    gate.wait_for_edge(SOON, &field.name(1), "open");
    let output = rehome_with(&field, &settings(&field, 1), &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let told = answer(&String::from_utf8_lossy(&output.stdout));
    assert_eq!((&told["account"]["moved"], &told["entry"]["key"]), (&5.into(), &"k1".into()), "{told}");
    assert!(told["advice"].as_str().unwrap().contains(HELD), "{told}");
    let _worker = field.worker(&app, 1);
    until(SOON, "all have run, and their retries too", || app.runs().values().sum::<u32>() == 10);
    for mark in app.marks() {
        assert_eq!((mark.worker.as_str(), mark.routing_key.as_deref()), (&*field.name(1), Some("k1")), "{mark:?}");
    }
    assert_eq!(field.redis().waiting(HELD), 0);
    // What still comes by the old key is held as before.
    app.send("app.mark", "late-", 1, &[]);
    field.redis().wait_for_messages(SOON, HELD, 1);
}

#[test]
fn what_was_fed_from_the_shared_queue_stands_at_its_head_again_in_every_priority_and_under_the_prefix() {
    let field = Field::on_redis(Redis::start());
    let redis = field.redis();
    redis.publish("it:codex-0.lane", in_turn("left-", 12));
    redis.publish("it:codex", in_turn("waiting-", 12));
    let mark = "heartbeat = \"1s\"\n";
    let text = field.settings_of(field.host(1), 1).replacen(mark, &format!("{mark}global_keyprefix = \"it:\"\n"), 1);
    let before = in_lists(redis, &["it:codex", "it:codex-0.lane"]);
    let output = rehome_with(&field, &text, &[]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("12 waiting: 12 moved, 0 left, 0 taken"), "{said}");
    let after = in_lists(redis, &["it:codex"]);
    assert_eq!(after, before, "each list as it was, the lane's behind it, which is to say in front");
    assert_eq!(redis.waiting("it:codex-0.lane"), 0);
    let keys: Vec<String> = redis.ask(&["KEYS", "*"]);
    assert!(keys.iter().all(|key| key.starts_with("it:") && !key.contains(".owner.")), "{keys:?}");
}

#[test]
fn what_an_exchange_brought_is_the_same_but_for_its_address_and_in_the_order_of_each_priority() {
    let field = Field::on_redis(Redis::start());
    let redis = field.redis();
    redis.publish_from(LANE, INTAKE, "k0", in_turn("lane-", 8));
    redis.publish_from(HELD, INTAKE, "k0", in_turn("held-", 400));
    // Not all that comes is kombu's.
    let () = redis.ask(&["LPUSH", HELD, "no message"]);
    redis.publish_from(OTHERS_HELD, INTAKE, "k1", in_turn("others-", 4));
    let expected = in_lists(redis, &[HELD, LANE, OTHERS_HELD]);
    let output = rehome_with(&field, &settings(&field, 1), &["--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(answer(&String::from_utf8_lossy(&output.stdout))["account"]["moved"], 409);
    assert_eq!((redis.waiting(LANE), redis.waiting(HELD)), (0, 0));
    let found = in_lists(redis, &[OTHERS_HELD]);
    // The test's own messages have their keys sorted otherwise than the address is written.
    let whole = |text: &String| serde_json::from_str::<Value>(text).unwrap_or_else(|_| text.as_str().into());
    let expected: Vec<Value> = expected.iter().map(|text| whole(&text.replace(r#""k0""#, r#""k1""#))).collect();
    assert_eq!(found.iter().map(whole).collect::<Vec<_>>(), expected);
}

#[test]
fn a_command_that_is_killed_again_and_again_has_moved_each_message_exactly_once() {
    let field = Field::on_redis(Redis::start());
    let redis = field.redis();
    redis.publish_from(HELD, INTAKE, "k0", marks("", 30_000));
    for enough in [100, 8_000, 16_000] {
        let has = || redis.ask::<usize>(&["LLEN", OTHERS_HELD]);
        half_way(&field, &settings(&field, 1), has, enough).kill();
        // Its key lives for two and a half heartbeats longer.
        until(SOON, "Redis gives it up", || !field.is_owned(0));
        assert_eq!(redis.waiting(HELD) + redis.waiting(OTHERS_HELD), 30_000);
    }
    let told = rehomes_the_rest(&field, &settings(&field, 1));
    assert!(told["account"]["moved"].as_u64().unwrap() > 0, "{told}");
    let numbers: Vec<usize> = redis.ids(OTHERS_HELD).iter().map(|id| id.parse().unwrap()).collect();
    assert_eq!(numbers, (0..30_000).collect::<Vec<_>>());
}
