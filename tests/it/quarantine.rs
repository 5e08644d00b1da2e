//! What a quarantine does with what the worker has, with what comes by the back door, and with the worker itself.

use std::time::Duration;

use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::support::{
    celery::App,
    facts::Facts,
    field::{Field, Kind, each_once, for_each_edge},
    gate::{Host, MANAGED, patient},
    proxy::Proxy,
    rabbitmq::Broker,
    tasks::Task,
    vhost::{Vhost, vhost},
    wait::{throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";
const LANE: &str = "codex-0";
const HELD: &str = "codex-0.held";

for_each_edge! {
    a_recycled_worker_gives_back_what_waits_and_is_told_of_when_it_is_back
    what_becomes_of_a_recycled_worker_is_told_whatever_happens_until_it_is_back
    a_worker_without_remote_control_is_recycled_by_sigterm_and_finishes_what_runs
    what_a_worker_had_is_named_with_its_start_and_found_again_in_the_audit_log
    what_had_ended_since_the_last_good_evidence_is_named_by_the_workers_task_events
}

/// Every worker is made to start anew when it is quarantined.
fn recycling(field: &Field) -> String {
    field.settings().replace("edge = \"", "on_quarantine = \"recycle\"\nedge = \"")
}

fn reason(facts: &Facts, field: &Field) -> Value {
    facts.nth(SOON * 2, "worker-recycled", &field.name(0), 0).body["reason"].clone()
}

fn a_recycled_worker_gives_back_what_waits_and_is_told_of_when_it_is_back(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.host(0).start(&recycling(&field));
    field.wait_until_both_are(&gate, "admitted");
    let mut worker = app.worker(&field.lane(0), &field.name(0), &["-c", "1"]);
    field.publish((0..12).map(|n| Task::slow(format!("s-{n}"), 0.5)));
    until(SOON, "it works", || !app.runs().is_empty());
    let facts = field.facts();
    field.host(0).set_profile(DRIFTED);
    assert!(worker.wait().success(), "{}", worker.log());
    let ran = app.runs().len();
    // What a supervisor does.
    let _anew = app.worker(&field.lane(0), &field.name(0), &["-c", "1"]);
    let reason = reason(&facts, &field);
    assert_eq!(reason["code"], "recycled", "{reason}");
    assert!(reason["detail"].as_str().unwrap().contains("Celery's shutdown command"), "{reason}");
    throughout(Duration::from_secs(1), "nothing runs", || app.runs().len() == ran);
    assert_eq!(field.in_lane(0), 0);
    field.host(0).set_profile(MANAGED);
    let _other = field.worker(&app, 1);
    each_once(&app.wait_for_runs(SOON, 12), 12);
}

fn what_becomes_of_a_recycled_worker_is_told_whatever_happens_until_it_is_back(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let proxy = Proxy::to(field.port());
    let settings = field.settings_at(proxy.port()).replace("edge = \"", "on_quarantine = \"recycle\"\nedge = \"");
    let gate = field.host(0).start(&settings);
    field.wait_until_both_are(&gate, "admitted");
    let mut worker = app.worker(&field.lane(0), &field.name(0), &["-c", "1"]);
    let facts = field.facts();
    field.host(0).set_profile(DRIFTED);
    assert!(worker.wait().success(), "{}", worker.log());
    // Before it is back its edge is open again, it is quarantined once more, and the gate loses its broker and finds it again.
    field.host(0).set_profile(MANAGED);
    facts.nth(SOON, "worker-admitted", &field.name(0), 0);
    field.host(0).set_profile(DRIFTED);
    facts.nth(SOON, "worker-quarantined", &field.name(0), 1);
    field.host(0).set_profile(MANAGED);
    facts.nth(SOON, "worker-admitted", &field.name(0), 1);
    proxy.cut();
    facts.nth(SOON, "worker-admitted", &field.name(0), 2);
    // What a supervisor does, however often: the gate may have been looking away just when the first one ended.
    let mut anew = app.worker(&field.lane(0), &field.name(0), &["-c", "1"]);
    until(SOON * 2, "the worker is told of", || {
        if anew.has_ended() {
            anew = app.worker(&field.lane(0), &field.name(0), &["-c", "1"]);
        }
        facts.all().iter().any(|fact| fact.kind() == "worker-recycled")
    });
    let reason = reason(&facts, &field);
    assert_eq!(reason["code"], "recycled", "{reason}");
}

fn a_worker_without_remote_control_is_recycled_by_sigterm_and_finishes_what_runs(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app().with(json!({ "worker_enable_remote_control": false }));
    let gate = field.host(0).start(&recycling(&field));
    field.wait_until_both_are(&gate, "admitted");
    let mut worker = app.worker(&field.lane(0), &field.name(0), &["-c", "1"]);
    field.publish([Task::slow("long", 15.0)]);
    until(SOON, "it works", || !app.runs().is_empty());
    let facts = field.facts();
    field.host(0).set_profile(DRIFTED);
    assert!(worker.wait().success(), "{}", worker.log());
    assert!(app.marks().iter().any(|mark| mark.phase == "ended"), "what ran was not finished: {}", worker.log());
    let _anew = app.worker(&field.lane(0), &field.name(0), &["-c", "1"]);
    let reason = reason(&facts, &field);
    assert_eq!(reason["code"], "recycled", "{reason}");
    assert!(reason["detail"].as_str().unwrap().contains("SIGTERM to process"), "{reason}");
}

fn what_a_worker_had_is_named_with_its_start_and_found_again_in_the_audit_log(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let _worker = field.worker(&app, 0);
    let facts = field.facts();
    field.publish((0..6).map(|n| Task::slow(format!("s-{n}"), 3.0)));
    until(SOON, "it works", || !app.runs().is_empty());
    // It has taken the next one into its hands by then.
    until(SOON, "one is taken in advance", || field.waiting() + field.in_lane(0) + field.in_lane(1) <= 4);
    field.host(0).set_profile(DRIFTED);
    let fact = facts.nth(SOON, "worker-quarantined", &field.name(0), 0).body;
    let tasks = fact["exposed"]["tasks"].as_array().unwrap_or_else(|| panic!("{fact}"));
    let running: Vec<_> = tasks.iter().filter(|task| task["active"] == true).collect();
    assert_eq!(running.len(), 1, "{fact}");
    let time = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{fact}")).parse::<jiff::Timestamp>().unwrap();
    assert!(time(&running[0]["started_at"]) < time(&fact["seen_at"]), "{fact}");
    assert!(time(&fact["proven_at"]) < time(&fact["seen_at"]), "{fact}");
    let since = if time(&running[0]["started_at"]) < time(&fact["proven_at"]) { "before" } else { "evidence" };
    assert_eq!(running[0]["since"], since, "{fact}");
    for waiting in tasks.iter().filter(|task| task["active"] == false) {
        assert_eq!((&waiting["started_at"], &waiting["since"]), (&Value::Null, &json!("drift")), "{fact}");
    }
    assert!(gate.stop().success());
    let listed = field.host(0).command(&field.settings(), &["audit", "--worker", &field.name(0), "--exposed"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let ids: Vec<_> = tasks.iter().map(|task| task["id"].as_str().unwrap()).collect();
    assert_eq!(listed.lines().count(), ids.len() + 1, "{listed}");
    assert!(listed.ends_with("what had ended is unknown: the setting workers.task_events is off\n"), "{listed}");
    for id in ids {
        assert!(listed.lines().any(|line| line.contains(id) && line.contains("profile_drifted")), "{listed}");
    }
}

fn what_had_ended_since_the_last_good_evidence_is_named_by_the_workers_task_events(kind: Kind) {
    const TASKS: usize = 3;
    // Where each worker has its key, every other one is for the other worker.
    let sent = if kind == Kind::Route { 6 } else { 3 };
    let field = Field::new(kind);
    let app = field.app();
    let start = |options: &[&str]| app.worker(&field.lane(0), &field.name(0), options);
    // Before the gate, so that Celery's exchange for events is there.
    let mut worker = start(&["-c", "1", "-E"]);
    let settings = field.settings().replace("edge = \"", "task_events = true\nedge = \"");
    let settings =
        settings.replace("every = \"1s\"", "every = \"90s\"").replace("max_age = \"20s\"", "max_age = \"180s\"");
    let gate = field.host(0).start(&settings);
    field.wait_until_both_are(&gate, "admitted");
    let facts = field.facts();
    let work = |prefix: &str| {
        let before = app.runs().len();
        field.send(&app, "app.mark", prefix, sent, &[]);
        until(SOON, "the worker has run them", || app.runs().len() == before + TASKS);
        // It tells so a moment after it has.
        throughout(Duration::from_millis(500), "nothing else runs", || app.runs().len() == before + TASKS);
    };
    let quarantined = |n: usize| {
        field.host(0).set_profile(DRIFTED);
        let fact = facts.nth(SOON, "worker-quarantined", &field.name(0), n).body;
        field.host(0).set_profile(MANAGED);
        field.wait_until_both_are(&gate, "admitted");
        fact
    };
    work("a");
    let fact = quarantined(0);
    let over = |fact: &Value| {
        let tasks = fact["exposed"]["tasks"].as_array().unwrap_or_else(|| panic!("{fact}")).iter();
        tasks.filter(|task| task["active"] == false && task["ended_at"].is_string()).cloned().collect::<Vec<_>>()
    };
    let ended = over(&fact);
    assert_eq!(ended.len(), TASKS, "{fact}");
    let time = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{fact}")).parse::<jiff::Timestamp>().unwrap();
    for task in &ended {
        assert!(task["name"].as_str().unwrap().ends_with("mark") && task["since"] == "evidence", "{fact}");
        assert!(time(&fact["proven_at"]) <= time(&task["started_at"]), "{fact}");
        assert!(time(&task["started_at"]) <= time(&task["ended_at"]), "{fact}");
    }
    assert_eq!(fact["exposed"]["ended_unknown"], Value::Null, "{fact}");
    // With evidence that is newer than its end, nothing of it is in doubt.
    assert_eq!(field.host(0).command(&settings, &["recheck", &field.name(0)]).status.code(), Some(0));
    gate.wait_for(SOON, &field.name(0), "it is checked again", |record| {
        let ran = |check: &Value| time(&check["checked_at"]) > time(&ended[TASKS - 1]["ended_at"]);
        record["checks"].as_object().unwrap().values().all(ran)
    });
    assert_eq!(over(&quarantined(1)), Vec::<Value>::new());
    // One that sends no task events is told to, and does from then on.
    drop(worker);
    worker = start(&["-c", "1"]);
    work("b");
    let fact = quarantined(2);
    assert!(over(&fact).is_empty(), "{fact}");
    assert!(fact["exposed"]["ended_unknown"].as_str().unwrap_or_default().contains("-E"), "{fact}");
    work("c");
    assert_eq!(over(&quarantined(3)).len(), TASKS);
    let listed = field.host(0).command(&settings, &["audit", "--worker", &field.name(0), "--exposed"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().filter(|line| line.contains("  over  ")).count(), TASKS * 2, "{listed}");
    drop(worker);
}

#[test]
fn a_recycled_worker_that_does_not_come_back_is_told_of() {
    let field = Field::new(Kind::Route);
    let app = field.app();
    let gate = field.host(0).start(&recycling(&field));
    field.wait_until_both_are(&gate, "admitted");
    let mut worker = field.worker(&app, 0);
    let facts = field.facts();
    field.host(0).set_profile(DRIFTED);
    assert!(worker.wait().success(), "{}", worker.log());
    let fact = facts.nth(SOON * 3, "worker-recycled", &field.name(0), 0).body;
    assert_eq!(fact["reason"]["code"], "not_recycled", "{fact}");
    assert!(fact["reason"]["detail"].as_str().unwrap().contains("has not come back"), "{fact}");
}

fn app_of(vhost: &Vhost) -> App {
    App::new(&vhost.url(), "codex", LANE)
}

#[test]
fn of_ten_thousand_that_wait_only_what_the_worker_has_in_its_hands_runs_there() {
    const WAITING: usize = 10_000;
    let (vhost, host) = (vhost(), Host::new("ten-thousand"));
    let app = app_of(&vhost);
    let gate = host.start(&patient(&host.settings(&vhost.url(), LANE)));
    gate.wait_until(SOON, LANE, "admitted");
    let _worker = app.worker(LANE, LANE, &["-c", "2", "--prefetch-multiplier", "4"]);
    // Both processes are busy for as long as the test needs to let the rest wait.
    vhost.publish_tasks("codex", LANE, (0..2).map(|n| Task::slow(format!("slow-{n}"), 15.0)));
    until(SOON, "it works", || app.runs().len() == 2);
    vhost.publish_tasks("codex", LANE, (0..WAITING).map(|n| Task::mark(format!("m-{n:05}"))));
    until(SOON, "all of them wait", || vhost.waiting(LANE) as usize >= WAITING - 8);
    let facts = Facts::of(&vhost);
    host.set_profile(DRIFTED);
    let fact = facts.nth(SOON, "worker-quarantined", LANE, 0).body;
    until(SOON * 2, "the lane is empty", || vhost.waiting(LANE) == 0);
    let total = WAITING + 2;
    until(SOON, "it has run what it had", || app.runs().len() + vhost.waiting(HELD) as usize == total);
    let seen: jiff::Timestamp = fact["seen_at"].as_str().unwrap().parse().unwrap();
    let seen = seen.as_duration().as_secs_f64();
    let after = app.marks().iter().filter(|mark| mark.phase == "started" && mark.at > seen).count();
    assert!(after <= 8, "{after} were started after the drift was seen; {fact}");
    let held = vhost.waiting(HELD) as usize;
    // Whoever looks at them hands them back, each in its place.
    let look = vhost.consume(HELD);
    until(SOON, "all that are held have been seen", || look.count() == held);
    let ids: Vec<_> = look.take().iter().map(|message| message.task_id().unwrap()).collect();
    assert!(ids.is_sorted(), "not in their order: {ids:?}");
    vhost.wait_for_messages(SOON, HELD, u32::try_from(held).unwrap());
    host.set_profile(MANAGED);
    // To read ten thousand marks again and again would take the time that the tasks need.
    until(SOON * 4, "all of them have run", || app.written() >= total);
    each_once(&app.wait_for_runs(SOON, total), total);
}

#[test]
fn a_flood_past_the_shut_edge_runs_nowhere_and_is_reported_once_a_minute() {
    const FLOOD: usize = 3_000;
    let (vhost, host) = (vhost(), Host::new("flood"));
    let app = app_of(&vhost);
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let _worker = app.worker(LANE, LANE, &["-c", "2"]);
    let facts = Facts::of(&vhost);
    host.set_profile(DRIFTED);
    facts.nth(SOON, "worker-quarantined", LANE, 0);
    for n in 0..10 {
        let some = (0..FLOOD / 10).map(|m| Task::mark(format!("past-{n}-{m}")));
        vhost.publish_tasks("", LANE, some);
    }
    vhost.wait_for_messages(SOON, HELD, u32::try_from(FLOOD).unwrap());
    let told = || facts.all().into_iter().filter(|fact| fact.kind() == "worker-bypass").collect::<Vec<_>>();
    assert_eq!(told().len(), 1, "{:?}", told());
    let reason = &told()[0].body["reason"];
    assert!(reason["remedy"].as_str().unwrap().contains("\"exchange\": \"codex\""), "{reason}");
    until(Duration::from_secs(75), "the rest is told of a minute later", || told().len() == 2);
    let count = |fact: &Value| {
        let detail = fact["reason"]["detail"].as_str().unwrap();
        detail.split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(told().iter().map(|fact| count(&fact.body)).sum::<usize>(), FLOOD);
    assert!(app.runs().is_empty(), "{:?}", app.runs());
}

#[test]
fn a_burst_past_the_shut_edge_runs_nowhere_even_while_the_gate_has_no_time_for_it() {
    const BURST: usize = 1_000;
    /// Thirty megabytes in all: what the kernel keeps for a gate that reads nothing is less.
    const BYTES: usize = 30_000;
    let (vhost, host) = (vhost(), Host::new("burst"));
    let app = app_of(&vhost);
    // Longer than the gate is stopped.
    let settings = patient(&host.settings(&vhost.url(), LANE));
    let mut gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    let _worker = app.worker(LANE, LANE, &["-c", "2"]);
    host.set_profile(DRIFTED);
    gate.wait_until(SOON, LANE, "quarantined");
    let consumers = || vhost.count(LANE).unwrap().consumers;
    until(SOON, "the gate expects bursts, beside the worker", || consumers() == 6);
    gate.freeze();
    let burst = (0..BURST).map(|n| {
        let (body, properties) = Task::mark(format!("past-{n}")).to_amqp();
        let mut headers = properties.headers().clone().unwrap();
        headers.insert("padding".into(), AMQPValue::LongString("-".repeat(BYTES).into()));
        (body, properties.with_headers(headers))
    });
    vhost.publish_all("", LANE, burst.collect());
    throughout(Duration::from_secs(2), "nothing runs", || app.runs().is_empty());
    gate.thaw();
    vhost.wait_for_messages(SOON * 2, HELD, u32::try_from(BURST).unwrap());
    assert!(app.runs().is_empty(), "{:?}", app.runs());
    host.set_profile(MANAGED);
    each_once(&app.wait_for_runs(SOON * 4, BURST), BURST);
}

#[test]
fn in_an_alarm_the_fact_says_that_the_broker_is_blocked_and_afterwards_all_of_it_is_held() {
    let (vhost, host) = (Vhost::on(Broker::fresh()), Host::new("blocked"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    vhost.publish("codex", LANE, (0..500).map(|n| format!("m-{n}")));
    vhost.wait_for_messages(SOON, LANE, 500);
    let facts = Facts::of(&vhost);
    vhost.broker().memory_alarm(true);
    host.set_profile(DRIFTED);
    until(SOON, "the edge is shut during the alarm", || !vhost.is_open(LANE));
    gate.wait_for(SOON, LANE, "moving", |record| record["moving"]["left"].as_u64().is_some_and(|left| left > 400));
    vhost.broker().memory_alarm(false);
    vhost.wait_for_messages(SOON, HELD, 500);
    let fact = facts.nth(SOON, "worker-quarantined", LANE, 0).body;
    assert_eq!(fact["broker_blocked"], true, "{fact}");
    let account = &fact["account"];
    let count = |key: &str| account[key].as_u64().unwrap();
    assert_eq!((count("before"), count("taken")), (500, 0), "{account}");
    assert_eq!(count("moved") + count("left"), 500, "{account}");
    gate.wait_for(SOON, LANE, "no longer moving", |record| record["moving"].is_null());
}
