//! Keeps a worker's task events for a while, in a short queue behind Celery's exchange for events. They all say in a header which
//! worker sends them; what stands behind that exchange sorts them by it, and the gate reads them only when it has to name tasks.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    ExchangeKind,
    options::{
        BasicConsumeOptions, ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{links::Links, wire};
use crate::{
    edge::{
        celery::{self, EVENTS},
        fault::{Fault, is_refusal, within},
        task_events::{BYTES, KEPT, Kept, MESSAGES},
    },
    model::WorkerName,
};

/// Sorts task events by the worker that sends them.
pub(crate) const TASKS: &str = "worker-gate.tasks";
/// A queue that no gate has declared again for so long is removed by the broker.
const FORGOTTEN: Duration = Duration::from_secs(900);
/// So often it is declared again.
const RENEW: Duration = Duration::from_secs(300);
/// While Celery's exchange for events is not there: no worker has sent one yet.
const RETRY: Duration = Duration::from_secs(5);
/// For the broker to hand out what it has kept, which takes it some 20 ms.
const READ_LIMIT: Duration = Duration::from_millis(200);

/// Where one worker's events are kept.
pub(crate) fn queue(worker: &str) -> ShortString {
    format!("{TASKS}.{worker}").into()
}

/// Has a worker's events kept as long as it is there.
#[derive(Debug)]
pub(super) struct Keeping {
    /// Why they are not kept.
    problem: watch::Receiver<Option<String>>,
    _task: AbortOnDropHandle<()>,
}

impl Keeping {
    pub(super) fn begin(links: &Arc<Links>, worker: &WorkerName) -> Self {
        let (tell, problem) = watch::channel(Some("it has only just begun".to_owned()));
        let task = tokio::spawn(keep(Arc::clone(links), worker.clone(), tell));
        Self { problem, _task: AbortOnDropHandle::new(task) }
    }

    /// Why they are not kept; `None` if they are.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }
}

async fn keep(links: Arc<Links>, worker: WorkerName, tell: watch::Sender<Option<String>>) {
    loop {
        let kept = declare(&links, &worker).await;
        let pause = if kept.is_ok() { RENEW } else { RETRY };
        let problem = kept.err().map(|fault| format!("failed to {fault}"));
        tell.send_if_modified(|known| {
            let is_other = *known != problem;
            if is_other && let Some(problem) = &problem {
                tracing::info!(%worker, "its task events are not kept yet: {problem}");
            }
            known.clone_from(&problem);
            is_other
        });
        sleep(pause).await;
    }
}

async fn declare(links: &Links, worker: &WorkerName) -> Result<(), Fault> {
    let doing = "keep the worker's task events";
    let channel = wire::open(&links.moves).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let sorting = channel.exchange_declare(TASKS.into(), ExchangeKind::Headers, durable, FieldTable::default());
    within(doing, sorting).await?;
    let (options, none) = (ExchangeBindOptions::default(), FieldTable::default());
    within(doing, channel.exchange_bind(TASKS.into(), EVENTS.into(), "task.#".into(), options, none)).await?;
    let queue = queue(worker.as_str());
    let limits = [
        ("x-max-length", AMQPValue::LongLongInt(i64::try_from(MESSAGES).unwrap_or(i64::MAX))),
        ("x-max-length-bytes", AMQPValue::LongLongInt(i64::try_from(BYTES).unwrap_or(i64::MAX))),
        ("x-message-ttl", milliseconds(KEPT)),
        ("x-expires", milliseconds(FORGOTTEN)),
    ];
    let mut arguments = FieldTable::default();
    for (name, limit) in limits {
        arguments.insert(name.into(), limit);
    }
    within(doing, channel.queue_declare(queue.clone(), QueueDeclareOptions::default(), arguments)).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("hostname".into(), AMQPValue::LongString(celery::node(worker).into()));
    let bind = channel.queue_bind(queue, TASKS.into(), ShortString::default(), QueueBindOptions::default(), arguments);
    within(doing, bind).await?;
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

fn milliseconds(time: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

/// What was kept. It stays there: what is not acknowledged goes back to its place with the end of the channel.
pub(super) async fn read(links: &Links, worker: &WorkerName) -> Result<Kept, Fault> {
    let doing = "read the worker's task events";
    let until = Instant::now() + READ_LIMIT;
    let channel = wire::open(&links.moves).await?;
    let queue = queue(worker.as_str());
    let waiting = match wire::count(&channel, &queue).await {
        Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => 0,
        counted => counted?.message_count(),
    };
    let mut kept = Kept::default();
    if waiting > 0 {
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut messages = wire::consume(&channel, queue, options, none, doing).await?.take(waiting as usize);
        while let Ok(Some(Ok(message))) = timeout_at(until, messages.next()).await {
            kept.messages.push(message.data);
        }
    }
    let _ = channel.close(200, "done".into()).await;
    Ok(kept)
}
