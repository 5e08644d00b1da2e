//! The example subscriber, told by a real gate.

use super::{
    SOON,
    stage::{Kind, Stage, on_both_brokers},
};
use crate::support::{
    celery::venv,
    gate::MANAGED,
    process::{Process, command},
    wait::{LONG, until},
};

const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/alert_subscriber.py");

on_both_brokers! {
    the_example_tells_a_quarantine_with_its_remedy_and_the_admission_after_it
}

fn the_example_tells_a_quarantine_with_its_remedy_and_the_admission_after_it(stage: &Stage) {
    let gate = stage.host.start(&stage.settings(&stage.url()));
    gate.wait_until(LONG, "codex-0", "admitted");
    let mut python = command(venv().join("bin/python"));
    python.arg("-u").arg(EXAMPLE).env("CELERY_BROKER_URL", stage.url());
    let mut python = Process::start(python, &stage.dir.join("python.log"));
    python.wait_for_output(LONG, "listening");
    if let Kind::Redis(redis) = &stage.broker {
        until(SOON, "it is subscribed", || {
            let clients: String = redis.ask(&["CLIENT", "LIST", "TYPE", "PUBSUB"]);
            clients.lines().any(|client| client.contains(" psub=1 "))
        });
    }
    stage.host.set_profile(DRIFTED);
    python.wait_for_output(SOON, "QUARANTINED codex-0");
    stage.host.set_profile(MANAGED);
    python.wait_for_output(SOON, "ADMITTED codex-0");
    let output = python.output();
    let told = output.lines().find(|line| line.contains("QUARANTINED")).unwrap();
    assert!(told.contains("approval_policy") && told.contains("worker-gate profile apply"), "{told}");
    assert!(!output.contains("health-check"), "{output}");
}

#[test]
fn with_a_queue_of_its_own_name_it_misses_nothing_while_it_is_away() {
    let stage = Stage::rabbitmq();
    let start = |log: &str| {
        let mut python = command(venv().join("bin/python"));
        python.arg("-u").arg(EXAMPLE).args(["--queue", "alerts", &stage.url()]);
        let mut python = Process::start(python, &stage.dir.join(log));
        python.wait_for_output(LONG, "listening");
        python
    };
    start("first.log").kill();
    stage.publish([super::stage::event("worker-bypass", 1)]);
    start("second.log").wait_for_output(SOON, "BYPASS codex-0@h: not logged in -> codex login");
    // It is the same queue as that of `worker-gate events --durable`.
    stage.subscribe(&["--json", "--durable", "alerts"]);
}
