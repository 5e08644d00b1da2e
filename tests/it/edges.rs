//! The guarantees G1 to G7 of DESIGN.md section 3 on every edge: each an attempt to break it, written once, against a real
//! broker with two real Celery workers.

use std::{collections::BTreeSet, fs, time::Duration};

use serde_json::Value;

use crate::support::{
    celery::{App, Mark},
    facts::Fact,
    field::{Field, Kind, accounts_balance, each_once, for_each_edge},
    gate::{Host, MANAGED},
    proxy::{Mode, Proxy},
    tasks::Task,
    wait::{eventually, throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
/// For what must not happen: longer than everything takes that the gate does by itself, looks of once a second included.
const A_WHILE: Duration = Duration::from_millis(1_500);
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

for_each_edge! {
    nothing_runs_before_the_checks_have_passed_and_then_all_of_it_runs_once
    a_worker_that_has_drifted_gets_nothing_more_and_the_other_goes_on
    when_both_have_drifted_all_of_it_waits_and_none_is_lost
    a_killed_gate_moves_nothing_more_and_the_next_one_goes_on
    a_gate_that_was_frozen_moves_nothing_before_it_has_proven_its_workers_again
    a_gate_that_lost_its_worker_while_it_was_frozen_leaves_it_to_the_new_owner
    a_link_that_is_cut_or_stalls_stops_the_work_and_comes_back_by_itself
    what_is_in_the_lane_when_its_worker_drifts_is_taken_back_and_accounted_for
    what_comes_to_the_lane_past_the_shut_edge_is_taken_back_and_reported
    a_second_gate_says_who_owns_the_worker_stays_shut_and_takes_over_when_the_first_goes
    every_change_is_one_fact_with_its_reason_in_the_audit_log_and_on_the_exchange
}

fn marks(prefix: &str, count: usize) -> impl Iterator<Item = Task> {
    (0..count).map(move |n| Task::mark(format!("{prefix}{n}")))
}

/// The first runs of the tasks whose ids begin so.
fn runs_of(app: &App, prefix: &str) -> Vec<Mark> {
    app.marks().into_iter().filter(|mark| mark.phase == "started" && mark.id.starts_with(prefix)).collect()
}

/// The ids of the tasks that a fact names as those which the worker had already.
#[track_caller]
fn exposed(fact: &Fact) -> BTreeSet<String> {
    let tasks = fact.body["exposed"]["tasks"].as_array().unwrap_or_else(|| panic!("{}", fact.body["exposed"]));
    tasks.iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

fn nothing_runs_before_the_checks_have_passed_and_then_all_of_it_runs_once(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    field.hosts().iter().for_each(|host| host.set_tool("codex", "echo 'Not logged in'; exit 1\n"));
    let gate = field.host(0).start(&field.settings());
    field.wait_until_both_are(&gate, "quarantined");
    let _workers = field.workers(&app);
    field.send(&app, "app.mark", "early-", 20, &[]);
    field.wait_for_waiting(20);
    field.stays(&app, 20, 0);

    let facts = field.facts();
    field.hosts().iter().for_each(Host::mend_tools);
    each_once(&app.wait_for_runs(SOON, 20), 20);
    for n in 0..2 {
        let fact = facts.nth(SOON, "worker-admitted", &field.name(n), 0);
        assert_eq!(fact.body["edge"], "open");
        assert_eq!(fact.body["reason"]["code"], "fit");
        let first = runs_of(&app, "early-").into_iter().find(|mark| mark.worker == field.name(n));
        // Of a shared queue the one that is admitted first may have run all before the other comes.
        assert!(first.is_some() || kind.is_shared(), "{} has run none of them", field.name(n));
    }
    accounts_balance(&facts);
}

fn a_worker_that_has_drifted_gets_nothing_more_and_the_other_goes_on(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let _workers = field.workers(&app);
    field.publish(marks("before-", 10));
    each_once(&app.wait_for_runs(SOON, 10), 10);

    let facts = field.facts();
    field.host(0).set_profile(DRIFTED);
    let fact = facts.nth(SOON, "worker-quarantined", &field.name(0), 0);
    assert_eq!((&fact.body["reason"]["code"], &fact.body["edge"]), (&"profile_drifted".into(), &"shut".into()));
    assert!(fact.body["reason"]["remedy"].as_str().unwrap().contains("profile apply"), "{}", fact.body["reason"]);
    assert!(fact.body["latency_ms"].as_f64().is_some_and(|ms| ms < 5_000.0), "{}", fact.body["latency_ms"]);
    field.publish(marks("after-", 20));
    let others = if kind.is_shared() { 20 } else { 10 };
    app.wait_for_runs(SOON, 10 + others);
    field.wait_for_waiting(20 - u32::try_from(others).unwrap());
    throughout(A_WHILE, "the drifted one gets nothing", || {
        let after = runs_of(&app, "after-");
        after.len() == others && after.iter().all(|mark| mark.worker == field.name(1))
    });

    field.host(0).set_profile(MANAGED);
    gate.wait_until(SOON, &field.name(0), "admitted");
    field.publish(marks("again-", 20));
    each_once(&app.wait_for_runs(SOON, 50), 50);
    assert!(runs_of(&app, "again-").iter().any(|mark| mark.worker == field.name(0)), "it works again");
    facts.nth(SOON, "worker-admitted", &field.name(0), 0);
    assert!(accounts_balance(&facts) >= 2);
}

fn when_both_have_drifted_all_of_it_waits_and_none_is_lost(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let _workers = field.workers(&app);
    let facts = field.facts();
    field.hosts().iter().for_each(|host| host.set_profile(DRIFTED));
    field.wait_until_both_are(&gate, "quarantined");
    field.publish(marks("m-", 30));
    field.wait_for_waiting(30);
    field.stays(&app, 30, 0);

    field.host(1).set_profile(MANAGED);
    let first = if kind.is_shared() { 30 } else { 15 };
    each_once(&app.wait_for_runs(SOON, first), first);
    assert!(app.marks().iter().all(|mark| mark.worker == field.name(1)), "{:?}", app.marks());
    field.host(0).set_profile(MANAGED);
    each_once(&app.wait_for_runs(SOON, 30), 30);
    accounts_balance(&facts);
    assert!(gate.stop().success());
}

fn a_killed_gate_moves_nothing_more_and_the_next_one_goes_on(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let _workers = field.workers(&app);
    field.publish((0..60).map(|n| Task::slow(format!("s-{n}"), 0.05)));
    until(SOON, "the work has begun", || app.runs().len() >= 10);
    gate.kill();
    // What the workers have, and what is in their lanes, they run; of the intake they get nothing.
    field.wait_until_quiet(&app);
    let (waiting, run) = (field.waiting(), app.runs().len());
    assert!(!kind.is_shared() || waiting > 0, "all of it left the intake");
    assert!(
        (60..=60 + kind.twice_per_kill()).contains(&(waiting + u32::try_from(run).unwrap())),
        "{waiting} wait, {run} have run"
    );
    field.publish(marks("m-", 10));
    field.stays(&app, waiting + 10, run);

    let facts = field.facts();
    let gate = field.host(0).start(&field.settings());
    let runs = app.wait_for_runs(SOON, 70);
    field.wait_until_quiet(&app);
    let twice = app.runs().values().map(|times| times - 1).sum::<u32>();
    assert!(runs.len() == 70 && twice <= kind.twice_per_kill(), "{twice} twice: {runs:?}");
    assert_eq!(field.waiting(), 0);
    accounts_balance(&facts);
    assert!(gate.stop().success());
}

fn a_gate_that_was_frozen_moves_nothing_before_it_has_proven_its_workers_again(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let mut gate = field.admit_both();
    let _workers = field.workers(&app);
    field.publish(marks("before-", 4));
    app.wait_for_runs(SOON, 4);
    // On RabbitMQ a move ends with an acknowledgement, a moment after the task has run.
    field.stays(&app, 0, 4);
    gate.freeze();
    field.wait_until_nobody_owns();
    field.publish(marks("m-", 10));
    field.wait_for_waiting(10);
    // What it believed before it slept must not count when it wakes.
    field.hosts().iter().for_each(|host| host.set_profile(DRIFTED));
    gate.thaw();
    let record = gate.wait_until(SOON, &field.name(0), "quarantined");
    assert_eq!(record["reason"]["code"], "profile_drifted");
    gate.wait_until(SOON, &field.name(1), "quarantined");
    field.stays(&app, 10, 4);

    field.hosts().iter().for_each(|host| host.set_profile(MANAGED));
    each_once(&app.wait_for_runs(SOON, 14), 14);
}

fn a_gate_that_lost_its_worker_while_it_was_frozen_leaves_it_to_the_new_owner(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let mut gate = field.host(0).start(&field.settings_of(field.host(0), 0));
    gate.wait_until(SOON, &field.name(0), "admitted");
    let _worker = field.worker(&app, 0);
    gate.freeze();
    until(SOON, "the broker gives the gate up", || !field.is_owned(0));
    // The new owner sees the worker drifted; the old one, which has a home of its own, would see it fit.
    field.host(1).set_profile(DRIFTED);
    let new = field.host(1).start(&field.settings_of(field.host(1), 0));
    new.wait_until(SOON, &field.name(0), "quarantined");
    until(SOON, "the new gate owns the worker", || field.is_owned(0));
    field.send(&app, "app.mark", "m-", 10, &[]);
    let waiting = if kind.is_shared() { 10 } else { 5 };
    until(SOON, "all of it waits", || field.waiting() >= waiting);
    gate.thaw();
    let what = "the old one says who owns it";
    gate.wait_for(SOON, &field.name(0), what, |record| record["reason"]["code"] == "owned_elsewhere");
    field.stays(&app, waiting, 0);

    assert!(new.stop().success());
    gate.wait_until(SOON, &field.name(0), "admitted");
    let all = usize::try_from(waiting).unwrap();
    each_once(&app.wait_for_runs(SOON, all), all);
}

fn a_link_that_is_cut_or_stalls_stops_the_work_and_comes_back_by_itself(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let proxy = Proxy::to(field.port());
    let gate = field.host(0).start(&field.settings_at(proxy.port()));
    field.wait_until_both_are(&gate, "admitted");
    let _workers = field.workers(&app);
    let facts = field.facts();

    proxy.set(Mode::Refuse);
    let record = gate.wait_until(SOON, &field.name(0), "held");
    assert_eq!(record["reason"]["code"], "broker_unreachable");
    field.wait_until_nobody_owns();
    field.publish(marks("cut-", 10));
    field.wait_for_waiting(10);
    field.stays(&app, 10, 0);
    proxy.set(Mode::Forward);
    each_once(&app.wait_for_runs(SOON, 10), 10);
    for n in 0..2 {
        facts.nth(SOON, "worker-admitted", &field.name(n), 0);
    }

    field.stays(&app, 0, 10);
    proxy.set(Mode::Stall);
    field.wait_until_nobody_owns();
    field.publish(marks("stalled-", 10));
    field.wait_for_waiting(10);
    field.stays(&app, 10, 10);
    proxy.set(Mode::Forward);
    each_once(&app.wait_for_runs(SOON, 20), 20);
    accounts_balance(&facts);
    assert!(gate.stop().success());
}

fn what_is_in_the_lane_when_its_worker_drifts_is_taken_back_and_accounted_for(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.host(0).start(&field.settings().replace("depth = 1", "depth = 4"));
    field.wait_until_both_are(&gate, "admitted");
    let _workers = field.workers(&app);
    field.publish((0..30).map(|n| Task::slow(format!("s-{n}"), 0.3)));
    until(SOON, "both work, and more waits for them", || {
        (0..2).all(|n| field.in_lane(n) >= 3 && app.marks().iter().any(|mark| mark.worker == field.name(n)))
    });
    let facts = field.facts();
    field.host(0).set_profile(DRIFTED);
    let fact = facts.nth(SOON, "worker-quarantined", &field.name(0), 0);
    let account = &fact.body["account"];
    let count = |key: &str| account[key].as_u64().unwrap();
    assert_eq!(count("before"), count("moved") + count("left") + count("taken"), "{account}");
    assert!(count("left") == 0 && count("moved") >= 2, "{account}");
    until(SOON, "nothing is left in the lane", || field.in_lane(0) == 0);
    // What the worker had already is named, and nothing else runs there.
    let exposed = exposed(&fact);
    assert!(!exposed.is_empty());
    let shut = fact.body["timestamp"].as_f64().unwrap();
    field.wait_until_quiet(&app);
    for mark in app.marks().iter().filter(|mark| mark.worker == field.name(0) && mark.at > shut) {
        assert!(exposed.contains(&mark.id), "{mark:?} was not exposed");
    }
    // The other one has run what went back to the intake, or it waits for its own worker.
    let waiting = if kind.is_shared() { 0 } else { count("moved") };
    assert_eq!(u64::from(field.waiting()), waiting, "{account}");
    field.host(0).set_profile(MANAGED);
    each_once(&app.wait_for_runs(SOON, 30), 30);
    accounts_balance(&facts);
}

fn what_comes_to_the_lane_past_the_shut_edge_is_taken_back_and_reported(kind: Kind) {
    let field = Field::new(kind);
    let app = field.app();
    let gate = field.admit_both();
    let facts = field.facts();
    field.host(0).set_profile(DRIFTED);
    // What comes before the account is told is counted there: it may have waited when the edge was shut.
    facts.nth(SOON, "worker-quarantined", &field.name(0), 0);
    gate.wait_for_edge(SOON, &field.name(0), "shut");
    // The worker is away: on Redis, one that waits for its lane would have them before anybody could take them back.
    field.publish_past(0, marks("m-", 10));
    field.wait_for_waiting(10);
    let fact = facts.nth(SOON, "worker-bypass", &field.name(0), 0);
    assert_eq!(fact.body["reason"]["code"], "bypass");
    let way = format!("key '{}'", field.lane(0));
    assert!(fact.body["reason"]["detail"].as_str().unwrap().contains(&way), "{}", fact.body["reason"]);
    let _worker = field.worker(&app, 0);
    field.publish_past(0, marks("n-", 1));
    field.wait_for_waiting(if kind == Kind::FeedRedis { 10 } else { 11 });
    field.host(0).set_profile(MANAGED);
    each_once(&app.wait_for_runs(SOON, 11), 11);
    assert_eq!(field.waiting(), 0);
}

fn a_second_gate_says_who_owns_the_worker_stays_shut_and_takes_over_when_the_first_goes(kind: Kind) {
    let field = Field::new(kind);
    let (one, other) = (field.host(0), Host::new("second"));
    let app = field.app();
    let first = one.start(&field.settings_of(one, 0));
    first.wait_until(SOON, &field.name(0), "admitted");
    let second = other.start(&field.settings_of(&other, 0));
    let reason = eventually(SOON, "the second says who owns the worker", || {
        let record = second.wait_until(SOON, &field.name(0), "held");
        (record["reason"]["code"] == "owned_elsewhere").then(|| record["reason"].clone())
    });
    let owner = format!("the gate {} (process", one.name());
    assert!(reason["detail"].as_str().unwrap().contains(&owner), "{reason}");
    let status = |gate: &crate::support::gate::Gate| gate.get("/readyz").map(|(status, _)| status);
    throughout(A_WHILE, "the second stays shut", || status(&second) == Some(503));
    assert_eq!(status(&first), Some(200));

    // The second would feed it at once if it went by its own checks; now it is the only one who may.
    assert!(first.stop().success());
    second.wait_until(SOON, &field.name(0), "admitted");
    let _worker = field.worker(&app, 0);
    app.send("app.mark", "m-", 5, &[]);
    each_once(&app.wait_for_runs(SOON, 5), 5);
}

fn every_change_is_one_fact_with_its_reason_in_the_audit_log_and_on_the_exchange(kind: Kind) {
    let field = Field::new(kind);
    let (host, worker) = (field.host(0), field.name(0));
    let settings = field.settings_of(host, 0);
    let facts = field.facts();
    let gate = host.start(&settings);
    gate.wait_until(SOON, &worker, "admitted");
    for _ in 0..3 {
        host.set_profile(DRIFTED);
        gate.wait_until(SOON, &worker, "quarantined");
        host.set_profile(MANAGED);
        gate.wait_until(SOON, &worker, "admitted");
    }
    assert!(gate.stop().success());
    let audit = fs::read_to_string(host.state_dir().join("audit.jsonl")).unwrap();
    let entries: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let changes = |of: &[Value]| -> Vec<String> {
        let kinds = ["worker-held", "worker-admitted", "worker-quarantined", "gate-online", "gate-offline"];
        let kind = |entry: &Value| entry["type"].as_str().unwrap_or_default().to_owned();
        of.iter().map(kind).filter(|kind| kinds.contains(&kind.as_str())).collect()
    };
    let mut expected = vec!["gate-online", "worker-held", "worker-admitted"];
    expected.extend(["worker-quarantined", "worker-admitted"].repeat(3));
    expected.extend(["worker-held", "gate-offline"]);
    assert_eq!(changes(&entries), expected);
    // The last fact is the last that a gate publishes before it goes.
    facts.nth(SOON, "gate-offline", &format!("worker-gate@{}", host.name()), 0);
    let heard: Vec<Value> = facts.all().into_iter().map(|fact| fact.body).collect();
    assert_eq!(changes(&heard), expected);
    for entry in entries.iter().filter(|entry| entry["admission"] == "quarantined") {
        assert_eq!(entry["reason"]["code"], "profile_drifted");
        assert!(!entry["reason"]["remedy"].as_str().unwrap().is_empty());
    }
    let seqs: Vec<u64> = heard.iter().map(|fact| fact["seq"].as_u64().unwrap()).collect();
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
    accounts_balance(&facts);
    let verified = host.command(&settings, &["audit", "--verify"]);
    assert!(verified.status.success(), "{verified:?}");
}
