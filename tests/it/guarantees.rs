//! The route edge on a real broker with a real Celery worker: the guarantees of DESIGN.md section 3, each by an attempt to
//! break it.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;

use crate::support::{
    celery::App,
    facts::Facts,
    flood::Flood,
    gate::{Host, MANAGED, patient},
    proxy::{Mode, Proxy},
    rabbitmq::Broker,
    tasks::Task,
    vhost::{Vhost, vhost},
    wait::{LONG, eventually, throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
const LANE: &str = "codex-0";
const HELD: &str = "codex-0.held";
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

fn app(vhost: &Vhost) -> App {
    App::new(&vhost.url(), "codex", LANE)
}

#[test]
fn no_message_reaches_the_worker_before_every_check_has_passed_and_then_all_of_them_in_order() {
    let (vhost, host) = (vhost(), Host::new("start-shut"));
    let app = app(&vhost);
    host.set_tool("codex", "echo 'Not logged in'; exit 1\n");
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    let record = gate.wait_until(SOON, LANE, "quarantined");
    assert_eq!(record["reason"]["code"], "check_failed");
    let _worker = app.worker(LANE, LANE, &["-c", "1"]);
    app.send("app.mark", "early-", 20, &[]);
    vhost.wait_for_messages(SOON, HELD, 20);
    throughout(Duration::from_secs(1), "nothing runs while the edge is shut", || app.runs().is_empty());

    let mut facts = Facts::of(&vhost);
    host.mend_tools();
    let runs = app.wait_for_runs(SOON, 20);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
    let order: Vec<_> = app.marks().into_iter().map(|mark| mark.id).collect();
    assert_eq!(order, (0..20).map(|n| format!("early-{n}")).collect::<Vec<_>>(), "oldest first");
    let fact = facts.next(SOON, "worker-admitted", LANE);
    assert_eq!(fact.body["account"], json!({ "before": 20, "moved": 20, "left": 0, "taken": 0 }));
    assert_eq!(fact.body["edge"], "open");
    assert_eq!(fact.body["reason"]["code"], "fit");
}

#[test]
fn drift_stops_work_and_apply_lets_it_go_on() {
    let (vhost, host) = (vhost(), Host::new("drift"));
    let (app, settings) = (app(&vhost), host.settings(&vhost.url(), LANE));
    let gate = host.start(&settings);
    let _worker = app.worker(LANE, LANE, &["-c", "1"]);
    gate.wait_until(SOON, LANE, "admitted");
    app.send("app.mark", "before-", 5, &[]);
    app.wait_for_runs(SOON, 5);

    let mut facts = Facts::of(&vhost);
    host.set_profile(DRIFTED);
    let fact = facts.next(SOON, "worker-quarantined", LANE);
    assert_eq!(fact.body["reason"]["code"], "profile_drifted");
    let detail = fact.body["reason"]["detail"].as_str().unwrap();
    assert!(
        detail.contains("approval_policy") && detail.contains("on-request") && detail.contains("never"),
        "{detail}"
    );
    assert!(fact.body["reason"]["remedy"].as_str().unwrap().contains("profile apply"));
    assert!(fact.body["latency_ms"].as_f64().is_some_and(|ms| ms < 5_000.0), "{}", fact.body["latency_ms"]);
    app.send("app.mark", "after-", 10, &[]);
    vhost.wait_for_messages(SOON, HELD, 10);
    assert_eq!(app.runs().len(), 5);

    host.set_profile(MANAGED);
    let runs = app.wait_for_runs(SOON, 15);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
    assert!(gate.stop().success());
    until(SOON, "the edge exchange goes with the gate", || !vhost.is_open(LANE));
}

#[test]
fn a_killed_gate_leaves_a_shut_edge_and_the_next_one_gives_back_what_waited() {
    let (vhost, host) = (vhost(), Host::new("killed"));
    let (app, settings) = (app(&vhost), host.settings(&vhost.url(), LANE));
    let gate = host.start(&settings);
    let _worker = app.worker(LANE, LANE, &["-c", "1"]);
    gate.wait_until(SOON, LANE, "admitted");
    gate.kill();
    until(SOON, "the edge goes with its gate", || !vhost.is_open(LANE));
    app.send("app.mark", "t-", 10, &[]);
    vhost.wait_for_messages(SOON, HELD, 10);
    assert!(app.runs().is_empty());

    let mut facts = Facts::of(&vhost);
    let gate = host.start(&settings);
    let runs = app.wait_for_runs(SOON, 10);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
    let fact = facts.next(SOON, "worker-admitted", LANE);
    assert_eq!(fact.body["account"], json!({ "before": 10, "moved": 10, "left": 0, "taken": 0 }));
    assert!(gate.stop().success());
}

#[test]
fn a_gate_that_hangs_loses_its_edge_and_proves_its_worker_again_when_it_wakes() {
    let (vhost, host) = (vhost(), Host::new("hangs"));
    let (app, settings) = (app(&vhost), host.settings(&vhost.url(), LANE));
    let mut gate = host.start(&settings);
    let _worker = app.worker(LANE, LANE, &["-c", "1"]);
    gate.wait_until(SOON, LANE, "admitted");
    gate.freeze();
    until(SOON, "the broker misses its heartbeats", || !vhost.is_open(LANE));
    app.send("app.mark", "t-", 5, &[]);
    vhost.wait_for_messages(SOON, HELD, 5);
    // What it believed before it slept must not count when it wakes.
    host.set_profile(DRIFTED);
    gate.thaw();
    let record = gate.wait_until(SOON, LANE, "quarantined");
    assert_eq!(record["reason"]["code"], "profile_drifted");
    throughout(Duration::from_secs(1), "nothing runs", || app.runs().is_empty());
    host.set_profile(MANAGED);
    app.wait_for_runs(SOON, 5);
}

#[test]
fn a_link_that_is_cut_or_stalls_shuts_the_edge_and_comes_back_by_itself() {
    let (vhost, host) = (vhost(), Host::new("link"));
    let app = app(&vhost);
    let proxy = Proxy::to(vhost.broker().port());
    let gate = host.start(&host.settings(&vhost.url_as("guest", "guest", proxy.port()), LANE));
    let _worker = app.worker(LANE, LANE, &["-c", "1"]);
    gate.wait_until(SOON, LANE, "admitted");
    let mut facts = Facts::of(&vhost);

    proxy.set(Mode::Refuse);
    until(SOON, "the edge goes with the link", || !vhost.is_open(LANE));
    let record = gate.wait_until(SOON, LANE, "held");
    assert_eq!(record["reason"]["code"], "broker_unreachable");
    app.send("app.mark", "cut-", 5, &[]);
    vhost.wait_for_messages(SOON, HELD, 5);
    proxy.set(Mode::Forward);
    app.wait_for_runs(SOON, 5);
    facts.next(SOON, "worker-admitted", LANE);

    proxy.set(Mode::Stall);
    until(SOON, "the broker gives a silent link up", || !vhost.is_open(LANE));
    app.send("app.mark", "stalled-", 5, &[]);
    vhost.wait_for_messages(SOON, HELD, 5);
    proxy.set(Mode::Forward);
    let runs = app.wait_for_runs(SOON, 10);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
    assert!(gate.stop().success());
}

#[test]
fn eight_killed_gates_under_full_load_lose_no_message() {
    const EACH: u32 = 1_500;
    let (vhost, host) = (vhost(), Host::new("eight"));
    let (app, settings) = (app(&vhost), host.settings(&vhost.url(), LANE));
    let _worker = app.worker(LANE, LANE, &["-c", "2"]);
    // The first gate declares the intake; without it there is nothing to publish to.
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    assert!(gate.stop().success());
    let (mut in_the_midst, mut returned) = (0, 0);
    for round in 0..8 {
        let gate = host.start(&settings);
        gate.wait_until(SOON, LANE, "admitted");
        let flood = Flood::start(&vhost, "codex", LANE, &format!("t{round}-"), EACH);
        until(SOON, "messages flow", || flood.confirmed() > EACH / 10);
        gate.kill();
        in_the_midst += u32::from(flood.confirmed() < EACH);
        returned += flood.finish();
    }
    assert!(in_the_midst >= 4, "only {in_the_midst} of 8 gates were killed while messages flowed");
    until(SOON, "the edge goes with its gate", || !vhost.is_open(LANE));
    until(LONG, "the lane is empty", || vhost.waiting(LANE) == 0);
    let mut last = 0;
    until(LONG, "the worker has run what it had", || {
        let done = app.marks().len();
        std::mem::replace(&mut last, done) == done && vhost.waiting(LANE) == 0
    });
    let runs = app.runs();
    let held: Vec<String> = vhost.drain(HELD).into_iter().filter_map(|message| message.task_id()).collect();
    let all: BTreeSet<&String> = runs.keys().chain(&held).collect();
    let sent = (0..8).flat_map(|round| (0..EACH).map(move |n| format!("t{round}-{n}")));
    assert_eq!(sent.filter(|id| !all.contains(id)).collect::<Vec<_>>(), Vec::<String>::new(), "lost");
    let twice = runs.values().map(|runs| u64::from(runs - 1)).sum::<u64>()
        + held.iter().filter(|id| runs.contains_key(*id)).count() as u64;
    println!("sent {}, run {}, held {}, twice {twice}, handed back {returned}", 8 * EACH, runs.len(), held.len());
    // The broker takes a dead gate's edge away in several steps, and one that it routes between two of them it hands back.
    assert!(returned <= 8, "{returned} handed back");
    assert!(!held.is_empty() && !runs.is_empty());
    // Only between confirm and ack of a give-back: at most what a mover has in flight, for each of eight kills.
    assert!(twice <= 8 * 128, "{twice} twice");
}

#[test]
fn an_edge_that_is_shut_under_full_load_drops_no_message() {
    let (vhost, host) = (vhost(), Host::new("shuts"));
    let gate = host.start(&patient(&host.settings(&vhost.url(), LANE)));
    gate.wait_for_edge(SOON, LANE, "open");
    // What is routed at the very moment of a shut must still find its way; some thousand a second, so that there is one.
    let flood = Flood::start(&vhost, "codex", LANE, "t", 60_000);
    let mut shuts = 0;
    while flood.confirmed() < 50_000 {
        host.set_profile(DRIFTED);
        gate.wait_for_edge(SOON, LANE, "shut");
        host.set_profile(MANAGED);
        gate.wait_for_edge(SOON, LANE, "open");
        shuts += 1;
    }
    let returned = flood.finish();
    println!("{shuts} shuts");
    assert!(shuts >= 10, "only {shuts} shuts");
    assert_eq!(returned, 0, "handed back in {shuts} shuts");
    assert!(gate.stop().success());
}

#[test]
fn a_task_that_was_held_retries_through_the_intake() {
    let (vhost, host) = (vhost(), Host::new("retry"));
    let (app, settings) = (app(&vhost), host.settings(&vhost.url(), LANE));
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    gate.kill();
    until(SOON, "the edge goes with its gate", || !vhost.is_open(LANE));
    app.send("app.retry_once", "r-", 3, &[]);
    vhost.wait_for_messages(SOON, HELD, 3);
    let gate = host.start(&settings);
    let _worker = app.worker(LANE, LANE, &["-c", "1"]);
    app.wait_for_runs(SOON, 3);
    until(SOON, "each has retried", || app.marks().iter().filter(|mark| mark.retries == 1).count() == 3);
    for mark in app.marks() {
        assert_eq!((mark.exchange.as_deref(), mark.routing_key.as_deref()), (Some("codex"), Some(LANE)), "{mark:?}");
    }
    drop(gate);
}

#[test]
fn what_waits_in_the_lane_when_the_edge_is_shut_is_taken_back_and_runs_once_later() {
    let (vhost, host) = (vhost(), Host::new("backlog"));
    let (app, settings) = (app(&vhost), host.settings(&vhost.url(), LANE));
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    // One process, one task at a time: most of these wait in the lane.
    let _worker = app.worker(LANE, LANE, &["-c", "1", "--prefetch-multiplier", "1"]);
    let mut facts = Facts::of(&vhost);
    vhost.publish_tasks("codex", LANE, (0..12).map(|n| Task::slow(format!("s-{n}"), 0.3)));
    until(SOON, "the first runs", || !app.runs().is_empty());
    host.set_profile(DRIFTED);
    let fact = facts.next(SOON, "worker-quarantined", LANE);
    let account = &fact.body["account"];
    let count = |key: &str| account[key].as_u64().unwrap();
    assert_eq!(count("before"), count("moved") + count("left") + count("taken"), "{account}");
    assert_eq!(count("left"), 0);
    assert!(count("moved") >= 6, "{account}");
    vhost.wait_for_messages(SOON, HELD, u32::try_from(count("moved")).unwrap());
    // What the worker had already is named, and nothing else runs.
    let exposed: BTreeSet<String> = fact.body["exposed"]["tasks"]
        .as_array()
        .unwrap_or_else(|| panic!("{}", fact.body["exposed"]))
        .iter()
        .map(|task| task["id"].as_str().unwrap().to_owned())
        .collect();
    assert!(!exposed.is_empty());
    let held = u64::from(vhost.waiting(HELD));
    until(SOON, "the worker finishes what it has", || {
        app.marks().iter().filter(|mark| mark.phase == "ended").count() as u64 == 12 - held
    });
    for mark in app.marks().iter().filter(|mark| mark.at > fact.body["timestamp"].as_f64().unwrap()) {
        assert!(exposed.contains(&mark.id), "{mark:?} was not exposed");
    }
    host.set_profile(MANAGED);
    let runs = app.wait_for_runs(SOON, 12);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
    for mark in app.marks() {
        assert_eq!(mark.exchange.as_deref(), Some("codex"), "{mark:?}");
    }
}

#[test]
fn messages_that_come_past_the_shut_edge_are_taken_back_and_reported() {
    let (vhost, host) = (vhost(), Host::new("bypass"));
    let (through, past) = (app(&vhost), App::routed(&vhost.url(), json!({ "app.*": { "queue": LANE } })));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let _worker = past.worker(LANE, LANE, &["-c", "1"]);
    let mut facts = Facts::of(&vhost);
    host.set_profile(DRIFTED);
    facts.next(SOON, "worker-quarantined", LANE);

    // Celery publishes to a queue by the anonymous exchange.
    past.send("app.mark", "direct-", 10, &[]);
    vhost.wait_for_messages(SOON, HELD, 10);
    let fact = facts.next(SOON, "worker-bypass", LANE);
    assert_eq!(fact.body["reason"]["code"], "bypass");
    assert!(fact.body["reason"]["detail"].as_str().unwrap().contains("key 'codex-0'"), "{}", fact.body["reason"]);
    // Somebody binds the lane straight to the intake.
    vhost.bind(LANE, "codex", LANE);
    through.send("app.mark", "bound-", 10, &[]);
    vhost.wait_for_messages(SOON, HELD, 20);
    until(SOON, "the foreign binding is taken away", || {
        vhost.bindings_from("codex").iter().all(|(_, destination, _)| destination != LANE)
    });
    assert_eq!((past.runs().len(), through.runs().len()), (0, 0));

    host.set_profile(MANAGED);
    // Both apps' tasks run on the one worker, which marks them in its own file.
    let runs = past.wait_for_runs(SOON, 20);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
    let came =
        |prefix: &str| past.marks().into_iter().find(|mark| mark.id.starts_with(prefix)).unwrap().exchange.unwrap();
    assert_eq!((came("direct-"), came("bound-")), (String::new(), "codex".to_owned()));
}

#[test]
fn a_second_gate_says_who_owns_the_worker_stays_shut_and_takes_over_when_the_first_goes() {
    let vhost = vhost();
    let (one, other) = (Host::new("first"), Host::new("second"));
    let first = one.start(&one.settings(&vhost.url(), LANE));
    first.wait_until(SOON, LANE, "admitted");
    let second = other.start(&other.settings(&vhost.url(), LANE));
    let reason = eventually(SOON, "the second says who owns the worker", || {
        let record = second.wait_until(SOON, LANE, "held");
        (record["reason"]["code"] == "owned_elsewhere").then(|| record["reason"].clone())
    });
    assert!(reason["detail"].as_str().unwrap().contains("the gate first (process"), "{reason}");
    throughout(Duration::from_secs(2), "the second stays shut", || {
        second.get("/readyz").is_some_and(|(status, _)| status == 503)
    });
    assert_eq!(first.get("/readyz").map(|(status, _)| status), Some(200));
    assert!(first.stop().success());
    second.wait_until(SOON, LANE, "admitted");
}

#[test]
fn every_change_is_one_fact_with_its_reason_in_the_audit_log_and_on_the_exchange() {
    let (vhost, host) = (vhost(), Host::new("facts"));
    let settings = host.settings(&vhost.url(), LANE);
    let facts = Facts::of(&vhost);
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    for _ in 0..3 {
        host.set_profile(DRIFTED);
        gate.wait_until(SOON, LANE, "quarantined");
        host.set_profile(MANAGED);
        gate.wait_until(SOON, LANE, "admitted");
    }
    assert!(gate.stop().success());
    let audit = std::fs::read_to_string(host.state_dir().join("audit.jsonl")).unwrap();
    let entries: Vec<serde_json::Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let changes = |of: &[serde_json::Value]| -> Vec<String> {
        let kinds = ["worker-held", "worker-admitted", "worker-quarantined", "gate-online", "gate-offline"];
        let kind = |entry: &serde_json::Value| entry["type"].as_str().unwrap_or_default().to_owned();
        of.iter().map(kind).filter(|kind| kinds.contains(&kind.as_str())).collect()
    };
    let mut expected = vec!["gate-online", "worker-held", "worker-admitted"];
    expected.extend(["worker-quarantined", "worker-admitted"].repeat(3));
    expected.extend(["worker-held", "gate-offline"]);
    assert_eq!(changes(&entries), expected);
    let heard = || facts.all().into_iter().map(|fact| fact.body).collect::<Vec<_>>();
    let patience = std::time::Instant::now() + SOON;
    until(SOON * 2, "everything has been heard, or not", || {
        changes(&heard()).len() >= expected.len() || std::time::Instant::now() > patience
    });
    let heard = heard();
    assert_eq!(changes(&heard), expected);
    for entry in entries.iter().filter(|entry| entry["admission"] == "quarantined") {
        assert_eq!(entry["reason"]["code"], "profile_drifted");
        assert!(!entry["reason"]["remedy"].as_str().unwrap().is_empty());
    }
    let seqs: Vec<u64> = heard.iter().map(|fact| fact["seq"].as_u64().unwrap()).collect();
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
    let verified = host.command(&settings, &["audit", "--verify"]);
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn a_memory_alarm_stops_producers_and_not_a_shut() {
    let broker = Broker::fresh();
    let (vhost, host) = (Vhost::on(broker), Host::new("alarm"));
    let app = app(&vhost);
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let producer = app.keep_sending("t-", 200.0);
    until(SOON, "messages flow", || vhost.waiting(LANE) > 20);
    vhost.broker().memory_alarm(true);
    host.set_profile(DRIFTED);
    until(SOON, "the edge is shut during the alarm", || !vhost.is_open(LANE));
    until(SOON, "the gate knows", || gate.wait_until(SOON, LANE, "quarantined")["edge"] == "shut");
    vhost.broker().memory_alarm(false);
    until(SOON, "what waited in the lane is taken back", || vhost.waiting(LANE) == 0);
    host.set_profile(MANAGED);
    gate.wait_until(SOON, LANE, "admitted");
    let sent = producer.stop();
    until(SOON, "everything comes to the lane, at least once", || {
        vhost.waiting(HELD) == 0 && vhost.waiting(LANE) >= sent.confirmed
    });
}

#[test]
fn a_way_that_somebody_took_apart_is_made_again_and_nothing_is_lost() {
    let (vhost, host) = (vhost(), Host::new("apart"));
    let app = app(&vhost);
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    vhost.delete_exchange("worker-gate.edge.codex-0");
    app.send("app.mark", "edge-", 5, &[]);
    vhost.wait_for_messages(SOON, LANE, 5);
    assert_eq!(vhost.purge(LANE), 5);
    vhost.delete_queue(LANE);
    app.send("app.mark", "lane-", 5, &[]);
    vhost.wait_for_messages(SOON, LANE, 5);
    gate.wait_until(SOON, LANE, "admitted");
}
