//! How fast messages get through on Redis: beside the same script, called in a loop by a client that does nothing else.

use std::{
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use redis::{Connection, Script};
use serde_json::json;

use super::{FLOOR, FLOOR_LANE, INTAKE, LANE, SOON, WORKER, calm, settings, signs::Signs};
use crate::{
    drift::DRIFTED,
    support::{
        facts::Facts,
        gate::{Host, MANAGED},
        redis::{Redis, STEPS, list},
    },
    table::{Sample, Table},
};

const ROUNDS: usize = 7;
const MESSAGES: u32 = 100_000;
/// The lane always has room.
const DEPTH: u32 = 2 * MESSAGES;
/// `BUDGET` in src/edge/redis/feeder.rs.
const BUDGET: u64 = 512;
const SCRIPT: &str = include_str!("../../../src/edge/redis/scripts/round.lua");

pub(crate) fn measure() -> Vec<Table> {
    let (redis, host) = (Redis::start(), Host::new("feed-redis"));
    let _signs = Signs::start(&redis, vec![WORKER.to_owned()], Duration::from_secs(1));
    fill(&redis, INTAKE);
    fill(&redis, FLOOR);
    let floor = Floor::new(&redis);
    let mut facts = Facts::on_redis(&redis);
    host.set_profile(DRIFTED);
    let gate = host.start(&settings(&host, &redis.url(), DEPTH));
    facts.next(SOON, "worker-config-drifted", WORKER);
    let (mut rate, mut floor_rate) = <(Sample, Sample)>::default();
    let mut ratio = Sample::default();
    let (mut share, mut floor_share) = <(Sample, Sample)>::default();
    let edge = format!("worker-gate.edge.{WORKER}");
    for _ in 0..ROUNDS {
        calm();
        let before = in_script(&redis);
        floor.start();
        let took = watch(&redis, Floor::EDGE, FLOOR_LANE);
        floor_share.push((in_script(&redis) - before) / took.as_secs_f64() * 100.0);
        let by_floor = f64::from(MESSAGES) / took.as_secs_f64();
        floor.mend();

        calm();
        let before = in_script(&redis);
        host.set_profile(MANAGED);
        let took = watch(&redis, &edge, LANE);
        share.push((in_script(&redis) - before) / took.as_secs_f64() * 100.0);
        let by_gate = f64::from(MESSAGES) / took.as_secs_f64();
        rate.push(by_gate);
        floor_rate.push(by_floor);
        ratio.push(by_gate / by_floor);
        facts.next(SOON, "worker-admitted", WORKER);
        // Puts everything back to the intake.
        host.set_profile(DRIFTED);
        facts.next(SOON, "worker-quarantined", WORKER);
        redis.wait_for_messages(SOON, INTAKE, MESSAGES);
    }
    assert!(gate.stop().success());
    let mut table =
        Table::new("feed on Redis: 100,000 messages of 1 KiB, from the edge's opening until all are in the lane");
    table.row("worker-gate", "messages/s", &rate).against("the floor", &floor_rate);
    table.row("  in the floor's of the same round", "x", &ratio).at_least(0.7);
    table.row("  the time that Redis spent in the script", "%", &share);
    table.row("floor: the same script in a bare loop on one connection", "messages/s", &floor_rate);
    table.row("  the time that Redis spent in the script", "%", &floor_share);
    table.note(format!(
        "{BUDGET} messages a call at the most; both are watched by a look at the lane every millisecond"
    ));
    vec![table]
}

/// From the moment at which the edge is there until all messages are in the lane.
fn watch(redis: &Redis, edge: &str, lane: &str) -> Duration {
    let mut connection = redis.connect().unwrap();
    let mut look = ::redis::pipe();
    look.cmd("EXISTS").arg(edge).cmd("LLEN").arg(lane);
    let (begin, mut open) = (Instant::now(), None);
    loop {
        let asked = Instant::now();
        let (is_open, there): (bool, u32) = look.query(&mut connection).unwrap();
        if is_open && open.is_none() {
            // Redis answered at some time since we asked.
            open = Some(asked);
        }
        if let Some(open) = open
            && there >= MESSAGES
        {
            return open.elapsed();
        }
        assert!(begin.elapsed() < SOON, "{there} of {MESSAGES} came to {lane} within {SOON:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Seconds that Redis has spent in scripts.
fn in_script(redis: &Redis) -> f64 {
    let stats: String = redis.ask(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:"));
    let micros = line.and_then(|line| line.split(',').find_map(|field| field.strip_prefix("usec=")));
    micros.map_or(0.0, |micros| micros.parse::<f64>().unwrap() / 1e6)
}

fn fill(redis: &Redis, queue: &str) {
    let mut connection = redis.connect().unwrap();
    let message = message(queue);
    assert!((1000..1050).contains(&message.len()), "{} bytes", message.len());
    let messages = vec![message; 500];
    for _ in 0..MESSAGES / 500 {
        let () = ::redis::cmd("LPUSH").arg(queue).arg(&messages).query(&mut connection).unwrap();
    }
}

/// 1 KiB, in kombu's envelope.
fn message(queue: &str) -> String {
    json!({
        "body": STANDARD.encode([b'x'; 480]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": { "lang": "py", "task": "app.mark", "id": "7d9f2c7e-6a0f-4a55-b0e2-3f0f7b7b3f6e" },
        "properties": {
            "correlation_id": "7d9f2c7e-6a0f-4a55-b0e2-3f0f7b7b3f6e",
            "delivery_mode": 2,
            "delivery_info": { "exchange": "", "routing_key": queue },
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "0b8a8c53-0d4e-4b4b-8c0b-6a1c3a2f7f55",
        },
    })
    .to_string()
}

/// An owner's key, an intake and a lane of its own, and nobody who thinks.
struct Floor<'a>(&'a Redis);

impl<'a> Floor<'a> {
    const OWNER: &'static str = "floor.owner";
    const EDGE: &'static str = "floor.edge";
    const VALUE: &'static str = "{\"gate\":\"floor\",\"pid\":1,\"fence\":1}";

    fn new(redis: &'a Redis) -> Self {
        let () = redis.ask(&["SET", Self::OWNER, Self::VALUE]);
        Self(redis)
    }

    /// Opens, and moves until nothing is left.
    fn start(&self) {
        let mut connection = self.0.connect().unwrap();
        let (ready, is_ready) = sync_channel(1);
        thread::spawn(move || {
            let script = Script::new(SCRIPT);
            // Redis knows the script from here on, as it knows the gate's.
            round(&script, &mut connection);
            ready.send(()).unwrap();
            let () = ::redis::cmd("SET").arg(Self::EDGE).arg(Self::VALUE).query(&mut connection).unwrap();
            while round(&script, &mut connection) > 0 {}
        });
        is_ready.recv_timeout(SOON).unwrap();
    }

    /// Shut, and everything in the intake again.
    fn mend(&self) {
        let () = self.0.ask(&["DEL", Self::EDGE]);
        let () = self.0.ask(&["RENAME", FLOOR_LANE, FLOOR]);
    }
}

/// Moves as many as one call may.
fn round(script: &Script, connection: &mut Connection) -> i64 {
    let mut invocation = script.prepare_invoke();
    invocation.key(Floor::OWNER).key(Floor::EDGE);
    for queue in [FLOOR, FLOOR_LANE] {
        for step in STEPS {
            invocation.key(list(queue, step));
        }
    }
    invocation.arg(STEPS.len()).arg(BUDGET).arg(0).arg(Floor::VALUE).arg(DEPTH);
    let said: Vec<(i64, u64, u64)> = invocation.invoke(connection).unwrap();
    said[0].0
}
