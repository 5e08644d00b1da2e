//! Whether a memory alarm, in which RabbitMQ reads nothing from whoever publishes, holds up a shut.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    drift::DRIFTED,
    support::{
        gate::{Gate, Host, MANAGED},
        rabbitmq::Broker,
        vhost::Vhost,
        wait::eventually,
    },
    table::{Sample, Table},
};

const ROUNDS: usize = 40;
const SOON: Duration = Duration::from_secs(60);
const LANE: &str = "codex-0";

pub(crate) fn measure() -> Vec<Table> {
    let (vhost, host) = (Vhost::on(Broker::fresh()), Host::new("alarm"));
    let settings = host.settings(&vhost.url(), LANE);
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    let normal = shuts(&host, &gate, 0);
    vhost.broker().memory_alarm(true);
    let alarmed = shuts(&host, &gate, ROUNDS);
    vhost.broker().memory_alarm(false);
    assert!(gate.stop().success());
    let mut table = Table::new("alarm: an edit is seen -> the edge is shut, confirmed by the broker");
    table.row("in a memory alarm", "ms", &alarmed).against("without one", &normal);
    table.row("  its median, in that without one", "x", &Sample::one(alarmed.median() / normal.median())).at_most(2.0);
    table.row("without one", "ms", &normal);
    table.note("as the audit log has it; in an alarm the broker takes no events");
    vec![table]
}

/// How long so many shuts took, after `before` earlier ones.
fn shuts(host: &Host, gate: &Gate, before: usize) -> Sample {
    for n in 0..ROUNDS {
        host.set_profile(DRIFTED);
        eventually(SOON, "the shut is in the audit log", || (latencies(host).len() > before + n).then_some(()));
        host.set_profile(MANAGED);
        gate.wait_for_edge(SOON, LANE, "open");
    }
    let mut sample = Sample::default();
    latencies(host).split_off(before).into_iter().for_each(|ms| sample.push(ms));
    sample
}

fn latencies(host: &Host) -> Vec<f64> {
    let log = fs::read_to_string(host.state_dir().join("audit.jsonl")).unwrap();
    let entry = |line: &str| serde_json::from_str::<Value>(line).ok();
    log.lines()
        .filter_map(entry)
        .filter(|entry| entry["type"] == "worker-quarantined")
        .filter_map(|entry| entry["latency_ms"].as_f64())
        .collect()
}
