//! The feed edge: shared queues and unmodified producers, on Redis and on RabbitMQ.

use std::{thread, time::Duration};

use crate::support::gate::Host;

pub(crate) mod delay;
pub(crate) mod free;
pub(crate) mod idle;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
mod signs;

pub(crate) const SOON: Duration = Duration::from_secs(60);
/// The shared queue.
const INTAKE: &str = "codex";
/// The worker's node name, its lane, and what the floor has in their place.
const WORKER: &str = "codex-0@bench";
const LANE: &str = "codex-0.lane";
pub(crate) const FLOOR: &str = "floor";
pub(crate) const FLOOR_LANE: &str = "floor.lane";

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
pub(crate) fn calm() {
    thread::sleep(Duration::from_secs(1));
}
