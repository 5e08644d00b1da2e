//! What Celery's users know Celery for is as it was, on every edge.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::{
    celery::App,
    field::{Field, Kind, each_once, for_each_edge},
    gate::{Gate, MANAGED},
    redis::Redis,
    tasks::Task,
    wait::{throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
/// For what must not happen.
const A_WHILE: Duration = Duration::from_millis(1_500);
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

for_each_edge! {
    a_retry_runs_soon_and_one_that_falls_into_a_quarantine_waits_with_the_rest
    a_task_with_a_time_runs_then_and_not_before
    what_is_urgent_runs_first
    what_has_expired_or_was_revoked_while_it_waited_does_not_run
    chains_groups_and_chords_come_to_their_results_after_a_quarantine
}

#[track_caller]
fn quarantine_both(field: &Field, gate: &Gate) {
    field.hosts().iter().for_each(|host| host.set_profile(DRIFTED));
    field.wait_until_both_are(gate, "quarantined");
}

fn mend_both(field: &Field) {
    field.hosts().iter().for_each(|host| host.set_profile(MANAGED));
}

fn retries(app: &App, prefix: &str) -> usize {
    app.marks().iter().filter(|mark| mark.retries == 1 && mark.id.starts_with(prefix)).count()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn a_retry_runs_soon_and_one_that_falls_into_a_quarantine_waits_with_the_rest(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let _workers = field.workers(&app);
    field.send(&app, "app.retry_once", "soon-", 4, &[]);
    until(SOON, "each has run again", || retries(&app, "soon-") == 4);

    field.send(&app, "app.retry_slowly", "late-", 2, &[json!(4)]);
    app.wait_for_runs(SOON, 6);
    quarantine_both(&field, &gate);
    field.send(&app, "app.mark", "rest-", 4, &[]);
    // The two that ran when the edges were shut end meanwhile, and ask for one more run.
    field.wait_for_waiting(6);
    throughout(A_WHILE, "the retries wait with the rest", || {
        retries(&app, "late-") == 0 && app.runs().len() == 6 && field.waiting() == 6
    });
    mend_both(&field);
    app.wait_for_runs(SOON, 10);
    until(SOON, "each has run again", || retries(&app, "late-") == 2);
    let runs = app.runs();
    for (id, times) in &runs {
        assert_eq!(*times, if id.starts_with("rest-") { 1 } else { 2 }, "{runs:?}");
    }
}

fn a_task_with_a_time_runs_then_and_not_before(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let _workers = field.workers(&app);
    let sent = now();
    // More than the workers could hold if each counted as one that they work on.
    field.send_with(&app, &json!({ "countdown": 4 }), "app.mark", "later-", 8, &[]);
    // By the test itself: for a producer's Python to start takes a part of those seconds.
    field.publish((0..4).map(|n| Task::mark(format!("now-{n}"))));
    app.wait_for_runs(SOON, 4);
    assert!(app.runs().keys().all(|id| id.starts_with("now-")), "{:?}", app.runs());
    each_once(&app.wait_for_runs(SOON, 12), 12);
    for mark in app.marks().iter().filter(|mark| mark.id.starts_with("later-")) {
        assert!(mark.at >= sent + 4.0, "{mark:?} was sent at {sent}");
    }

    // A time that comes during a quarantine is over after it, and one that does not is still to come.
    quarantine_both(&field, &gate);
    let sent = now();
    field.send_with(&app, &json!({ "countdown": 1 }), "app.mark", "past-", 4, &[]);
    field.send_with(&app, &json!({ "countdown": 6 }), "app.mark", "future-", 4, &[]);
    field.wait_for_waiting(8);
    until(SOON, "the first time has come", || now() > sent + 2.0);
    assert_eq!((app.runs().len(), field.waiting()), (12, 8));
    mend_both(&field);
    app.wait_for_runs(SOON, 16);
    each_once(&app.wait_for_runs(SOON, 20), 20);
    for mark in app.marks().iter().filter(|mark| mark.id.starts_with("future-")) {
        assert!(mark.at >= sent + 6.0, "{mark:?} was sent at {sent}");
    }
}

fn what_is_urgent_runs_first(kind: Kind) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-priority".into(), AMQPValue::LongInt(9));
    let field = Field::with_intake(kind, arguments);
    let on_redis = kind == Kind::FeedRedis;
    // On Redis there is nothing to say: every queue has lists for all steps.
    let app = field.app().with(if on_redis { json!({}) } else { json!({ "task_queue_max_priority": 9 }) });
    let host = field.host(0);
    let mut settings = field.settings_of(host, 0);
    if !on_redis {
        settings += "queue_arguments = { x-max-priority = 9 }\n";
    }
    let gate = host.start(&settings);
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let priorities = [3, 9, 0, 6, 3, 0, 9, 6];
    app.send_with(&json!(priorities.map(|priority| json!({ "priority": priority }))), "app.mark", "p-", 16, &[]);
    until(SOON, "all are where they are sorted", || field.waiting() + field.in_lane(0) == 16);
    let _worker = field.worker(&app, 0);
    each_once(&app.wait_for_runs(SOON, 16), 16);

    let mut expected: Vec<_> = (0..16).map(|n| (priorities[n % 8], format!("p-{n}"))).collect();
    // Both sorts keep the order of equals. On Redis 0 is the most urgent, on RabbitMQ 9.
    expected.sort_by_key(|(priority, _)| if on_redis { *priority } else { 9 - *priority });
    let order: Vec<_> = app.marks().into_iter().map(|mark| mark.id).collect();
    assert_eq!(order, expected.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
}

fn what_has_expired_or_was_revoked_while_it_waited_does_not_run(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let _workers = field.workers(&app);
    quarantine_both(&field, &gate);
    field.send(&app, "app.mark", "m-", 6, &[]);
    field.wait_for_waiting(6);
    let sent = now();
    field.send_with(&app, &json!({ "expires": 2 }), "app.mark", "expired-", 4, &[]);
    field.send_with(&app, &json!({ "expires": 600 }), "app.mark", "fresh-", 4, &[]);
    app.revoke("m-2");
    app.revoke("m-3");
    until(SOON, "what expires has expired", || now() > sent + 4.0);
    assert_eq!(app.runs().len(), 0);
    mend_both(&field);
    app.wait_for_runs(SOON, 8);
    field.wait_until_quiet(&app);
    let runs = app.runs();
    each_once(&runs, 8);
    let not_run = |id: &String| id.starts_with("expired-") || id == "m-2" || id == "m-3";
    assert!(!runs.keys().any(not_run), "{runs:?}");
    assert_eq!((field.waiting(), field.in_lane(0), field.in_lane(1)), (0, 0, 0));
}

fn chains_groups_and_chords_come_to_their_results_after_a_quarantine(kind: Kind) {
    let (field, backend) = (Field::new(kind), Redis::start());
    let app = field.app().with(json!({ "result_backend": backend.url(), "task_ignore_result": false }));
    let gate = field.admit_both();
    let _workers = field.workers(&app);
    quarantine_both(&field, &gate);
    let canvas = app.canvas(Duration::from_secs(40));
    // The chain's first, and all of the group and of the chord's header.
    field.wait_for_waiting(13);
    throughout(A_WHILE, "none of them runs", || app.runs().is_empty());
    mend_both(&field);
    let results = canvas.results();
    assert_eq!(results, json!({ "chain": 113, "group": [0, 2, 4, 6, 8, 10], "chord": 30 }));
    each_once(&app.runs(), 3 + 6 + 7);
}
