//! Messages that wait for nobody. AMQP tells of a queue only to whoever names it: these are the names that follow from the
//! settings as they are, and those that somebody gives.

use std::collections::BTreeSet;

use crate::{
    amqp::Link,
    doctor::Finding,
    edge::{fault::Fault, held, rabbitmq::wire},
    settings::{EdgeKind, Settings},
};

pub(super) async fn look(link: &Link, settings: &Settings, lanes: &[String]) -> Result<Vec<Finding>, Fault> {
    let mut found = Vec::new();
    for (queue, whose) in queues(settings, lanes) {
        let Some(counted) = wire::count_if_there(link, &queue.as_str().into()).await? else { continue };
        let (messages, consumers) = (counted.message_count(), counted.consumer_count());
        if messages == 0 || consumers > 0 {
            continue;
        }
        let remedy = match whose {
            Whose::Nobody => {
                "give one of the workers these keys (workers.intake.keys): new messages then go to it; and publish those that \
                 wait there to the intake again"
            }
            Whose::Gone => {
                "if its worker is gone for good, give them to another one: worker-gate rehome WORKER --to WORKER"
            }
        };
        let detail = format!("{messages} messages wait in {queue}, and nobody takes them");
        found.push(Finding::warning("orphaned", detail, remedy.to_owned()));
    }
    Ok(found)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// Of keys that no worker has.
    Nobody,
    /// Of a worker that is there no more, or has another edge now.
    Gone,
}

fn queues(settings: &Settings, lanes: &[String]) -> BTreeSet<(String, Whose)> {
    let mut queues = BTreeSet::new();
    for worker in &settings.workers {
        match &worker.edge {
            EdgeKind::Route(intake) => queues.insert((format!("{}.unrouted", intake.exchange), Whose::Nobody)),
            // From a time when it had a route.
            EdgeKind::Feed(_) => queues.insert((held(&worker.lane), Whose::Gone)),
        };
    }
    for lane in lanes.iter().filter(|lane| settings.workers.iter().all(|worker| worker.lane != **lane)) {
        queues.extend([lane.clone(), held(lane)].map(|queue| (queue, Whose::Gone)));
    }
    queues
}
