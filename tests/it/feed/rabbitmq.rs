//! The feed on RabbitMQ: kinds of queues, and what a message looks like at the end of it.

use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use super::{DRIFTED, SOON, marks, slow};
use crate::{
    intakes::{assert_unchanged, odd},
    support::{
        field::{Field, INTAKE, Kind, each_once},
        gate::MANAGED,
        wait::until,
    },
};

/// Arguments of a queue that is `classic` or `quorum`, as Celery declares it.
fn arguments(of: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    if of == "quorum" {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    }
    arguments
}

#[test]
fn a_classic_intake_feeds_a_quorum_lane() {
    feeds("classic", "quorum");
}

#[test]
fn a_quorum_intake_feeds_a_classic_lane() {
    feeds("quorum", "classic");
}

#[test]
fn a_quorum_intake_feeds_a_quorum_lane() {
    feeds("quorum", "quorum");
}

/// A worker whose lane fills up, drifts and is mended runs all of it once.
#[track_caller]
fn feeds(intake: &str, lane: &str) {
    let field = Field::with_intake(Kind::FeedRabbitmq, arguments(intake));
    let app = field.app().with(json!({ "task_create_missing_queue_type": lane }));
    let host = field.host(0);
    let mut settings = field.settings_of(host, 0).replace("depth = 1", "depth = 3");
    if lane == "quorum" {
        settings += "queue_arguments = { x-queue-type = \"quorum\" }\n";
    }
    let gate = host.start(&settings);
    gate.wait_until(SOON, &field.name(0), "admitted");
    let _worker = field.worker(&app, 0);
    field.publish(marks("m-", 10));
    each_once(&app.wait_for_runs(SOON, 10), 10);
    field.publish(slow(10, 0.3));
    until(SOON, "the lane is full", || field.in_lane(0) == 3 && app.runs().len() > 10);
    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, &field.name(0), "shut");
    until(SOON, "the lane is put back", || field.in_lane(0) == 0 && field.waiting() >= 3);
    host.set_profile(MANAGED);
    app.wait_for_runs(SOON, 20);
    field.wait_until_quiet(&app);
    each_once(&app.runs(), 20);
    let kind_of = |queue: &str| {
        let queues = field.vhost().list("queues");
        queues.into_iter().find(|found| found["name"] == queue).unwrap()["type"].as_str().unwrap().to_owned()
    };
    assert_eq!((kind_of(INTAKE).as_str(), kind_of(&field.lane(0)).as_str()), (intake, lane));
    assert!(gate.stop().success());
}

#[test]
fn a_gate_that_is_killed_while_nothing_moves_leaves_nothing_that_would_run_twice() {
    let field = Field::new(Kind::FeedRabbitmq);
    let app = field.app();
    let _workers = field.workers(&app);
    for round in 1..=3 {
        let gate = field.admit_both();
        field.publish(marks(&format!("{round}-"), 10));
        each_once(&app.wait_for_runs(SOON, 10 * round), 10 * round);
        field.stays(&app, 0, 10 * round);
        gate.kill();
        field.wait_until_nobody_owns();
    }
    field.stays(&app, 0, 30);
    each_once(&app.runs(), 30);
}

#[test]
fn a_message_is_the_same_after_it_was_fed_and_comes_from_the_exchange_that_a_retry_must_take() {
    let field = Field::new(Kind::FeedRabbitmq);
    let host = field.host(0);
    let gate = host.start(&field.settings_of(host, 0));
    gate.wait_until(SOON, &field.name(0), "admitted");
    let lane = field.lane(0);
    let taken = field.vhost().consume(&lane);
    let sent = odd();
    field.vhost().publish_all(
        "",
        INTAKE,
        sent.iter().cloned().map(|(_, body, properties)| (body, properties)).collect(),
    );
    until(SOON, "all have been fed", || taken.count() == sent.len());
    let expected: Vec<_> = sent.into_iter().map(|(_, body, properties)| (lane.clone(), body, properties)).collect();
    assert_unchanged(&taken.take(), &expected, "codex.feed");
}

#[test]
fn a_message_is_the_same_after_it_was_put_back_and_fed_again() {
    let field = Field::new(Kind::FeedRabbitmq);
    let host = field.host(0);
    let gate = host.start(&field.settings_of(host, 0).replace("depth = 1", "depth = 20"));
    gate.wait_until(SOON, &field.name(0), "admitted");
    let (lane, count) = (field.lane(0), u32::try_from(odd().len()).unwrap());
    let sent = odd();
    {
        // Somebody consumes, and has all that he may have: the messages stay in the lane.
        let _busy = field.vhost().consume_nothing(&lane);
        field.vhost().publish_all(
            "",
            INTAKE,
            sent.iter().cloned().map(|(_, body, properties)| (body, properties)).collect(),
        );
        until(SOON, "all are in the lane, but for the one in hand", || field.in_lane(0) + 1 == count);
        host.set_profile(DRIFTED);
        gate.wait_for_edge(SOON, &field.name(0), "shut");
        field.wait_for_waiting(count - 1);
    }
    until(SOON, "what he had is put back too", || field.waiting() == count);
    host.set_profile(MANAGED);
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let taken = field.vhost().consume(&lane);
    until(SOON, "all have been fed", || taken.count() == sent.len());
    let mut expected: Vec<_> = sent.into_iter().map(|(_, body, properties)| (lane.clone(), body, properties)).collect();
    // The one that was in hand came back last.
    expected.rotate_left(1);
    assert_unchanged(&taken.take(), &expected, "codex.feed");
}
