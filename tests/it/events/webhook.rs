//! A POST for each event, to servers that are down, slow or of two minds.

use std::time::Duration;

use super::{
    SOON,
    hook::{Answer, Hook, url},
    stage::{Stage, event, first_of_each, on_both_brokers},
};
use crate::support::{
    process::free_port,
    wait::{LONG, until},
};

on_both_brokers! {
    no_event_is_lost_and_order_is_kept_while_the_other_side_is_down_slow_or_of_two_minds
    nothing_is_lost_when_the_subscriber_is_killed
}

fn no_event_is_lost_and_order_is_kept_while_the_other_side_is_down_slow_or_of_two_minds(stage: &Stage) {
    let port = free_port();
    let mut program = stage.subscribe(&["--durable", "tests", "--webhook", &url(port, "/hook")]);
    stage.publish((1..=12).map(|seq| event("worker-quarantined", seq)));
    program.wait_for_output(SOON, "worker-quarantined of codex-0@h (seq 1 of gate g) waits:");
    let hook = Hook::at(port, |number| match number % 4 {
        0 => Answer::Status(500),
        1 => Answer::Status(200),
        2 => Answer::HangUp,
        _ => Answer::Slowly(Duration::from_millis(100)),
    });
    until(LONG, "all were taken", || hook.taken().len() >= 12);
    assert_eq!(hook.seqs(), (1..=12).collect::<Vec<_>>(), "each once and in order");
    let first = &hook.taken()[0];
    assert!(first.head.starts_with("POST /hook HTTP/1.1\r\n"), "{}", first.head);
    assert!(first.head.to_lowercase().contains("content-type: application/json\r\n"), "{}", first.head);
    assert_eq!(first.json()["reason"]["remedy"], "codex login");
    program.wait_for_output(SOON, "answered 500 (Internal Server Error); trying again");
}

fn nothing_is_lost_when_the_subscriber_is_killed(stage: &Stage) {
    let hook = Hook::start(|_| Answer::Slowly(Duration::from_millis(20)));
    let url = hook.url("/");
    let args = ["--durable", "tests", "--webhook", &url];
    let mut first = stage.subscribe(&args);
    stage.publish((1..=60).map(|seq| event("worker-held", seq)));
    for more in 1..=3 {
        until(LONG, "some were taken", || hook.taken().len() >= 10 * more as usize);
        first.kill();
        stage.publish([event("worker-held", 60 + more)]);
        first = stage.subscribe(&args);
    }
    until(LONG, "all were taken", || hook.seqs().contains(&63));
    assert_eq!(first_of_each(&hook.seqs()), (1..=63).collect::<Vec<_>>());
    // One that was under way at each kill.
    assert!(hook.seqs().len() <= 63 + 3, "{:?}", hook.seqs());
    assert!(!first.output().contains("missed"), "{}", first.output());
}

#[test]
fn without_a_name_a_webhook_is_tried_again_too() {
    let stage = Stage::rabbitmq();
    let hook = Hook::start(|number| if number < 3 { Answer::Status(503) } else { Answer::Status(204) });
    let mut program = stage.subscribe(&["--webhook", &hook.url("/")]);
    stage.publish([event("worker-held", 1)]);
    program.wait_for_output(SOON, "(seq 1 of gate g) is delivered, after 3 failed attempts");
    assert_eq!(hook.posts().len(), 4);
}

#[test]
fn what_is_secret_in_a_url_is_not_shown_and_no_redirect_is_followed() {
    let stage = Stage::rabbitmq();
    let elsewhere = Hook::start(|_| Answer::Status(200));
    let target = elsewhere.url("/geheim");
    let hook = Hook::start(move |number| match number {
        0 => Answer::To(target.clone()),
        1 => Answer::Status(404),
        2 => Answer::HangUp,
        _ => Answer::Status(200),
    });
    let url = hook.url("/services/geheim?token=geheim").replace("http://", "http://geheim:geheim@");
    // By the environment, where other users of the machine do not see it.
    let env = [("WORKER_GATE_WEBHOOK_URL", url.as_str())];
    let args = ["--durable", "tests", "--webhook", "--body", "event"];
    let mut program = stage.start(&stage.url(), &env, &args);
    program.wait_for_output(SOON, "subscribed to");
    stage.publish([event("worker-held", 1)]);
    program.wait_for_output(SOON, "is delivered, after 3 failed attempts");
    let output = program.output();
    assert!(output.contains(&format!("{} answered 302 (Found), which leads elsewhere", hook.url(""))), "{output}");
    assert!(!output.contains("geheim"), "{output}");
    assert!(elsewhere.posts().is_empty());
    // geheim:geheim
    assert!(hook.taken()[0].head.contains("Basic Z2VoZWltOmdlaGVpbQ=="), "{}", hook.taken()[0].head);
}

#[test]
fn what_is_wrong_on_the_command_line_is_said_at_once() {
    let stage = Stage::rabbitmq();
    for (args, what) in [
        (&["--webhook", "hooks.example/geheim"][..], "no http or https URL"),
        (&["--webhook"], "there is no URL"),
        (&["--exec", "./nope"], "there is no such program"),
        (&["--exec", "sh", "--webhook", "http://h/"], "cannot be used with"),
        (&["--exec", "sh", "--json"], "cannot be used with"),
        (&["--body", "chat"], "required"),
        (&["--time-limit", "5s"], "required"),
        (&["--exec", "sh", "--time-limit", "0s"], "no time at all"),
        (&["--durable", ""], "an empty name"),
        (&["--", "x"], "required"),
        (&["--since", "10m"], "--durable NAME"),
    ] {
        let mut program = stage.start(&stage.url(), &[], args);
        let status = program.wait(SOON);
        let output = program.output();
        assert_eq!(status.code(), Some(64), "{args:?}: {output}");
        assert!(output.contains(what) && !output.contains("geheim"), "{args:?}: {output}");
    }
}
