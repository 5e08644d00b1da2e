//! Looks for ways round the gate: whoever consumes what only a gate may consume. It asks the broker, all gates and all of
//! Celery's workers, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::settings::{BrokerUrl, EdgeKind, FeedIntake, Settings};

mod rabbitmq;
mod redis;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for programs.
    pub code: &'static str,
    /// Whether work can get round the gate by it.
    pub serious: bool,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub remedy: String,
}

/// Why the broker could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// No connection to RabbitMQ.
    #[error(transparent)]
    RabbitMq(#[from] crate::amqp::ConnectError),
    /// No connection to Redis.
    #[error(transparent)]
    Redis(#[from] crate::redis::ConnectError),
    /// A command was refused, or the connection broke on it.
    #[error(transparent)]
    Fault(#[from] crate::edge::fault::Fault),
}

/// What the broker, the gates and the workers said.
#[derive(Debug, Default)]
struct Seen {
    /// Which queues each Celery worker consumes, by its node name.
    workers: BTreeMap<String, BTreeSet<String>>,
    /// For each shared intake, how many consumers it has beyond those that are gates, and beyond those whom `workers` names.
    unknown: BTreeMap<String, String>,
}

/// Looks.
///
/// # Errors
/// The broker cannot be asked.
pub async fn examine(settings: &Settings) -> Result<Vec<Finding>, DoctorError> {
    let intakes = intakes(settings);
    let seen = match settings.broker.urls.first() {
        Some(BrokerUrl::Amqp(_)) => rabbitmq::look(settings, &intakes).await?,
        Some(BrokerUrl::Redis(_)) | None => redis::look(settings, &intakes).await?,
    };
    Ok(findings(settings, &intakes, &seen))
}

/// The queues that only gates may consume.
fn intakes(settings: &Settings) -> BTreeSet<String> {
    let shared = settings.workers.iter().filter_map(|worker| match &worker.edge {
        EdgeKind::Feed(feed) => match &feed.intake {
            FeedIntake::Queue(queue) => Some(queue.clone()),
            FeedIntake::Exchange { .. } => Some(format!("{}.held", worker.lane)),
        },
        EdgeKind::Route(_) => None,
    });
    shared.collect()
}

fn findings(settings: &Settings, intakes: &BTreeSet<String>, seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    let lane = |node: &str| {
        let worker = settings.workers.iter().find(|worker| crate::edge::celery::node(&worker.name) == node);
        worker.map_or("its own lane", |worker| worker.lane.as_str())
    };
    for (node, queues) in &seen.workers {
        for queue in queues.intersection(intakes) {
            found.push(Finding {
                code: "worker-bypass",
                serious: true,
                detail: format!("the worker {node} consumes the intake {queue} itself, past every gate"),
                remedy: format!("start it with -Q {}", lane(node)),
            });
        }
        for worker in &settings.workers {
            if queues.contains(&worker.lane) && crate::edge::celery::node(&worker.name) != *node {
                found.push(Finding {
                    code: "worker-bypass",
                    serious: true,
                    detail: format!("the worker {node} consumes the lane {} of {}", worker.lane, worker.name),
                    remedy: format!(
                        "start it with -Q and a lane of its own, and give it a gate; or name it {}",
                        worker.name
                    ),
                });
            }
        }
    }
    for (queue, what) in &seen.unknown {
        found.push(Finding {
            code: "worker-bypass",
            serious: true,
            detail: format!("{what} the intake {queue}, and is no gate and no worker that answers over remote control"),
            remedy: format!("look for a worker that was started with -Q {queue}, and start it with -Q and its lane"),
        });
    }
    for worker in &settings.workers {
        let node = crate::edge::celery::node(&worker.name);
        if let Some(queues) = seen.workers.get(&node)
            && !queues.contains(&worker.lane)
        {
            let queues: Vec<_> = queues.iter().map(String::as_str).collect();
            found.push(Finding {
                code: "lane-not-consumed",
                serious: false,
                detail: format!(
                    "the worker {node} does not consume its lane {}, but {}",
                    worker.lane,
                    queues.join(", ")
                ),
                remedy: format!("start it with -Q {}", worker.lane),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Source, load};

    fn settings() -> Settings {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        let text = r#"
[broker]
url = "redis://localhost/0"
[checks.codex_cli]
run = [["true"]]
[[workers]]
name = "codex-0@h"
edge = "feed"
lane = "codex-0.lane"
intake = { queue = "codex" }
"#;
        std::fs::write(&file, text).unwrap();
        load(&Source { file: Some(file), hostname: "h".into(), ..Source::default() }).unwrap().settings
    }

    fn found(workers: &[(&str, &str)], unknown: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let mut seen = Seen::default();
        for (node, queue) in workers {
            seen.workers.entry((*node).to_owned()).or_default().insert((*queue).to_owned());
        }
        seen.unknown = unknown.iter().map(|(queue, what)| ((*queue).to_owned(), (*what).to_owned())).collect();
        let settings = settings();
        findings(&settings, &intakes(&settings), &seen).into_iter().map(|found| (found.code, found.remedy)).collect()
    }

    #[test]
    fn workers_on_their_own_lanes_are_nothing_to_find() {
        assert_eq!(found(&[("codex-0@h", "codex-0.lane"), ("other@h", "other")], &[]), []);
    }

    #[test]
    fn who_consumes_the_intake_or_the_lane_of_another_is_found_with_what_to_do() {
        let started = ("worker-bypass", "start it with -Q codex-0.lane".to_owned());
        assert_eq!(found(&[("codex-0@h", "codex"), ("codex-0@h", "codex-0.lane")], &[]), [started]);
        assert_eq!(found(&[("x@h", "codex-0.lane")], &[])[0].0, "worker-bypass");
        assert_eq!(found(&[], &[("codex", "one more consumes")])[0].0, "worker-bypass");
        assert_eq!(found(&[("codex-0@h", "celery")], &[])[0].0, "lane-not-consumed");
    }
}
