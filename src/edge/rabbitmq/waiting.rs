//! How many messages wait for each worker where no worker gets them.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use lapin::types::ShortString;

use super::{
    links::Links,
    wire::{count, open},
};
use crate::{
    amqp::Link,
    edge::{
        fault::{Fault, is_refusal},
        held,
    },
    model::WorkerName,
    settings::{EdgeKind, FeedIntake, IntakeType, Worker},
};

/// Questions that are under way together. The broker answers a channel's questions one after the other, and each takes it
/// some ten microseconds.
const TOGETHER: usize = 64;

/// Counts for each of these workers; one with a queue that is not there is left out.
pub(crate) async fn waiting(links: &Links, workers: &[Worker]) -> Result<BTreeMap<WorkerName, u64>, Fault> {
    // Workers that share a queue are asked about together.
    let all: BTreeSet<String> = workers.iter().flat_map(queues).collect();
    let counted = count_all(&links.moves, &Vec::from_iter(all)).await?;
    let of = |worker: &Worker| queues(worker).iter().map(|queue| counted.get(queue)).sum::<Option<u64>>();
    Ok(workers.iter().filter_map(|worker| Some((worker.name.clone(), of(worker)?))).collect())
}

/// Where messages for this worker wait.
fn queues(worker: &Worker) -> Vec<String> {
    match &worker.edge {
        EdgeKind::Route(intake) => match intake.kind {
            IntakeType::Direct | IntakeType::Topic => vec![held(&worker.lane)],
            // What the intake could not deliver waits for any of its workers; only what came past the intake is this one's.
            IntakeType::ConsistentHash => vec![held(&worker.lane), held(&intake.exchange)],
        },
        EdgeKind::Feed(feed) => match &feed.intake {
            FeedIntake::Queue(queue) => vec![queue.clone()],
            // Settings refuse it on RabbitMQ.
            FeedIntake::Exchange { .. } => vec![held(&worker.lane)],
        },
    }
}

/// The messages of each queue that is there. Asking for one that is not ends the channel, and with it the answers to all later
/// questions: those are asked again on another one.
async fn count_all(link: &Link, queues: &[String]) -> Result<BTreeMap<String, u64>, Fault> {
    let (mut counted, mut asked) = (BTreeMap::new(), 0);
    while asked < queues.len() {
        let channel = open(link).await?;
        let mut is_open = true;
        while is_open && asked < queues.len() {
            let some = &queues[asked..queues.len().min(asked + TOGETHER)];
            let names: Vec<ShortString> = some.iter().map(|queue| queue.as_str().into()).collect();
            let answers = join_all(names.iter().map(|name| count(&channel, name))).await;
            for (queue, answer) in some.iter().zip(answers) {
                asked += 1;
                match answer {
                    Ok(answer) => {
                        counted.insert(queue.clone(), u64::from(answer.message_count()));
                    }
                    Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => {
                        is_open = false;
                        break;
                    }
                    Err(fault) => return Err(fault),
                }
            }
        }
        if is_open {
            let _ = channel.close(200, "done".into()).await;
        }
    }
    Ok(counted)
}
