//! What a worker had when its edge was shut: by its own answers, and by its task events of what had ended before it was asked.

use serde_json::Value;
use tokio::time::timeout;

use super::{
    celery::{self, ANSWER_LIMIT},
    fault::Fault,
    task_events::{self, Kept},
};
use crate::model::{Exposed, WorkerName};

/// The way to a worker's remote control.
pub(super) trait Asks {
    /// Its answer; `None` if the worker has no mailbox.
    fn ask(&self, worker: &WorkerName, method: &str) -> impl Future<Output = Result<Option<Value>, Fault>> + Send;
}

/// Asks the worker. `kept` gives its task events, or says why they are not there; it is `None` where they are not wanted.
pub(super) async fn ask<K: Future<Output = Result<Kept, String>>>(
    remote: &impl Asks,
    worker: &WorkerName,
    kept: Option<K>,
) -> Exposed {
    let enable = async { if kept.is_some() { remote.ask(worker, celery::ENABLE_EVENTS).await } else { Ok(None) } };
    // `active` is asked last: a task that moves from reserved to active in between is then seen twice rather than never.
    let asking =
        async { tokio::try_join!(biased; remote.ask(worker, "reserved"), remote.ask(worker, "active"), enable) };
    let (mut exposed, mut were_on) = (Exposed::default(), None);
    match timeout(ANSWER_LIMIT, asking).await {
        Ok(Ok((Some(reserved), Some(active), enabled))) => {
            exposed.tasks = Some(celery::tasks(&reserved, &active));
            were_on = enabled.as_ref().and_then(celery::were_events_on);
        }
        Ok(Ok(_)) => {
            let mailbox = celery::mailbox(worker);
            exposed.unknown =
                Some(format!("the worker has no mailbox {mailbox}; it is away, or has its remote control turned off"));
        }
        Ok(Err(fault)) => exposed.unknown = Some(format!("failed to ask the worker: {fault}")),
        Err(_) => exposed.unknown = Some(celery::silent()),
    }
    match kept {
        Some(kept) => {
            let kept = kept.await;
            task_events::add(&mut exposed, &celery::node(worker), kept.as_ref().map_err(String::as_str), were_on);
        }
        None => exposed.ended_unknown = Some(task_events::OFF.to_owned()),
    }
    exposed
}
