//! How many messages wait for each worker where no worker gets them.

use std::collections::{BTreeMap, BTreeSet};

use ::redis::pipe;

use super::{fault, keys, links::Links};
use crate::{
    edge::fault::Fault,
    model::WorkerName,
    settings::{EdgeKind, Worker},
};

/// Counts for each of these workers, in one round trip. On the connection that feeds, the answer would be tracked, and each
/// later change of a list be one more thing to hear of.
pub(crate) async fn waiting(links: &Links, workers: &[Worker]) -> Result<BTreeMap<WorkerName, u64>, Fault> {
    // Workers that share a queue are asked about together.
    let queues = Vec::from_iter(workers.iter().filter_map(source).collect::<BTreeSet<_>>());
    let mut questions = pipe();
    for list in queues.iter().flat_map(|queue| keys::lists(&links.broker, queue)) {
        questions.cmd("LLEN").arg(list);
    }
    let answers = questions.query_async::<Vec<u64>>(&mut links.talk.connection()).await;
    let lengths = answers.map_err(|error| fault("count what waits", error))?;
    let each = links.broker.priority_steps.len();
    let counted: BTreeMap<_, u64> = queues.iter().zip(lengths.chunks(each).map(|lists| lists.iter().sum())).collect();
    let of = |worker: &Worker| Some((worker.name.clone(), *counted.get(&source(worker)?)?));
    Ok(workers.iter().filter_map(of).collect())
}

fn source(worker: &Worker) -> Option<String> {
    match &worker.edge {
        EdgeKind::Feed(feed) => Some(keys::source(worker, feed)),
        // Settings refuse it on Redis.
        EdgeKind::Route(_) => None,
    }
}
