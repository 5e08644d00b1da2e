//! What a gate tells is also told on Celery's own event exchange, if it is asked to, and nobody takes it for a worker's life.

use serde_json::Value;

use super::SOON;
use crate::support::{
    celery::venv,
    field::{Field, Kind, for_each_edge},
    gate::{MANAGED, mirrored},
    process::{Process, command},
    scratch::Scratch,
    wait::{LONG, until},
};

const DRIFTED: &str = "approval_policy = \"on-request\"\n";

for_each_edge! {
    celerys_own_receiver_hears_what_a_gate_tells_and_no_gate_takes_it_for_a_workers_life
}

fn celerys_own_receiver_hears_what_a_gate_tells_and_no_gate_takes_it_for_a_workers_life(kind: Kind) {
    let (field, dir) = (Field::new(kind), Scratch::new("mirror"));
    let mut python = command(venv().join("bin/python"));
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/read_celeryev.py")).arg(field.url());
    let mut python = Process::start(python, &dir.join("python.log"));
    python.wait_for_output(SOON, "ready");
    let heard =
        || -> Vec<Value> { python.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect() };

    let (host, name) = (field.host(0), field.name(0));
    let gate = host.start(&mirrored(&field.settings_of(host, 0)));
    gate.wait_until(LONG, &name, "admitted");
    host.set_profile(DRIFTED);
    gate.wait_until(LONG, &name, "quarantined");
    host.set_profile(MANAGED);
    gate.wait_until(LONG, &name, "admitted");
    until(SOON, "all of it has been heard", || {
        let types = ["worker-admitted", "worker-config-drifted", "worker-quarantined", "worker-config-managed"];
        types.iter().all(|kind| heard().iter().any(|event| event["type"] == *kind))
            && heard().last().is_some_and(|event| event["type"] == "gate-heartbeat")
    });
    let of = |kind: &str| heard().into_iter().find(|event| event["type"] == kind).unwrap();
    let quarantined = of("worker-quarantined");
    assert_eq!((&quarantined["hostname"], &quarantined["admission"]), (&name.clone().into(), &"quarantined".into()));
    assert_eq!(quarantined["pid"], Value::Null, "it would pass for the worker's");
    assert!(heard().iter().all(|event| event["type"] != "worker-health-check"), "{:?}", heard());

    // The worker has never run. While its gate tells much of it, nobody is to think otherwise.
    for profile in [DRIFTED, MANAGED, DRIFTED, MANAGED] {
        let before = heard().len();
        let (settings, file) = (field.settings_of(host, 0), host.profile());
        let edit = std::thread::spawn(move || {
            // While status listens.
            std::thread::sleep(std::time::Duration::from_millis(100));
            std::fs::write(file, profile).unwrap();
        });
        let status = host.command(&settings, &["status", "--json"]);
        edit.join().unwrap();
        let records: Vec<Value> = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(records[0]["worker_seen"], false, "{records:?}");
        until(SOON, "the edit is told", || heard().len() > before);
    }
    assert_eq!(gate.stop().code(), Some(0));
}
