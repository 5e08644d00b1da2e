//! A check that fails everywhere at once (`fleet.max_quarantined`).

use serde_json::Value;

use super::{DRIFTED, SOON, audited};
use crate::support::{
    field::{Field, Kind, for_each_edge},
    gate::{Gate, MANAGED},
    wait::{LONG, throughout, until},
};

for_each_edge! {
    a_check_that_fails_everywhere_leaves_half_of_the_workers_at_work
    a_gate_that_hears_no_other_one_quarantines_as_ever
}

const BROKEN: &str = "echo 'the login service is down' >&2; exit 1\n";

fn gates(field: &Field) -> [Gate; 2] {
    let settings = |n| format!("[fleet]\nmax_quarantined = \"50%\"\n{}", field.settings_of(field.host(n), n));
    let mut gates = [0, 1].map(|n| field.host(n).start(&settings(n)));
    for (n, gate) in gates.iter_mut().enumerate() {
        gate.wait_until(LONG, &field.name(n), "admitted");
        gate.wait_for_log(LONG, "other gates are heard");
    }
    gates
}

fn a_check_that_fails_everywhere_leaves_half_of_the_workers_at_work(kind: Kind) {
    let field = Field::new(kind);
    let gates = gates(&field);
    let facts = field.facts();
    field.host(0).set_tool("codex", BROKEN);
    // Once it is told, and not only so: the other gate goes by what it hears.
    facts.nth(LONG, "worker-quarantined", &field.name(0), 0);
    field.host(1).set_tool("codex", BROKEN);
    let is_suspect = |record: &Value| record["reason"]["code"] == "fleet_suspect";
    let record = gates[1].wait_for(SOON, &field.name(1), "the check is suspected", is_suspect);
    assert_eq!((&record["admission"], &record["edge"]), (&"admitted".into(), &"open".into()), "{record}");
    assert!(record["reason"]["detail"].as_str().unwrap().contains("codex_cli"), "{record}");
    let metrics = gates[1].get("/metrics").unwrap().1;
    let gauge = metrics.lines().find(|line| line.starts_with("worker_gate_fleet_suspect{")).unwrap();
    assert!(gauge.ends_with("} 1"), "{gauge}");
    // Longer than the check runs again, and than the evidence would be good for.
    throughout(std::time::Duration::from_secs(3), "it goes on", || gates[1].get("/readyz").unwrap().0 == 200);
    assert_eq!(audited(field.host(1), "fleet-suspect").len(), 1, "told once, and not for each failing run");
    // What is no check's is no excuse.
    field.host(1).set_profile(DRIFTED);
    gates[1].wait_for_edge(SOON, &field.name(1), "shut");
    field.host(1).set_profile(MANAGED);
    field.host(0).mend_tools();
    field.host(1).mend_tools();
    for (n, gate) in gates.iter().enumerate() {
        gate.wait_for(SOON, &field.name(n), "it is fit again", |record| record["reason"]["code"] == "fit");
    }
}

fn a_gate_that_hears_no_other_one_quarantines_as_ever(kind: Kind) {
    let field = Field::new(kind);
    let gates = gates(&field);
    let [first, second] = gates;
    field.host(0).set_tool("codex", BROKEN);
    first.wait_until(SOON, &field.name(0), "quarantined");
    // Alone it would be one of one; the other one is known to be gone.
    assert!(first.stop().success());
    until(SOON, "the other gate has said goodbye", || !audited(field.host(0), "gate-offline").is_empty());
    field.host(1).set_tool("codex", BROKEN);
    second.wait_until(SOON, &field.name(1), "quarantined");
}
