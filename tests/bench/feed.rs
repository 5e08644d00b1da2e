//! The feed edge: shared queues and unmodified producers, on Redis and on RabbitMQ.

use std::{thread, time::Duration};

use crate::{sections::Section, support::gate::Host, table::Table};

mod delay;
mod free;
mod idle;
mod rabbitmq;
mod redis;
mod signs;

pub(crate) use idle::be_the_floor;

const SOON: Duration = Duration::from_secs(60);
/// The shared queue.
const INTAKE: &str = "codex";
/// The worker's node name, its lane, and what the floor has in their place.
const WORKER: &str = "codex-0@bench";
const LANE: &str = "codex-0.lane";
const FLOOR: &str = "floor";
const FLOOR_LANE: &str = "floor.lane";

pub(crate) fn measure() -> Vec<Table> {
    let parts: [(&str, Section); 5] = [
        ("messages a second on Redis", redis::measure),
        ("messages a second on RabbitMQ", rabbitmq::measure),
        ("what is added to a task", delay::measure),
        ("work goes to the free", free::measure),
        ("ten idle workers on each broker, for a minute", idle::measure),
    ];
    let mut tables = Vec::new();
    for (what, measure) in parts {
        eprintln!("[bench]   {what}");
        tables.extend(measure());
    }
    tables
}

/// Settings for one fed worker, to whom nothing happens but edits of the profile. The lane is so deep, and the worker may be
/// silent for the whole of the measurement.
fn settings(host: &Host, url: &str, depth: u32) -> String {
    let mut settings = crate::drift::settings(host, url);
    host.add_fed_worker(&mut settings, WORKER, LANE, &format!(r#"queue = "{INTAKE}""#));
    for (tests, bench) in [
        ("depth = 1\n", format!("depth = {depth}\n")),
        ("offline_after = \"2s\"", "offline_after = \"10m\"".to_owned()),
    ] {
        assert!(settings.contains(tests), "{settings}");
        settings = settings.replace(tests, &bench);
    }
    settings
}

/// What is still done for the last step is not to take part in the next one.
fn calm() {
    thread::sleep(Duration::from_secs(1));
}
