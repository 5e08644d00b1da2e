//! A program for each event.

use std::{fs, time::Duration};

use nix::{errno::Errno, sys::signal::kill, unistd::Pid};

use super::{
    SOON,
    stage::{Stage, event, first_of_each, on_both_brokers, seqs},
};
use crate::support::wait::{eventually, until};

on_both_brokers! {
    a_program_gets_each_event_in_order_one_at_a_time
    a_durable_subscriber_that_is_killed_goes_on_where_it_was
}

/// A script of a test's own, run by a shell: no file is run that was just written, which Linux may refuse for a moment.
fn script(stage: &Stage, text: &str) -> String {
    let file = stage.dir.join("script.sh");
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

fn read(stage: &Stage, name: &str) -> String {
    fs::read_to_string(stage.dir.join(name)).unwrap_or_default()
}

fn a_program_gets_each_event_in_order_one_at_a_time(stage: &Stage) {
    let out = stage.dir.join("out").display().to_string();
    // Two at once would find the other's mark.
    let text = "[ ! -e \"$1.mark\" ] || echo two at once; : > \"$1.mark\"; cat >> \"$1\"; \
                echo \"$WORKER_GATE_SEQ $WORKER_GATE_TYPE $WORKER_GATE_REMEDY $2\" >> \"$1.env\"; rm \"$1.mark\"\n";
    let script = script(stage, text);
    let types = ["--type", "worker-quarantined", "--type", "gate-*", "--worker", "codex-?@*"];
    let exec = ["--exec", "sh", "--", &script, &out, "two words"];
    let program = stage.subscribe(&[&types[..], &exec].concat());
    stage.publish((1..=40).map(|seq| event(if seq % 2 == 0 { "worker-quarantined" } else { "worker-held" }, seq)));
    let even: Vec<u64> = (1..=20).map(|half| 2 * half).collect();
    until(SOON * 2, "each was run", || read(stage, "out.env").lines().count() == even.len());
    assert_eq!(seqs(&read(stage, "out")), even);
    let env = |seq: &u64| format!("{seq} worker-quarantined codex login two words");
    assert_eq!(read(stage, "out.env").lines().collect::<Vec<_>>(), even.iter().map(env).collect::<Vec<_>>());
    assert!(!program.output().contains("two at once"), "{}", program.output());
}

fn a_durable_subscriber_that_is_killed_goes_on_where_it_was(stage: &Stage) {
    let out = stage.dir.join("out").display().to_string();
    // Until the way is free, number 10 fails.
    let text = "[ \"$WORKER_GATE_SEQ\" != 10 ] || [ -e \"$1.free\" ] || exit 1; cat >> \"$1\"\n";
    let script = script(stage, text);
    let args = ["--durable", "tests", "--exec", "/bin/sh", "--", &script, &out];
    let mut first = stage.subscribe(&args);
    stage.publish((1..=20).map(|seq| event("worker-held", seq)));
    first.wait_for_output(SOON, "worker-held of codex-0@h (seq 10 of gate g) waits: /bin/sh ended with exit code 1");
    assert_eq!(seqs(&read(stage, "out")), (1..=9).collect::<Vec<_>>());
    first.kill();

    stage.publish((21..=25).map(|seq| event("worker-held", seq)));
    let mut second = stage.subscribe(&args);
    second.wait_for_output(SOON, "(seq 10 of gate g) waits");
    fs::write(stage.dir.join("out.free"), "").unwrap();
    second.wait_for_output(SOON, "(seq 10 of gate g) is delivered, after");
    until(SOON, "all have come", || seqs(&read(stage, "out")).contains(&25));
    // What was delivered and not yet acknowledged when it was killed may come again.
    assert_eq!(first_of_each(&seqs(&read(stage, "out"))), (1..=25).collect::<Vec<_>>());
    assert!(!second.output().contains("missed"), "{}", second.output());
}

#[test]
fn without_a_name_an_event_whose_program_fails_is_noted_and_passed_over() {
    let stage = Stage::rabbitmq();
    let out = stage.dir.join("out").display().to_string();
    let script = script(&stage, "[ \"$WORKER_GATE_SEQ\" != 2 ] || exit 7; cat >> \"$1\"\n");
    let mut program = stage.subscribe(&["--exec", "/bin/sh", "--", &script, &out]);
    stage.publish((1..=3).map(|seq| event("worker-held", seq)));
    program.wait_for_output(
        SOON,
        "worker-held of codex-0@h (seq 2 of gate g) is passed over: /bin/sh ended with exit code 7",
    );
    until(SOON, "the third has come", || seqs(&read(&stage, "out")) == [1, 3]);
}

#[test]
fn a_program_over_its_time_is_ended_with_all_its_group() {
    let stage = Stage::rabbitmq();
    let pids = stage.dir.join("pids").display().to_string();
    // Neither hears TERM.
    let text =
        "[ \"$WORKER_GATE_SEQ\" = 1 ] || exit 0\ntrap '' TERM\nsleep 600 & echo \"$$ $!\" > \"$1\"; wait; sleep 600\n";
    let script = script(&stage, text);
    let args = ["--time-limit", "1s", "--exec", "/bin/sh", "--", &script, &pids];
    let mut program = stage.subscribe(&args);
    stage.publish((1..=2).map(|seq| event("worker-held", seq)));
    let both = eventually(SOON, "it runs", || {
        let pids = read(&stage, "pids");
        let pids: Vec<i32> = pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        (pids.len() == 2).then_some(pids)
    });
    program.wait_for_output(SOON, "(seq 1 of gate g) is passed over: /bin/sh ran longer than 1s and was ended");
    for pid in both {
        until(SOON, "it is gone", || is_gone(pid));
    }
    assert_eq!(program.stop(SOON).and_then(|status| status.code()), Some(0));
}

#[test]
fn a_program_that_runs_when_the_subscriber_is_stopped_is_ended_too() {
    let stage = Stage::rabbitmq();
    let pid = stage.dir.join("pid").display().to_string();
    let script = script(&stage, "echo $$ > \"$1\"; exec sleep 600\n");
    let mut program = stage.subscribe(&["--time-limit", "10m", "--exec", "/bin/sh", "--", &script, &pid]);
    stage.publish([event("worker-held", 1)]);
    let pid = eventually(SOON, "it runs", || read(&stage, "pid").trim().parse().ok());
    let started = std::time::Instant::now();
    assert_eq!(program.stop(SOON).and_then(|status| status.code()), Some(0), "{}", program.output());
    assert!(started.elapsed() < Duration::from_secs(10));
    until(SOON, "it is gone", || is_gone(pid));
}

/// Gone, or dead and not reaped by whoever has to.
fn is_gone(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
        || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
