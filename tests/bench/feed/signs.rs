//! Signs of life of workers that are not there: Celery's heartbeats, as kombu publishes them on Redis.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::support::redis::Redis;

/// Publishes them until it is dropped.
pub(super) struct Signs {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
}

impl Signs {
    /// One for each node in so long, evenly spread.
    pub(super) fn start(redis: &Redis, nodes: Vec<String>, every: Duration) -> Self {
        let signs = Self { stop: Arc::default(), published: Arc::default() };
        let (stop, published) = (Arc::clone(&signs.stop), Arc::clone(&signs.published));
        let mut connection = redis.connect().unwrap();
        let channel = format!("/{}.celeryev/worker.heartbeat", redis.database());
        let pause = every / u32::try_from(nodes.len()).unwrap();
        thread::spawn(move || {
            for node in nodes.iter().cycle().take_while(|_| !stop.load(Relaxed)) {
                let publish = ::redis::cmd("PUBLISH").arg(&channel).arg(heartbeat(node)).query::<i64>(&mut connection);
                // The measurement is over and its server gone.
                if publish.is_err() {
                    break;
                }
                published.fetch_add(1, Relaxed);
                thread::sleep(pause);
            }
        });
        signs
    }

    pub(super) fn published(&self) -> u64 {
        self.published.load(Relaxed)
    }
}

impl Drop for Signs {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// As celery/worker/state.py and heartbeat.py fill it.
fn heartbeat(node: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let body = json!({
        "hostname": node, "utcoffset": 0, "pid": std::process::id(), "clock": 1, "freq": 2.0, "active": 0, "processed": 0,
        "loadavg": [0.1, 0.1, 0.1], "sw_ident": "py-celery", "sw_ver": "5.5.0", "sw_sys": "Linux", "timestamp": now,
        "type": "worker-heartbeat",
    });
    json!({
        "body": STANDARD.encode(body.to_string()),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": { "hostname": node },
        "properties": {
            "delivery_mode": 1,
            "delivery_info": { "exchange": "celeryev", "routing_key": "worker.heartbeat" },
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "6b3ff3ad-3b19-4a8f-9b0f-0c7f1f6b1d10",
        },
    })
    .to_string()
}
