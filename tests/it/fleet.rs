//! Many gates on one broker: who they are, what operators want of them, and who may not.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    field::{Field, Kind, for_each_edge},
    gate::{Gate, Host, MANAGED},
    wait::{LONG, eventually, throughout, until},
};

mod enemy;
mod key;
mod suspect;
mod unrest;

const SOON: Duration = Duration::from_secs(30);
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

for_each_edge! {
    status_shows_every_worker_of_every_gate_and_who_is_silent
    status_that_watches_shows_what_changes_until_it_is_stopped
    what_is_held_stays_shut_until_it_is_released
    an_operator_needs_the_broker_and_no_settings
    a_hold_ends_by_itself_and_outlives_its_gate
    a_release_ends_no_quarantine_whose_cause_stands
    of_two_operators_the_last_one_counts_and_both_are_told
    many_are_held_only_by_their_number_and_nobody_answers_for_a_stranger
}

/// A gate on each host, with one worker each.
fn gates(field: &Field) -> [Gate; 2] {
    let gates = [0, 1].map(|n| field.host(n).start(&field.settings_of(field.host(n), n)));
    for (n, gate) in gates.iter().enumerate() {
        gate.wait_until(LONG, &field.name(n), "admitted");
    }
    gates
}

/// A command's exit code, what it says, and what it complains of.
fn command(field: &Field, args: &[&str]) -> (i32, String, String) {
    let done = field.host(0).command(&field.settings_of(field.host(0), 0), args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code().unwrap(), text(&done.stdout), text(&done.stderr))
}

fn status(field: &Field, args: &[&str]) -> (i32, Vec<Value>) {
    let args: Vec<_> = ["status", "--json"].iter().chain(args).copied().collect();
    let (code, out, err) = command(field, &args);
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}")))
}

fn an_operator_needs_the_broker_and_no_settings(kind: Kind) {
    let field = Field::new(kind);
    let gates = gates(&field);
    let url = field.url();
    let elsewhere = Host::new("laptop");
    let ask = |args: &[&str]| {
        let done = elsewhere.command_in("", args, &[("CELERY_BROKER_URL", &url)]);
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, said, complaint) = ask(&["status", "--json"]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{said}");
    let records: Vec<Value> = serde_json::from_str(&said).unwrap();
    let names: Vec<_> = records.iter().map(|record| record["worker_name"].as_str().unwrap()).collect();
    assert_eq!(names, [0, 1].map(|n| field.name(n)));
    let name = field.name(1);
    let (code, said, complaint) = ask(&["hold", &name, "--reason", "new disk"]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{said}");
    gates[1].wait_for_edge(LONG, &name, "shut");
    let (code, said, complaint) = ask(&["release", &name]);
    assert!(matches!(code, Some(0 | 1)), "{said}{complaint}");
    gates[1].wait_until(LONG, &name, "admitted");
    // What needs a worker of its own says so.
    let (code, _, complaint) = ask(&["check"]);
    assert_eq!(code, Some(78));
    assert!(complaint.contains("there is no worker"), "{complaint}");
}

/// The lines of the gate's audit log on this host with this type.
fn audited(host: &Host, kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(host.state_dir().join("audit.jsonl")).unwrap_or_default();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["type"] == kind).collect()
}

fn status_shows_every_worker_of_every_gate_and_who_is_silent(kind: Kind) {
    let field = Field::new(kind);
    let [first, second] = gates(&field);
    let (code, records) = status(&field, &[]);
    assert_eq!(code, 0, "{records:?}");
    let gate_of = |record: &Value| (record["worker_name"].clone(), record["gate"].clone());
    let expected: Vec<_> =
        [0, 1].map(|n| (Value::from(field.name(n)), Value::from(field.host(n).name()))).into_iter().collect();
    assert_eq!(records.iter().map(gate_of).collect::<Vec<_>>(), expected);
    assert!(records.iter().all(|record| record["edge"] == "open" && record["waiting"] == 0), "{records:?}");
    assert!(records.iter().all(|record| record["worker_seen"] == false), "no worker runs: {records:?}");
    assert!(records.iter().all(|record| record["changed_at"].is_string()), "{records:?}");
    let app = field.app();
    let _worker = field.worker(&app, 1);
    // One that is slow to answer is not waited for.
    until(SOON, "the worker is seen", || {
        let (_, records) = status(&field, &["--worker", "codex-1*"]);
        assert_eq!(records.len(), 1);
        records[0]["worker_seen"] == true
    });
    second.kill();
    let look = || status(&field, &[]);
    let is_shut =
        |(code, records): &(i32, Vec<Value>)| *code == 1 && records.len() == 2 && records[1]["edge"] == "shut";
    let (_, silent) = match kind {
        // Its ways ended with its connection, and whoever asks is told so.
        Kind::Route | Kind::FeedRabbitmq => Some(look()).filter(is_shut).expect("one look is enough"),
        // Its keys have yet to expire.
        Kind::FeedRedis => eventually(SOON, "the gate's edge is shut", || Some(look()).filter(is_shut)),
    };
    assert_eq!(silent[0]["admission"], "admitted");
    assert_eq!(silent[1]["admission"], "held");
    assert_eq!(silent[1]["reason"]["code"], "gate_silent", "{silent:?}");
    let (code, table, _) = command(&field, &["status"]);
    assert_eq!(code, 1);
    assert!(table.contains(&format!("gate {} is silent: last heard", field.host(1).name())), "{table}");
    assert!(!table.contains('\u{1b}'), "colour without a terminal: {table}");
    let (code, records) = status(&field, &["--worker", &field.name(0)]);
    assert_eq!((code, records.len()), (1, 1), "a silent gate shows in the exit code");
    let second = field.host(1).start(&field.settings_of(field.host(1), 1));
    second.wait_until(LONG, &field.name(1), "admitted");
    until(SOON, "it is back", || status(&field, &[]).0 == 0);
    // One that says goodbye is not missed.
    assert!(second.stop().success());
    let (code, records) = status(&field, &[]);
    assert_eq!((code, records.len()), (0, 1), "{records:?}");
    assert!(command(&field, &["status"]).1.contains("was stopped"));
    drop(first);
}

fn status_that_watches_shows_what_changes_until_it_is_stopped(kind: Kind) {
    let field = Field::new(kind);
    let [gate, _other] = gates(&field);
    let settings = field.settings_of(field.host(0), 0);
    let mut watching = field.host(0).start_command(&settings, &["status", "--watch"]);
    watching.wait_for_output(SOON, "admitted");
    field.host(0).set_profile(DRIFTED);
    gate.wait_until(SOON, &field.name(0), "quarantined");
    watching.wait_for_output(SOON, "profile_drifted");
    let tables = |text: &str| text.matches("WORKER ").count();
    until(SOON, "it looks again", || tables(&watching.output()) > 2);
    assert!(!watching.output().contains('\u{1b}'), "a plain list where there is no terminal");
    assert_eq!(watching.stop(SOON).unwrap().code(), Some(0));
    let mut lines = field.host(0).start_command(&settings, &["status", "--watch", "--json", "--quarantined"]);
    until(SOON, "one array a line", || lines.output().lines().count() >= 2);
    for line in lines.output().lines().take(2) {
        let records: Vec<Value> = serde_json::from_str(line).unwrap();
        assert_eq!(records.len(), 1, "{line}");
    }
    lines.stop(SOON);
}

fn what_is_held_stays_shut_until_it_is_released(kind: Kind) {
    let field = Field::new(kind);
    let gates = gates(&field);
    let (worker, app) = (field.name(0), field.app());
    let _workers = field.workers(&app);
    let (code, out, err) = command(&field, &["hold", &worker, "--reason", "new disk"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("held") && out.contains("operator_hold"), "{out}");
    let record = gates[0].wait_for_edge(SOON, &worker, "shut");
    assert_eq!(record["admission"], "quarantined");
    assert_eq!(record["hold"]["reason"], "new disk", "{record}");
    // Fit as it is, it stays so.
    throughout(Duration::from_secs(3), "it is held", || {
        gates[0].get("/workers").is_some_and(|(_, text)| text.contains("operator_hold"))
    });
    let (code, records) = status(&field, &["--quarantined"]);
    assert_eq!((code, records.len()), (1, 1), "{records:?}");
    let (code, out, _) = command(&field, &["recheck", &worker]);
    assert_eq!(code, 0, "{out}");
    let (code, out, err) = command(&field, &["release", &worker]);
    assert_eq!(code, 0, "{out}{err}");
    gates[0].wait_for_edge(SOON, &worker, "open");
    field.send(&app, "app.mark", "t", 6, &[]);
    app.wait_for_runs(SOON * 2, 6);
    let told = audited(field.host(0), "worker-command");
    let asked: Vec<_> = told.iter().map(|event| (&event["command"]["ask"], &event["command"]["outcome"])).collect();
    assert_eq!(asked.len(), 3, "{told:?}");
    let by = &told[0]["command"]["by"];
    assert!(by["claims"].as_str().unwrap().contains('@'), "{by}");
    match kind {
        Kind::Route | Kind::FeedRabbitmq => assert_eq!(by["user"], "guest", "RabbitMQ vouches for it"),
        Kind::FeedRedis => assert_eq!(by["user"], Value::Null),
    }
}

fn a_hold_ends_by_itself_and_outlives_its_gate(kind: Kind) {
    let field = Field::new(kind);
    let [gate, _other] = gates(&field);
    let worker = field.name(0);
    assert_eq!(command(&field, &["hold", &worker, "--for", "3s"]).0, 0);
    gate.wait_until(SOON, &worker, "quarantined");
    gate.wait_until(SOON, &worker, "admitted");
    // A gate that is killed while it holds, holds when it is back; what is over by then, is over.
    assert_eq!(command(&field, &["hold", &worker, "--reason", "for good"]).0, 0);
    gate.kill();
    let gate = field.host(0).start(&field.settings_of(field.host(0), 0));
    let record = gate.wait_for(LONG, &worker, "it is held again", |record| {
        record["hold"]["reason"] == "for good" && record["admission"] == "quarantined"
    });
    assert_eq!(record["reason"]["code"], "operator_hold", "{record}");
    // It holds before it is connected, and is heard once it is.
    until(SOON, "it is heard again", || command(&field, &["hold", &worker, "--for", "2s"]).0 == 0);
    gate.kill();
    std::thread::sleep(Duration::from_secs(2));
    let gate = field.host(0).start(&field.settings_of(field.host(0), 0));
    gate.wait_until(LONG, &worker, "admitted");
}

fn a_release_ends_no_quarantine_whose_cause_stands(kind: Kind) {
    let field = Field::new(kind);
    let [gate, _other] = gates(&field);
    let worker = field.name(0);
    field.host(0).set_profile(DRIFTED);
    gate.wait_until(SOON, &worker, "quarantined");
    let (code, out, _) = command(&field, &["release", &worker]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("was not held by an operator") && out.contains("profile_drifted"), "{out}");
    assert_eq!(command(&field, &["hold", &worker]).0, 0);
    let (code, out, _) = command(&field, &["release", &worker]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("released") && out.contains("profile_drifted"), "{out}");
    throughout(Duration::from_secs(2), "it is shut", || {
        gate.get("/workers").is_some_and(|(_, text)| text.contains("quarantined"))
    });
    // Held meanwhile: what is mended does not open it.
    assert_eq!(command(&field, &["hold", &worker]).0, 0);
    field.host(0).set_profile(MANAGED);
    gate.wait_for(SOON, &worker, "only the hold is left", |record| record["reason"]["code"] == "operator_hold");
    assert_eq!(command(&field, &["release", &worker]).0, 0);
    gate.wait_until(SOON, &worker, "admitted");
}

fn of_two_operators_the_last_one_counts_and_both_are_told(kind: Kind) {
    let field = Field::new(kind);
    let [gate, _other] = gates(&field);
    let worker = field.name(0);
    assert_eq!(command(&field, &["hold", &worker, "--reason", "mine", "--for", "1h"]).0, 0);
    assert_eq!(command(&field, &["hold", &worker, "--reason", "no, mine"]).0, 0);
    let record = gate.wait_for(SOON, &worker, "the second hold", |record| record["hold"]["reason"] == "no, mine");
    assert_eq!(record["hold"].get("until").unwrap_or(&Value::Null), &Value::Null, "{record}");
    assert_eq!(command(&field, &["release", &worker, "--reason", "enough"]).0, 0);
    gate.wait_until(SOON, &worker, "admitted");
    // The audit log has it a moment after the gate's HTTP answers.
    until(SOON, "the second admission is in the audit log", || audited(field.host(0), "worker-admitted").len() >= 2);
    let told = audited(field.host(0), "worker-command");
    let reasons: Vec<_> = told.iter().map(|event| event["command"]["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["mine", "no, mine", "enough"]);
    let kinds: Vec<_> = ["worker-quarantined", "worker-admitted"].map(|kind| audited(field.host(0), kind).len()).into();
    assert_eq!(kinds, [1, 2], "admitted at the start and after the release");
}

fn many_are_held_only_by_their_number_and_nobody_answers_for_a_stranger(kind: Kind) {
    let field = Field::new(kind);
    let gates = gates(&field);
    let (code, _, err) = command(&field, &["hold", "--all"]);
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("2 workers fit") && err.contains("--count 2") && err.contains("nothing was done"), "{err}");
    assert_eq!(command(&field, &["hold", "codex-*", "--count", "3"]).0, 64);
    assert!(gates.iter().all(|gate| gate.get("/readyz").unwrap().0 == 200), "nothing was done");
    let (code, out, err) = command(&field, &["hold", "codex-*", "--count", "2"]);
    assert_eq!((code, out.lines().count()), (0, 2), "{out}{err}");
    for (n, gate) in gates.iter().enumerate() {
        gate.wait_for_edge(SOON, &field.name(n), "shut");
    }
    assert_eq!(command(&field, &["release", "--all", "--count", "2"]).0, 0);
    for (n, gate) in gates.iter().enumerate() {
        gate.wait_for_edge(SOON, &field.name(n), "open");
    }
    let begun = std::time::Instant::now();
    let (code, _, err) = command(&field, &["hold", "codex-9"]);
    assert_eq!(code, 69, "{err}");
    assert!(err.contains("no gate answered for codex-9 within 2 s") && err.contains(&field.name(1)), "{err}");
    // Two seconds, and the start of the program and the way to the broker on a machine that has much to do.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(command(&field, &["release", "nobody-*"]).0, 64);
}
