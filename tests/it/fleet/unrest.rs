//! Operators at work while gates and the broker are restarted: the audit log explains every state, and no command hangs.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{SOON, audited};
use crate::support::{
    gate::{Gate, Host},
    rabbitmq::Broker,
    vhost::Vhost,
    wait::{LONG, eventually},
};

const WORKER: &str = "codex-0";
/// Of a command: two seconds for an answer, ten for a broker that takes the connection and says nothing, and the program's own
/// start on a busy machine.
const BOUND: Duration = Duration::from_secs(25);

struct Site {
    host: Host,
    settings: String,
}

impl Site {
    /// Runs a command until it has an answer, whatever that is; each attempt within its limit.
    fn insist(&self, args: &[&str]) {
        eventually(LONG, &args.join(" "), || {
            let begun = Instant::now();
            let done = self.host.command(&self.settings, args);
            assert!(begun.elapsed() < BOUND, "{args:?} took {:?}", begun.elapsed());
            let code = done.status.code().unwrap();
            // 1: released, and not yet admitted again; 69: no gate, or no broker, at this moment.
            assert!(matches!(code, 0 | 1 | 69), "{code}: {}", String::from_utf8_lossy(&done.stderr));
            (code != 69).then_some(())
        });
    }
}

#[test]
fn whatever_is_restarted_the_audit_log_explains_every_state() {
    let broker = Broker::fresh();
    let vhost = Vhost::on(std::sync::Arc::clone(&broker));
    let host = Host::new("host-0");
    let settings = host.settings(&vhost.url(), WORKER);
    let site = Site { host, settings };
    let mut gate: Gate = site.host.start(&site.settings);
    gate.wait_until(LONG, WORKER, "admitted");
    site.insist(&["hold", WORKER, "--reason", "first"]);
    gate.kill();
    gate = site.host.start(&site.settings);
    // At once: it is not owned yet, and the hold from before is there all the same.
    site.insist(&["hold", WORKER, "--reason", "second, over the first"]);
    broker.kill();
    broker.start();
    site.insist(&["release", WORKER, "--reason", "third"]);
    gate.wait_until(LONG, WORKER, "admitted");
    site.insist(&["hold", WORKER, "--reason", "fourth", "--for", "1h"]);
    gate.terminate();
    assert!(gate.wait(SOON).success());
    let done = site.host.command(&site.settings, &["release", WORKER]);
    assert_eq!(done.status.code(), Some(69), "nobody is there to answer");
    gate = site.host.start(&site.settings);
    gate.wait_for(LONG, WORKER, "it is held again", |record| record["reason"]["code"] == "operator_hold");
    site.insist(&["release", WORKER, "--reason", "fifth"]);
    gate.wait_until(LONG, WORKER, "admitted");
    assert!(gate.stop().success());
    let reasons: Vec<_> = audited(&site.host, "worker-command")
        .iter()
        .map(|event| event["command"]["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(reasons, ["first", "second, over the first", "third", "fourth", "fifth"]);
    explains_itself(&site);
}

/// Nobody is admitted between a hold and its release, and every quarantine of a worker that was fit has a hold before it.
fn explains_itself(site: &Site) {
    let text = std::fs::read_to_string(site.host.state_dir().join("audit.jsonl")).unwrap();
    let mut held = false;
    for event in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        match (event["type"].as_str().unwrap(), event["command"]["ask"].as_str()) {
            ("worker-command", Some("hold")) => held = true,
            ("worker-command", Some("release")) => held = false,
            ("worker-admitted", _) => assert!(!held, "admitted while it was held: {event}"),
            ("worker-quarantined", _) if event["reason"]["code"] == "operator_hold" => {
                assert!(held, "held by nobody: {event}");
            }
            _ => {}
        }
    }
    assert!(!held);
    let verified = site.host.command(&site.settings, &["audit", "--verify"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
