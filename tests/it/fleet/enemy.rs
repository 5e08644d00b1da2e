//! A hostile client on the broker: it may publish to everybody, and that gets it nowhere.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{DRIFTED, SOON, command, gates, status};
use crate::support::{
    field::{Field, Kind, for_each_edge},
    gate::MANAGED,
    wait::{LONG, throughout},
};

for_each_edge! {
    a_flood_of_requests_opens_nothing_ends_nothing_and_delays_no_shut
    a_forged_answer_or_heartbeat_moves_no_edge
}

/// Far more than a shut takes, on a machine that has a flood to carry besides.
const BOUND: Duration = Duration::from_secs(5);

/// Publishes to all gates: on Redis in kombu's envelope, as the gates read it.
fn shout(field: &Field, bodies: Vec<Vec<u8>>) {
    match field.kind() {
        Kind::Route | Kind::FeedRabbitmq => field.vhost().publish("worker-gate.control", "", bodies),
        Kind::FeedRedis => {
            let mut connection = field.redis().connect().unwrap();
            let channel = format!("/{}.worker-gate.control", field.redis().database());
            for body in bodies {
                let wrapped = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &body);
                let message = json!({
                    "body": wrapped, "headers": {},
                    "properties": {"body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": ""}},
                });
                redis::cmd("PUBLISH").arg(&channel).arg(message.to_string()).query::<i64>(&mut connection).unwrap();
            }
        }
    }
}

fn a_flood_of_requests_opens_nothing_ends_nothing_and_delays_no_shut(kind: Kind) {
    let field = Field::new(kind);
    let gates = gates(&field);
    let (held, other) = (field.name(0), field.name(1));
    field.host(0).set_profile(DRIFTED);
    gates[0].wait_for_edge(SOON, &held, "shut");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let release = json!({
                "id": "1", "at": jiff::Timestamp::now(), "by": "enemy",
                "ask": {"release": {"workers": [held, other], "reason": "", "until": null}},
            });
            let strange: [&[u8]; 7] = [
                b"",
                b"{",
                b"null",
                b"[[[[[[[[[[[[[[[[",
                b"\xff\xfe\x00",
                br#"{"id":1,"at":"now","by":[],"ask":"open"}"#,
                br#"{"id":"1","at":"2026-01-01T00:00:00Z","by":"","ask":{"open":{"workers":["codex-0"]}}}"#,
            ];
            // Ten thousand in a burst, a few long ones, and on.
            shout(&field, (0..10_000).map(|n| strange[n % strange.len()].to_vec()).collect());
            shout(&field, (0..20).map(|_| vec![b'x'; 1_000_000]).collect());
            while !stop.load(Ordering::Relaxed) {
                shout(&field, (0..500).map(|_| release.to_string().into_bytes()).collect());
            }
        });
        for _ in 0..5 {
            throughout(Duration::from_secs(1), "what is unfit is shut", || {
                gates[0].get("/workers").is_none_or(|(_, text)| text.contains("quarantined"))
            });
            field.host(1).set_profile(DRIFTED);
            let begun = Instant::now();
            gates[1].wait_for_edge(SOON, &other, "shut");
            assert!(begun.elapsed() < BOUND, "a shut took {:?} in the flood", begun.elapsed());
            field.host(1).set_profile(MANAGED);
            gates[1].wait_for_edge(LONG, &other, "open");
        }
        stop.store(true, Ordering::Relaxed);
    });
    // And whoever asks in earnest is heard again.
    field.host(0).set_profile(MANAGED);
    gates[0].wait_for_edge(LONG, &held, "open");
    crate::support::wait::until(SOON, "status is answered", || status(&field, &[]).0 == 0);
    assert!(gates.iter().all(crate::support::gate::Gate::is_alive));
    assert!(gates.iter().all(|gate| !gate.log().contains("panicked")));
}

fn a_forged_answer_or_heartbeat_moves_no_edge(kind: Kind) {
    let field = Field::new(kind);
    let gates = gates(&field);
    field.host(0).set_profile(DRIFTED);
    gates[0].wait_for_edge(SOON, &field.name(0), "shut");
    let forged = |kind: &str| {
        json!({
            "type": kind, "hostname": field.name(0), "worker_name": field.name(0), "gate": field.host(0).name(),
            "timestamp": 1.0, "admission": "admitted", "edge": "open", "seq": 1_000_000, "pid": 1,
            "digest": {"admitted": 1, "workers": [{"worker_name": "\u{1b}[2Jx"}]},
        })
        .to_string()
        .into_bytes()
    };
    let bodies: Vec<_> = ["worker-admitted", "gate-heartbeat", "gate-offline"].map(forged).into();
    match kind {
        Kind::Route | Kind::FeedRabbitmq => {
            let _listener = field.facts();
            field.vhost().publish("worker-gate.health", "", bodies.clone());
            let queue = format!("worker-gate.beat.{}", field.host(0).name());
            field.vhost().publish("", &queue, bodies);
        }
        Kind::FeedRedis => {
            let body = String::from_utf8(bodies[1].clone()).unwrap();
            let _: i64 = field.redis().ask(&["HSET", "worker-gate.gates", field.host(0).name(), &body]);
            let _: i64 = field.redis().ask(&["HSET", "worker-gate.gates", "nobody\u{1b}[2J", &body]);
            let _: i64 = field.redis().ask(&["HSET", "worker-gate.gates", "broken", "{"]);
        }
    }
    throughout(Duration::from_secs(2), "it is shut", || {
        gates[0].get("/workers").is_some_and(|(_, text)| text.contains("\"edge\":\"shut\""))
    });
    let (code, table, err) = command(&field, &["status"]);
    assert_eq!(code, 1, "{table}{err}");
    assert!(table.contains("profile_drifted") && !table.contains('\u{1b}'), "{table}");
}
