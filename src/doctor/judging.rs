//! What follows from what the broker, the gates and the workers said. Pure.

use std::collections::BTreeSet;

use super::{Finding, Seen, told::Told};
use crate::{
    edge::celery,
    settings::{OnQuarantine, Settings, Worker},
};

/// Every finding, those of other workers' consuming first.
pub(super) fn findings(settings: &Settings, intakes: &BTreeSet<String>, seen: &Seen) -> Vec<Finding> {
    let mut found = bypasses(settings, intakes, seen);
    for worker in &settings.workers {
        let node = celery::node(&worker.name);
        let told = seen.workers.get(&node);
        found.extend(lane(worker, &node, told, seen));
        match told.filter(|told| told.answers()) {
            Some(told) => found.extend(habits(worker.on_quarantine, &node, told, seen.listened)),
            None => found.extend(silence(worker, &node, told, seen)),
        }
    }
    found
}

/// Whoever consumes what only a gate may consume, or what is another worker's.
fn bypasses(settings: &Settings, intakes: &BTreeSet<String>, seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    let lane = |node: &str| {
        let worker = settings.workers.iter().find(|worker| celery::node(&worker.name) == node);
        worker.map_or("its own lane", |worker| worker.lane.as_str())
    };
    for (node, told) in &seen.workers {
        for queue in intakes.iter().filter(|queue| told.consumes(queue)) {
            found.push(Finding::serious(
                "worker-bypass",
                format!("the worker {node} consumes the intake {queue} itself, past every gate"),
                format!("start it with -Q {}", lane(node)),
            ));
        }
        for worker in &settings.workers {
            if told.consumes(&worker.lane) && celery::node(&worker.name) != *node {
                found.push(Finding::serious(
                    "worker-bypass",
                    format!("the worker {node} consumes the lane {} of {}", worker.lane, worker.name),
                    format!("start it with -Q and a lane of its own, and give it a gate; or name it {}", worker.name),
                ));
            }
        }
    }
    for (queue, what) in &seen.unknown {
        found.push(Finding::serious(
            "worker-bypass",
            format!("{what} the intake {queue}, and is no gate and no worker that answers over remote control"),
            format!("look for a worker that was started with -Q {queue}, and start it with -Q and its lane"),
        ));
    }
    found
}

/// Who consumes a worker's lane beside it, and whether it does so itself.
fn lane(worker: &Worker, node: &str, told: Option<&Told>, seen: &Seen) -> Option<Finding> {
    if let Some(queues) = told.and_then(|told| told.queues.as_ref())
        && !told.is_some_and(|told| told.consumes(&worker.lane))
    {
        let queues: Vec<_> = queues.iter().map(|queue| queue.name.as_str()).collect();
        return Some(Finding::warning(
            "lane-not-consumed",
            format!("the worker {node} does not consume its lane {}, but {}", worker.lane, queues.join(", ")),
            format!("start it with -Q {}", worker.lane),
        ));
    }
    let more = unnamed(worker, seen)? - i64::from(!told.is_some_and(Told::answers));
    (more > 0).then(|| {
        Finding::serious(
            "lane-shared",
            format!(
                "{more} more than its worker {} the lane {} of {node}, no gate and no worker that answers over remote control",
                if more == 1 { "consumes" } else { "consume" },
                worker.lane
            ),
            format!(
                "see who it is: rabbitmqctl list_consumers queue_name channel_pid consumer_tag; only {node} may be started \
                 with -Q {}",
                worker.lane
            ),
        )
    })
}

/// How many consume a lane beyond gates and those whom their answers name; `None` where the broker does not tell.
fn unnamed(worker: &Worker, seen: &Seen) -> Option<i64> {
    let named = seen.workers.values().filter(|told| told.consumes(&worker.lane)).count();
    Some(seen.lanes.get(&worker.lane)? - i64::try_from(named).unwrap_or(i64::MAX))
}

/// A worker that is there, and does not answer.
fn silence(worker: &Worker, node: &str, told: Option<&Told>, seen: &Seen) -> Option<Finding> {
    let beats = told.is_some_and(|told| told.beats);
    let consumes = unnamed(worker, seen).is_some_and(|more| more > 0);
    let sign = match (beats, consumes) {
        (true, _) => "sends heartbeats",
        (false, true) => "consumes its lane",
        (false, false) => return None,
    };
    Some(Finding::warning(
        "remote-control-off",
        format!(
            "the worker {node} {sign} and does not answer over remote control: what it has in hand when it is quarantined \
             stays unknown, and on_quarantine = \"recycle\" goes by SIGTERM alone"
        ),
        "set worker_enable_remote_control = True in its Celery application (Celery's default), and start it again"
            .to_owned(),
    ))
}

/// How a worker that answers is set up.
pub(crate) fn habits(on_quarantine: OnQuarantine, node: &str, told: &Told, listened: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    let drains = on_quarantine == OnQuarantine::Drain;
    if let Some((prefetch, processes)) =
        told.prefetch.filter(|(prefetch, most)| drains && !(1..=*most).contains(prefetch))
    {
        let many = if prefetch == 0 { "any number of".to_owned() } else { prefetch.to_string() };
        found.push(Finding::warning(
            "prefetch",
            format!(
                "the worker {node} takes {many} messages beforehand for {processes} at once; with on_quarantine = \"drain\" it \
                 runs all of them after a quarantine"
            ),
            "start it with --prefetch-multiplier 1, or set worker_prefetch_multiplier = 1; or set on_quarantine = \"recycle\""
                .to_owned(),
        ));
    }
    if let (OnQuarantine::Recycle, Some(early)) = (on_quarantine, &told.early)
        && !early.is_empty()
    {
        let some: Vec<_> = early.iter().take(3).map(String::as_str).collect();
        let more = if early.len() > some.len() { ", …" } else { "" };
        found.push(Finding::warning(
            "acks-early",
            format!(
                "the worker {node} acknowledges tasks before they have run ({}{more}); with on_quarantine = \"recycle\" one \
                 that is cut short on the way is lost",
                some.join(", ")
            ),
            "set task_acks_late = True in its Celery application".to_owned(),
        ));
    }
    if listened && !told.beats {
        found.push(Finding::warning(
            "events-off",
            format!(
                "the worker {node} answers, and sends no heartbeats: that it is gone is noticed late or not at all"
            ),
            "start it without --without-heartbeat; and let it publish to celeryev (worker-gate doctor --grants)"
                .to_owned(),
        ));
    }
    found
}

#[cfg(test)]
mod tests;
