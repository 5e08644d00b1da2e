//! Celery's workers on Redis: their remote control, and their heartbeats.
//!
//! Both go by PUB/SUB. A question reaches every worker of the broker, which all but one pass over; there is no way to a single
//! mailbox. The answers come to one list, which the gate empties while it waits for one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::redis::{aio::MultiplexedConnection, cmd};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{fault, feeder::Feeder, kept::Keeper};
use crate::{
    edge::{
        celery::{self, ANSWER_LIMIT, Command, EVENTS, PIDBOX, TICKET},
        exposed::{self, Asks},
        fault::Fault,
    },
    failpoint,
    model::{Exposed, WorkerName},
    redis::{Link, Pushes, envelope},
};

/// Between two looks for an answer; a round trip over the worker takes 20 to 30 ms.
const LOOK: Duration = Duration::from_millis(10);

/// The way to Celery's workers.
#[derive(Debug)]
pub(super) struct Remote {
    connection: MultiplexedConnection,
    /// The PUB/SUB channel of all mailboxes.
    channel: String,
    /// Where answers are to go, without the prefix, which the worker's client puts before it. One list for each gate's name,
    /// since an answer that comes too late stays until the next question.
    reply_to: String,
    asked: Arc<Asked>,
    _ears: AbortOnDropHandle<()>,
}

/// Who waits for an answer, by ticket.
#[derive(Debug, Default)]
struct Asked {
    waiting: Mutex<HashMap<String, oneshot::Sender<Value>>>,
    bell: Notify,
}

impl Asked {
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Value>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remote {
    pub(super) async fn open(talk: &Link, prefix: &str, db: u32, gate: &str) -> Result<Arc<Self>, Fault> {
        let mut connection = talk.connection();
        let beats = format!("{}*", envelope::fanout_channel(prefix, db, EVENTS, "worker."));
        let subscribed = connection.psubscribe(beats).await;
        subscribed.map_err(|error| fault("listen to Celery's heartbeats", error))?;
        let reply_to = format!("worker-gate.answers.{gate}");
        let asked = Arc::<Asked>::default();
        let hearing = hear_answers(connection.clone(), format!("{prefix}{reply_to}"), Arc::clone(&asked));
        Ok(Arc::new(Self {
            connection,
            channel: envelope::fanout_channel(prefix, db, PIDBOX, ""),
            reply_to,
            asked,
            _ears: AbortOnDropHandle::new(tokio::spawn(hearing)),
        }))
    }

    /// Passes the heartbeats on.
    pub(super) async fn hear(&self, mut published: Pushes, feeder: &Feeder) {
        while let Some(push) = published.recv().await {
            let Some(event) = envelope::event(&push) else { continue };
            if let Some((node, is_alive)) = celery::beat(&event) {
                feeder.beat(node, is_alive, celery::process(&event, node));
            }
        }
    }

    /// Whether the worker consumes this queue, as it says itself; `None` if it says nothing.
    pub(super) async fn consumes(&self, worker: &WorkerName, lane: &str) -> Option<bool> {
        let answer = timeout(ANSWER_LIMIT, self.ask(worker, "active_queues")).await.ok()?.ok()??;
        Some(celery::queues(&answer).values().any(|queues| queues.contains(lane)))
    }

    /// What the worker has prefetched or started, and, where its task events are kept, what had ended.
    pub(super) async fn exposed(&self, worker: &WorkerName, keeper: Option<&Keeper>) -> Exposed {
        exposed::ask(self, worker, keeper.map(async |keeper| keeper.kept(worker))).await
    }

    /// Sends a command without an answer.
    pub(super) async fn send(&self, worker: &WorkerName, lane: &str, command: Command) -> Result<(), Fault> {
        let (method, arguments) = command.call(lane);
        let sent = self.post(worker, method, &arguments, &celery::ticket(), false).await;
        sent.inspect(|()| failpoint::hit(command.sent()))
    }

    async fn post(
        &self,
        worker: &WorkerName,
        method: &str,
        arguments: &Value,
        ticket: &str,
        answered: bool,
    ) -> Result<(), Fault> {
        let node = celery::node(worker);
        let reply_to = answered.then_some(("", self.reply_to.as_str()));
        let body = celery::question(Some(&node), method, arguments, ticket, reply_to);
        let headers = json!({ "clock": 1, "expires": celery::expires() });
        let headers = headers.as_object().cloned().unwrap_or_default();
        let message = envelope::wrap(&body, &headers, PIDBOX, "");
        let mut connection = self.connection.clone();
        let mut publish = cmd("PUBLISH");
        publish.arg(&self.channel).arg(message);
        publish
            .query_async::<i64>(&mut connection)
            .await
            .map(|_| ())
            .map_err(|error| fault("send to Celery's remote control", error))
    }
}

impl Asks for Remote {
    /// Redis does not tell whether there is a mailbox.
    async fn ask(&self, worker: &WorkerName, method: &str) -> Result<Option<Value>, Fault> {
        let (ticket, (waiting, answer)) = (celery::ticket(), oneshot::channel());
        self.asked.waiting().insert(ticket.clone(), waiting);
        self.asked.bell.notify_one();
        let _forget = Forget { asked: &self.asked, ticket: &ticket };
        self.post(worker, method, &json!({}), &ticket, true).await?;
        answer.await.map(Some).map_err(|_| Fault::LinkDown)
    }
}

/// Hands every answer to whoever asked, and looks for answers only while somebody waits.
async fn hear_answers(mut connection: MultiplexedConnection, list: String, asked: Arc<Asked>) {
    loop {
        if asked.waiting().is_empty() {
            asked.bell.notified().await;
            continue;
        }
        let mut pop = cmd("RPOP");
        // A link that is lost is somebody else's business, and one that stalls goes on.
        let Ok(Some(answer)) = pop.arg(&list).query_async::<Option<Vec<u8>>>(&mut connection).await else {
            sleep(LOOK).await;
            continue;
        };
        let Some(answer) = envelope::unwrap(&answer) else { continue };
        let Some(ticket) = answer.headers.get(TICKET).and_then(Value::as_str) else { continue };
        if let Some(waiting) = asked.waiting().remove(ticket) {
            let _ = waiting.send(serde_json::from_slice(&answer.body).unwrap_or_default());
        }
    }
}

/// Whoever does not wait any more is asked for no more.
struct Forget<'a> {
    asked: &'a Asked,
    ticket: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.asked.waiting().remove(self.ticket);
    }
}
