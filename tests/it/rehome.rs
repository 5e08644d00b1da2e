//! `worker-gate rehome`: what is held for a worker that is gone for good goes to another one. Worker 0 is the one that is gone;
//! settings on host 1 do not name it.

use std::{collections::BTreeMap, process::Output, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    intakes::{assert_unchanged, odd},
    support::{
        celery::App,
        field::{Field, INTAKE, Kind, for_each_edge},
        gate::{Gate, Host, MANAGED},
        process::{Process, tail},
        tasks::Task,
        vhost::{Message, vhost},
        wait::{eventually, until},
    },
};

mod fed;
mod redis;

const SOON: Duration = Duration::from_secs(30);
const DRIFTED: &str = "approval_policy = \"on-request\"\n";
const HELD: &str = "codex-0.held";
const OTHERS_HELD: &str = "codex-1.held";
const OTHERS_LANE: &str = "codex-1";
/// What may be published and not acknowledged when the command is killed.
const IN_FLIGHT: usize = 128;

for_each_edge! {
    while_a_gate_owns_the_worker_nothing_is_given_away_and_the_gate_is_named
}

/// Settings on host 1, with worker 1 alone.
fn settings(field: &Field) -> String {
    field.settings_of(field.host(1), 1)
}

/// Worker 0 has had a gate, which has gone in good order.
#[track_caller]
fn lives_and_goes(field: &Field) {
    let gate = field.host(0).start(&field.settings_of(field.host(0), 0));
    gate.wait_until(SOON, &field.name(0), "admitted");
    assert!(gate.stop().success());
}

#[track_caller]
fn starts(field: &Field) -> Gate {
    let gate = field.host(1).start(&settings(field));
    gate.wait_for_edge(SOON, &field.name(1), "open");
    gate
}

fn rehome(field: &Field, more: &[&str]) -> Output {
    rehome_with(field, &settings(field), more)
}

fn rehome_with(field: &Field, settings: &str, more: &[&str]) -> Output {
    let (gone, to) = (field.name(0), field.name(1));
    field.host(1).command(settings, &[&["rehome", &gone, "--to", &to], more].concat())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command has answered in JSON, among what it has said.
#[track_caller]
fn answer(said: &str) -> Value {
    let line =
        said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no answer in:\n{}", tail(said)));
    serde_json::from_str(line).unwrap()
}

/// Rehomes all, and asserts that it says so.
#[track_caller]
fn rehomes(field: &Field, messages: usize) -> Value {
    let output = rehome(field, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let answer = answer(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(answer["account"], json!({ "before": messages, "moved": messages, "left": 0, "taken": 0 }), "{answer}");
    assert_eq!(answer["came"], 0, "{answer}");
    answer
}

fn texts(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(Message::text).collect()
}

/// A message of the gate's own would go with the task for ever.
#[track_caller]
fn assert_plain(messages: &[Message]) {
    for message in messages {
        let headers = message.properties.headers().clone().unwrap_or_default();
        assert!(!headers.inner().keys().any(|name| name.as_str().starts_with("x-worker-gate-")), "{headers:?}");
        assert_eq!((message.exchange.as_str(), message.routing_key.as_str()), (INTAKE, OTHERS_LANE));
    }
}

#[test]
fn what_is_held_goes_to_the_other_in_its_order_and_is_the_same_but_for_its_key() {
    let field = Field::new(Kind::Route);
    lives_and_goes(&field);
    let _other = starts(&field);
    let sent = [odd(), numbered(0..300)].concat();
    let messages = sent.iter().map(|(_, body, properties)| (body.clone(), properties.clone())).collect();
    field.vhost().publish_all(INTAKE, "codex-0", messages);
    let answer = rehomes(&field, sent.len());
    assert_eq!(answer["entry"], json!({ "exchange": INTAKE, "key": OTHERS_LANE }));
    assert!(answer["advice"].as_str().unwrap().contains(HELD), "{answer}");
    let expected: Vec<_> = sent.into_iter().map(|(_, body, all)| (OTHERS_LANE.to_owned(), body, all)).collect();
    assert_unchanged(&field.vhost().drain(OTHERS_LANE), &expected, INTAKE);
    assert_eq!((field.vhost().waiting(HELD), field.vhost().waiting("codex-0")), (0, 0));
}

/// Messages whose bodies are numbers.
fn numbered(numbers: std::ops::Range<usize>) -> Vec<(String, Vec<u8>, lapin::BasicProperties)> {
    let persistent = lapin::BasicProperties::default().with_delivery_mode(2);
    numbers.map(|n| ("codex-0".to_owned(), n.to_string().into_bytes(), persistent.clone())).collect()
}

#[test]
fn what_the_lane_has_goes_before_what_was_held_and_all_of_it_is_held_for_the_other_until_that_one_is_fit() {
    let field = Field::new(Kind::Route);
    let vhost = field.vhost();
    let gate = field.host(0).start(&field.settings_of(field.host(0), 0));
    gate.wait_for_edge(SOON, &field.name(0), "open");
    field.host(0).set_profile(DRIFTED);
    gate.wait_for_edge(SOON, &field.name(0), "shut");
    // These are held with headers that remember how they came.
    vhost.publish("", "codex-0", ["past 0", "past 1"]);
    vhost.wait_for_messages(SOON, HELD, 2);
    // In good order: one that is killed may not have acknowledged what it has just moved.
    assert!(gate.stop().success());
    until(SOON, "the broker gives the gate up", || !field.is_owned(0));
    vhost.publish(INTAKE, "codex-0", ["held 0", "held 1"]);
    vhost.publish("", "codex-0", ["lane 0", "lane 1"]);

    // The other's gate has never run yet.
    let output = rehome(&field, &[]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let expected = "codex-0@host-0 -> codex-1@host-1, by the exchange codex with the key codex-1: 6 waiting: 6 moved, 0 left, \
        0 taken\n-> what still comes with a key of codex-0@host-0 goes on being held in codex-0.held: let its producers publish \
        to codex with the key codex-1 of codex-1@host-1, and then run this again\n";
    assert_eq!(said, expected);
    assert_eq!((vhost.waiting(HELD), vhost.waiting("codex-0"), vhost.waiting(OTHERS_HELD)), (0, 0, 6));
    let _other = starts(&field);
    vhost.wait_for_messages(SOON, OTHERS_LANE, 6);
    let messages = vhost.drain(OTHERS_LANE);
    assert_eq!(texts(&messages), ["lane 0", "lane 1", "past 0", "past 1", "held 0", "held 1"]);
    assert_plain(&messages);
}

#[test]
fn held_tasks_run_on_the_other_worker_and_their_retries_go_by_its_own_key() {
    let field = Field::new(Kind::Route);
    let app = App::new(&field.url(), INTAKE, "codex-0");
    lives_and_goes(&field);
    let _other = starts(&field);
    app.send("app.retry_once", "m-", 10, &[]);
    rehomes(&field, 10);
    let _worker = field.worker(&app, 1);
    until(SOON, "all have run, and their retries too", || app.runs().values().sum::<u32>() == 20);
    for mark in app.marks() {
        assert_eq!(mark.worker, field.name(1), "{mark:?}");
        let way = (mark.exchange.as_deref(), mark.routing_key.as_deref());
        assert_eq!(way, (Some(INTAKE), Some(OTHERS_LANE)), "{mark:?}");
    }
    assert_eq!((field.vhost().waiting(HELD), field.vhost().waiting(OTHERS_HELD)), (0, 0));
}

fn while_a_gate_owns_the_worker_nothing_is_given_away_and_the_gate_is_named(kind: Kind) {
    let field = Field::new(kind);
    let gate = field.host(0).start(&field.settings_of(field.host(0), 0));
    gate.wait_for_edge(SOON, &field.name(0), "open");
    field.host(0).set_profile(DRIFTED);
    gate.wait_for_edge(SOON, &field.name(0), "shut");
    field.publish((0..10).map(|n| Task::mark(format!("m-{n}"))));
    let waiting = if kind.is_shared() { 10 } else { 5 };
    until(SOON, "they wait", || field.waiting() >= waiting);
    let output = rehome(&field, &["--json"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{output:?}");
    let said = stderr(&output);
    assert!(said.contains("owned by the gate host-0 (process") && said.contains("is not gone"), "{said}");
    assert!(field.waiting() >= waiting && field.in_lane(0) == 0);
    gate.wait_until(SOON, &field.name(0), "quarantined");
    // The lock that was refused is as it was.
    field.host(0).set_profile(MANAGED);
    gate.wait_until(SOON, &field.name(0), "admitted");
}

#[test]
fn a_lane_that_somebody_consumes_is_no_gone_workers() {
    let field = Field::new(Kind::Route);
    lives_and_goes(&field);
    field.vhost().publish(INTAKE, "codex-0", ["one"]);
    let _worker = field.vhost().consume_nothing("codex-0");
    until(SOON, "it consumes", || field.vhost().count("codex-0").is_some_and(|lane| lane.consumers == 1));
    let output = rehome(&field, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("its lane codex-0 is still consumed (1)"), "{}", stderr(&output));
    assert!(field.vhost().waiting(HELD) > 0);
}

#[test]
fn a_lane_that_nobody_has_heard_of_is_wrong_usage_and_so_is_one_of_somebody_elses() {
    let field = Field::new(Kind::Route);
    lives_and_goes(&field);
    for (arguments, words) in [
        (&["--lane", "codex-7"][..], "neither a queue codex-7 nor codex-7.held"),
        (&["--lane", "codex-1"], "codex-1 is the lane of codex-1@host-1"),
        (&["--lane", "codex"], "codex.held is a queue of the intake codex"),
        (&["--no-such"], "--no-such"),
    ] {
        let output = rehome(&field, arguments);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
    let unknown = field.host(1).command(&settings(&field), &["rehome", "codex-0@host-0", "--to", "codex-9@host-1"]);
    assert_eq!(unknown.status.code(), Some(64), "{unknown:?}");
    assert!(stderr(&unknown).contains("no such worker, but codex-1@host-1"), "{}", stderr(&unknown));
}

#[test]
fn who_has_taken_over_the_key_of_the_one_that_is_gone_gets_each_message_once() {
    let field = Field::new(Kind::Route);
    lives_and_goes(&field);
    field.vhost().publish(INTAKE, "codex-0", (0..50).map(|n| n.to_string()));
    // Its edge is shut, so that all of it goes by the holding exchange, which still knows the former owner of the key.
    let taken = settings(&field).replace(r#"keys = ["codex-1"]"#, r#"keys = ["codex-0", "codex-1"]"#);
    let output = rehome_with(&field, &taken, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(answer(&String::from_utf8_lossy(&output.stdout))["account"]["moved"], 50);
    assert_eq!((field.vhost().waiting(HELD), field.vhost().waiting(OTHERS_HELD)), (0, 50));
    field.vhost().publish(INTAKE, "codex-0", ["later"]);
    assert_eq!((field.vhost().waiting(HELD), field.vhost().waiting(OTHERS_HELD)), (0, 51));
}

#[test]
fn on_a_topic_intake_it_comes_in_by_a_key_that_the_others_pattern_matches() {
    let (vhost, gone, other) = (vhost(), Host::new("topic-0"), Host::new("topic-1"));
    let intake = |key: &str| format!(r#"exchange = "codex", type = "topic", keys = ["{key}"]"#);
    let mut first = gone.settings_without_workers(&vhost.url());
    gone.add_worker(&mut first, "codex-0", &intake("codex.eu.*"));
    let gate = gone.start(&first);
    gate.wait_for_edge(SOON, "codex-0", "open");
    assert!(gate.stop().success());
    vhost.publish(INTAKE, "codex.eu.low", ["low"]);
    vhost.publish(INTAKE, "codex.eu.high", ["high"]);
    let mut second = other.settings_without_workers(&vhost.url());
    other.add_worker(&mut second, OTHERS_LANE, &intake("codex.us.#"));
    let output = other.command(&second, &["rehome", "codex-0", "--to", OTHERS_LANE]);
    assert!(output.status.success(), "{output:?}");
    let _other = other.start(&second);
    vhost.wait_for_messages(SOON, OTHERS_LANE, 2);
    let messages = vhost.drain(OTHERS_LANE);
    assert_eq!(texts(&messages), ["low", "high"]);
    assert!(messages.iter().all(|message| message.routing_key == "codex.us.rehomed"));
}

#[test]
fn what_a_lane_of_a_hash_intake_has_goes_to_any_that_is_fit_with_its_own_key() {
    let (vhost, gone, other) = (vhost(), Host::new("hash-0"), Host::new("hash-1"));
    let intake = r#"exchange = "codex", type = "x-consistent-hash", keys = ["1"]"#;
    let mut first = gone.settings_without_workers(&vhost.url());
    gone.add_worker(&mut first, "codex-0", intake);
    let gate = gone.start(&first);
    gate.wait_for_edge(SOON, "codex-0", "open");
    for n in 0..20 {
        vhost.publish(INTAKE, &format!("key-{n}"), [n.to_string()]);
    }
    vhost.wait_for_messages(SOON, "codex-0", 20);
    gate.kill();
    let mut second = other.settings_without_workers(&vhost.url());
    other.add_worker(&mut second, OTHERS_LANE, intake);
    let other_gate = other.start(&second);
    other_gate.wait_for_edge(SOON, OTHERS_LANE, "open");
    let output = eventually(SOON, "the dead gate's hold ends", || {
        Some(other.command(&second, &["rehome", "codex-0", "--to", OTHERS_LANE])).filter(|it| it.status.success())
    });
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("20 waiting: 20 moved") && said.contains("nothing more comes for codex-0 alone"), "{said}");
    let messages = vhost.drain(OTHERS_LANE);
    assert_eq!(texts(&messages), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(messages.iter().all(|message| message.routing_key == format!("key-{}", message.text())));
}

/// Starts the command, and lets it go on until the other has so many.
#[track_caller]
fn half_way(field: &Field, settings: &str, has: impl Fn() -> usize, enough: usize) -> Process {
    let (gone, to) = (field.name(0), field.name(1));
    let arguments = ["rehome", &gone, "--to", &to, "--json"];
    let mut command = field.host(1).start_command(settings, &arguments);
    until(SOON, "it is half way", || {
        assert!(command.ended().is_none(), "it has ended:\n{}", tail(&command.output()));
        has() >= enough
    });
    command
}

/// Rehomes what is left, once the broker has given up the one that was killed.
#[track_caller]
fn rehomes_the_rest(field: &Field, settings: &str) -> Value {
    let output = eventually(SOON, "the rest is moved", || {
        let output = rehome_with(field, settings, &["--json"]);
        assert!(output.status.success() || stderr(&output).contains("owned by"), "{output:?}");
        output.status.success().then_some(output)
    });
    answer(&String::from_utf8_lossy(&output.stdout))
}

#[test]
fn a_command_that_is_killed_again_and_again_loses_nothing_and_doubles_only_what_was_in_flight() {
    let field = Field::new(Kind::Route);
    let vhost = field.vhost();
    lives_and_goes(&field);
    vhost.publish(INTAKE, "codex-0", (0..5_000).map(|n| n.to_string()));
    let mut kills = 0;
    for enough in [500, 1_500, 3_000] {
        let has = || vhost.count(OTHERS_HELD).map_or(0, |held| held.messages as usize);
        half_way(&field, &settings(&field), has, enough).kill();
        kills += 1;
        until(SOON, "the broker gives it up", || !field.is_owned(0));
    }
    let answer = rehomes_the_rest(&field, &settings(&field));
    assert!(answer["account"]["moved"].as_u64().unwrap() > 0, "{answer}");
    assert_eq!(vhost.waiting(HELD), 0);
    let messages = vhost.drain(OTHERS_HELD);
    let numbers: Vec<usize> = texts(&messages).iter().map(|text| text.parse().unwrap()).collect();
    let mut times = BTreeMap::<usize, usize>::new();
    let mut first = Vec::new();
    for number in numbers {
        let seen = times.entry(number).or_default();
        if *seen == 0 {
            first.push(number);
        }
        *seen += 1;
    }
    assert_eq!(first, (0..5_000).collect::<Vec<_>>(), "each is there, and for the first time in its order");
    let twice: usize = times.values().map(|times| times - 1).sum();
    assert!(twice <= IN_FLIGHT * kills, "{twice} are there twice");
}

#[test]
fn a_command_that_is_interrupted_says_what_it_has_moved_and_leaves_the_rest_where_it_was() {
    let field = Field::new(Kind::Route);
    let vhost = field.vhost();
    lives_and_goes(&field);
    vhost.publish(INTAKE, "codex-0", (0..5_000).map(|n| n.to_string()));
    let has = || vhost.count(OTHERS_HELD).map_or(0, |held| held.messages as usize);
    let mut command = half_way(&field, &settings(&field), has, 500);
    command.signal(Signal::SIGINT);
    assert_eq!(command.wait(SOON).code(), Some(1), "{}", tail(&command.output()));
    let told = answer(&command.output());
    let count = |key: &str| told["account"][key].as_u64().unwrap();
    assert_eq!((count("before"), count("taken"), count("moved") + count("left")), (5_000, 0, 5_000), "{told}");
    assert_eq!(u64::from(vhost.waiting(OTHERS_HELD)), count("moved"));
    assert_eq!(u64::from(vhost.waiting(HELD)), count("left"));
    rehomes(&field, usize::try_from(count("left")).unwrap());
    let messages = vhost.drain(OTHERS_HELD);
    assert_eq!(texts(&messages), (0..5_000).map(|n| n.to_string()).collect::<Vec<_>>());
}
