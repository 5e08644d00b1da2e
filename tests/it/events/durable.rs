//! What comes while a subscriber with a name is away waits for it, and subscribers do not disturb each other.

use std::time::Duration;

use lapin::types::FieldTable;

use super::{
    EXCHANGE, SOON,
    hook::{Answer, Hook, url},
    stage::{Kind, Stage, event, event_at, now, on_both_brokers, seqs, shown},
};
use crate::support::{
    process::free_port,
    proxy::Proxy,
    rabbitmq::Broker,
    vhost::Vhost,
    wait::{LONG, throughout, until},
};

const NAMED: [&str; 3] = ["--json", "--durable", "tests"];

on_both_brokers! {
    what_comes_while_it_is_away_is_shown_when_it_is_back_and_once
    nothing_is_missed_and_nothing_comes_twice_over_a_lost_link
    subscribers_do_not_disturb_each_other
    with_since_a_subscriber_passes_over_what_is_older
}

fn what_comes_while_it_is_away_is_shown_when_it_is_back_and_once(stage: &Stage) {
    stage.publish([event("worker-held", 1)]);
    let mut first = stage.subscribe(&NAMED);
    stage.publish((2..=4).map(|seq| event("worker-held", seq)));
    assert_eq!(shown(SOON, &first, 3), [2, 3, 4], "from now on");
    assert_eq!(first.stop(SOON).and_then(|status| status.code()), Some(0));

    stage.publish((5..=300).map(|seq| event("worker-held", seq)));
    let second = stage.subscribe(&NAMED);
    stage.publish([event("worker-held", 301)]);
    assert_eq!(shown(SOON, &second, 297), (5..=301).collect::<Vec<_>>());
    assert!(!second.output().contains("missed"), "{}", second.output());
}

fn nothing_is_missed_and_nothing_comes_twice_over_a_lost_link(stage: &Stage) {
    let proxy = match &stage.broker {
        Kind::RabbitMq(vhost) => Proxy::to(vhost.broker().port()),
        Kind::Redis(redis) => Proxy::to(redis.port()),
    };
    let url = match &stage.broker {
        Kind::RabbitMq(vhost) => vhost.url_as("guest", "guest", proxy.port()),
        Kind::Redis(redis) => redis.url_at(proxy.port()),
    };
    let program = stage.subscribe_at(&url, &NAMED);
    let subscribed = || program.output().matches("subscribed to").count();
    for cut in 1..=3 {
        std::thread::scope(|scope| {
            scope.spawn(|| stage.publish((cut * 300 - 299..=cut * 300).map(|seq| event("worker-held", seq))));
            proxy.cut();
        });
        until(SOON, "it is back", || subscribed() == 1 + cut as usize);
        assert_eq!(shown(SOON, &program, 300 * cut as usize), (1..=u64::from(300 * cut)).collect::<Vec<_>>());
    }
    let output = program.output();
    assert!(output.contains("keeps what comes until it is back") && !output.contains("missed"), "{output}");
}

fn subscribers_do_not_disturb_each_other(stage: &Stage) {
    // One that cannot deliver, two with names, one without.
    let stuck = url(free_port(), "/");
    let mut stuck = stage.subscribe(&["--durable", "stuck", "--webhook", &stuck]);
    let (one, other) = (stage.subscribe(&NAMED), stage.subscribe(&["--json", "--durable", "other"]));
    let plain = stage.subscribe(&["--json"]);
    stage.publish((1..=200).map(|seq| event("worker-held", seq)));
    for subscriber in [&one, &other, &plain] {
        assert_eq!(shown(SOON, subscriber, 200), (1..=200).collect::<Vec<_>>());
    }
    stuck.wait_for_output(SOON, "(seq 1 of gate g) waits");
}

fn with_since_a_subscriber_passes_over_what_is_older(stage: &Stage) {
    let since = [&NAMED[..], &["--since", "10m"]].concat();
    if let Kind::Redis(redis) = &stage.broker {
        // Of what was before its name was first used, Redis has the last ten minutes too.
        let long_ago = event_at("worker-held", 1, 1.0);
        let _: String = redis.ask(&["XADD", EXCHANGE, "1000-0", "event", &long_ago]);
        stage.publish([event("worker-held", 2)]);
        let mut before = stage.subscribe(&since);
        assert_eq!(shown(SOON, &before, 1), [2]);
        before.stop(SOON);
    } else {
        stage.subscribe(&since).stop(SOON);
    }
    // It comes late, as from a gate that was without a broker for an hour.
    stage.publish([event_at("worker-held", 3, now() - 3600.0), event("worker-held", 4)]);
    let after = stage.subscribe(&since);
    shown(SOON, &after, 1);
    throughout(Duration::from_millis(300), "the old one is not shown", || seqs(&after.output()) == [4]);
}

#[test]
fn a_queue_that_is_no_subscribers_is_left_alone_and_told() {
    let stage = Stage::rabbitmq();
    let mut program = stage.start(&stage.url(), &[], &["--durable", "bystander"]);
    assert_eq!(program.wait(SOON).code(), Some(64));
    let output = program.output();
    assert!(output.contains("there is a queue of this name that is no subscriber's"), "{output}");
    assert!(output.contains("PRECONDITION_FAILED"), "{output}");
}

#[test]
fn a_second_subscriber_of_a_name_waits_for_the_first_to_go() {
    let stage = Stage::rabbitmq();
    let mut first = stage.subscribe(&NAMED);
    let mut second = stage.subscribe(&NAMED);
    second.wait_for_output(SOON, "another subscriber uses the name \"tests\"");
    stage.publish((1..=5).map(|seq| event("worker-held", seq)));
    assert_eq!(shown(SOON, &first, 5), [1, 2, 3, 4, 5]);
    assert!(seqs(&second.output()).is_empty());
    first.kill();
    stage.publish([event("worker-held", 6)]);
    until(SOON, "the second goes on", || seqs(&second.output()).contains(&6));
}

#[test]
fn a_delivery_may_take_longer_than_rabbitmq_waits_for_an_acknowledgement() {
    let broker = Broker::fresh();
    for setting in ["consumer_timeout, 3000", "channel_tick_interval, 1000"] {
        broker.ctl(&["eval", &format!("application:set_env(rabbit, {setting}).")]);
    }
    let stage = Stage::on(Vhost::on(broker));
    let port = free_port();
    let mut program = stage.subscribe(&["--durable", "tests", "--webhook", &url(port, "/")]);
    stage.publish((1..=3).map(|seq| event("worker-held", seq)));
    program.wait_for_output(SOON, "(seq 1 of gate g) waits");
    let Kind::RabbitMq(vhost) = &stage.broker else { unreachable!() };
    vhost.wait_for_messages(LONG, "tests", 3);
    let hook = Hook::at(port, |_| Answer::Status(200));
    until(LONG, "all were taken", || hook.taken().len() >= 3);
    program.wait_for_output(SOON, "the link was lost");
    until(SOON, "it is back", || program.output().matches("subscribed to").count() == 2);
    stage.publish([event("worker-held", 4)]);
    until(LONG, "the next was taken", || hook.taken().len() >= 4);
    assert_eq!(hook.seqs(), [1, 2, 3, 4], "each once");
    assert!(!program.output().contains("missed"), "{}", program.output());
}

#[test]
fn what_waits_for_a_name_is_bounded_and_the_oldest_goes() {
    let stage = Stage::rabbitmq();
    let Kind::RabbitMq(vhost) = &stage.broker else { unreachable!() };
    stage.subscribe(&NAMED).stop(SOON);
    let queues = vhost.list("queues");
    let queue = queues.iter().find(|queue| queue["name"] == "tests").unwrap();
    assert_eq!(queue["arguments"]["x-max-length"], 100_000);
    assert_eq!(queue["arguments"]["x-overflow"], "drop-head");
    assert_eq!((&queue["durable"], &queue["exclusive"]), (&true.into(), &false.into()));
    // Its name is free again when it is deleted.
    vhost.delete_queue("tests");
    vhost.declare_queue_with("tests", FieldTable::default());
}
