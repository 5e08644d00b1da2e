//! Settings that change while the gate runs.

use std::{fs, io::Write, net::TcpStream, thread, time::Duration};

use crate::support::{
    facts::Facts,
    gate::{Gate, Host},
    vhost::{Vhost, vhost},
    wait::{throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
const LANE: &str = "codex-0";

fn direct(lane: &str) -> String {
    format!(r#"exchange = "codex", type = "direct", keys = ["{lane}"]"#)
}

/// Replaces the settings file, as configuration managers do.
fn rewrite(gate: &Gate, text: &str) {
    let new = gate.settings().with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, gate.settings()).unwrap();
}

/// Publishes all the time to one lane, and counts what comes there and what is held instead.
fn nothing_is_held(vhost: &Vhost, lane: &str, what: impl FnOnce()) {
    let before = vhost.waiting(lane);
    let held = format!("{lane}.held");
    thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let producer = scope.spawn(move || {
            let mut sent = 0;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                vhost.publish("codex", lane, ["x"]);
                sent += 1;
            }
            sent
        });
        what();
        drop(stop);
        let sent: u32 = producer.join().unwrap();
        assert!(sent > 10, "only {sent} published");
        until(SOON, "all of it is in the lane", || vhost.waiting(lane) == before + sent);
    });
    assert_eq!(vhost.waiting(&held), 0);
}

#[test]
fn workers_come_and_go_and_the_edges_of_others_do_not_notice() {
    let (vhost, host) = (vhost(), Host::new("come-and-go"));
    let one = host.settings(&vhost.url(), LANE);
    let mut two = one.clone();
    host.add_worker(&mut two, "codex-1", &direct("codex-1"));
    let gate = host.start(&one);
    gate.wait_for_edge(SOON, LANE, "open");
    let mut facts = Facts::of(&vhost);
    nothing_is_held(&vhost, LANE, || {
        rewrite(&gate, &two);
        gate.wait_for_edge(SOON, "codex-1", "open");
        facts.next(SOON, "worker-admitted", "codex-1");
        vhost.publish("codex", "codex-1", ["waits in its lane"]);
        rewrite(&gate, &one);
        until(SOON, "the second edge is shut", || !vhost.is_open("codex-1"));
        let held = facts.next(SOON, "worker-held", "codex-1");
        assert_eq!(held.body["reason"]["code"], "settings_changed");
        until(SOON, "the second worker is let go", || !vhost.has_exchange("worker-gate.edge.codex-1"));
    });
    // What it had not taken was taken back.
    vhost.wait_for_messages(SOON, "codex-1.held", 1);
    assert!(!gate.get("/workers").unwrap().1.contains("codex-1"));
    // And it may come back.
    rewrite(&gate, &two);
    gate.wait_for_edge(SOON, "codex-1", "open");
    vhost.wait_for_messages(SOON, "codex-1", 1);
    assert!(gate.stop().success());
}

#[test]
fn a_bad_file_changes_nothing_and_is_reported() {
    let (vhost, host) = (vhost(), Host::new("bad-file"));
    let settings = host.settings(&vhost.url(), LANE);
    let mut gate = host.start(&settings);
    gate.wait_for_edge(SOON, LANE, "open");
    let mut facts = Facts::of(&vhost);
    let about_gate = "worker-gate@bad-file";
    nothing_is_held(&vhost, LANE, || {
        for (bad, key) in [("max_age = \"20s\"", "evidence.max_age"), ("lane = \"codex-0\"", "lane")] {
            rewrite(&gate, &settings.replace(bad, &format!("{} = 7", bad.split(' ').next().unwrap())));
            let refused = facts.next(SOON, "gate-settings-refused", about_gate);
            let detail = refused.body["reason"]["detail"].as_str().unwrap();
            assert!(detail.contains(key) && detail.contains("worker-gate-"), "{detail}");
        }
        fs::remove_file(gate.settings()).unwrap();
        facts.next(SOON, "gate-settings-refused", about_gate);
    });
    gate.wait_for_log(SOON, "those from before hold");
    // A good one is taken afterwards, also without a change that anybody could see: after SIGHUP.
    fs::write(gate.settings(), settings.replace("max_age = \"20s\"", "max_age = \"21s\"")).unwrap();
    facts.next(SOON, "gate-settings-loaded", about_gate);
    assert!(gate.stop().success());
}

#[test]
fn a_new_check_is_proven_before_its_worker_goes_on_and_sighup_is_a_reason_to_look() {
    let (vhost, host) = (vhost(), Host::new("new-check"));
    let settings = host.settings(&vhost.url(), LANE);
    let mut gate = host.start(&settings);
    gate.wait_for_edge(SOON, LANE, "open");
    let mut facts = Facts::of(&vhost);
    let failing = settings.replace(
        "[checks.spec_kit]",
        "[checks.more]\nrun = [[\"false\"]]\nevery = \"1s\"\ntimeout = \"5s\"\n\n[checks.spec_kit]",
    );
    rewrite(&gate, &failing);
    let fact = facts.next(SOON, "worker-quarantined", LANE);
    assert!(["settings_changed", "check_failed"].contains(&fact.body["reason"]["code"].as_str().unwrap()));
    until(SOON, "the reason is the check", || {
        gate.wait_until(SOON, LANE, "quarantined")["reason"]["code"] == "check_failed"
    });
    rewrite(&gate, &settings);
    gate.wait_for_edge(SOON, LANE, "open");
    gate.hang_up();
    throughout(Duration::from_secs(2), "nothing has changed", || vhost.is_open(LANE));
    assert!(gate.stop().success());
}

#[test]
fn another_exchange_for_events_makes_the_gate_anew() {
    let (vhost, host) = (vhost(), Host::new("anew"));
    let settings = host.settings(&vhost.url(), LANE);
    let gate = host.start(&settings);
    gate.wait_for_edge(SOON, LANE, "open");
    let pid = gate.pid();
    rewrite(&gate, &settings.replace("[evidence]", "[events]\nexchange = \"other.health\"\n\n[evidence]"));
    until(SOON, "events go to the other exchange", || vhost.has_exchange("other.health"));
    gate.wait_for_edge(SOON, LANE, "open");
    until(SOON, "the edge is open", || vhost.is_open(LANE));
    assert_eq!(gate.pid(), pid);
    assert!(gate.stop().success());
}

#[test]
fn a_gate_that_is_made_anew_hears_who_asks_it_to_stop_meanwhile() {
    let (vhost, host) = (vhost(), Host::new("anew-and-stop"));
    let settings = host.settings(&vhost.url(), LANE);
    let mut gate = host.start(&settings);
    gate.wait_for_edge(SOON, LANE, "open");
    // The end of the first one waits for a second for who asks and does not finish.
    let mut asking = TcpStream::connect(gate.address()).unwrap();
    asking.write_all(b"GET /workers HTTP/1.1\r\n").unwrap();
    rewrite(&gate, &settings.replace("[evidence]", "[events]\nexchange = \"other.health\"\n\n[evidence]"));
    gate.wait_for_log(SOON, "starting anew");
    gate.terminate();
    let (code, log) = gate.end(SOON);
    assert_eq!(code, Some(0), "{log}");
    assert!(!vhost.is_open(LANE));
}

#[test]
fn a_worker_that_is_added_and_refused_is_no_matter_of_the_others() {
    let (vhost, host) = (vhost(), Host::new("refused"));
    vhost.declare_exchange("wrong", "topic", Some("codex.held"));
    let one = host.settings(&vhost.url(), LANE);
    let mut two = one.clone();
    host.add_worker(&mut two, "codex-1", r#"exchange = "wrong", type = "direct", keys = ["codex-1"]"#);
    let gate = host.start(&one);
    gate.wait_for_edge(SOON, LANE, "open");
    nothing_is_held(&vhost, LANE, || {
        rewrite(&gate, &two);
        gate.wait_for(SOON, "codex-1", "it is refused", |record| {
            record["admission"] == "held"
                && record["reason"]["detail"].as_str().unwrap().contains("workers.intake.type")
                || record["reason"]["remedy"].as_str().unwrap().contains("workers.intake.type")
        });
        throughout(Duration::from_secs(2), "the other one goes on", || vhost.is_open(LANE));
    });
    assert!(gate.stop().success());
}
