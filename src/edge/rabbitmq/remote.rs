//! Asks a Celery worker over its remote control.
//!
//! What is for one worker goes straight to its mailbox. The fanout exchange in front of all mailboxes would have every
//! worker of the virtual host read it, does not exist before the first worker does, and says nothing of one that is away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::StreamExt;
use lapin::{Channel, Confirmation, Consumer, options::ConfirmSelectOptions, types::ShortString};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::{kept, links::Links, wire};
use crate::{
    amqp::Link,
    edge::{
        celery::{self, Command, REPLIES, ticket},
        exposed::{self, Asks},
        fault::{Fault, within},
    },
    failpoint,
    model::{Exposed, WorkerName},
};

/// Whether there was a mailbox to put something into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Delivered,
    NoMailbox,
}

/// Sends a command to one worker.
pub(in crate::edge) async fn send(
    links: &Links,
    worker: &WorkerName,
    lane: &str,
    command: Command,
) -> Result<Sent, Fault> {
    let (method, arguments) = command.call(lane);
    let remote = links.remote().await?;
    let sent = remote.post(worker, method, &arguments, &ticket(), None).await;
    sent.inspect(|_| failpoint::hit(command.sent()))
}

/// What the worker has prefetched or started, and, where its task events are kept, what had ended. `events` is whether they are, or
/// why not.
pub(crate) async fn exposed(links: &Links, worker: &WorkerName, events: Option<Result<(), String>>) -> Exposed {
    let kept = events.map(async |events| {
        events?;
        kept::read(links, worker).await.map_err(|fault| format!("failed to {fault}"))
    });
    exposed::ask(links, worker, kept).await
}

impl Asks for Links {
    async fn ask(&self, worker: &WorkerName, method: &str) -> Result<Option<Value>, Fault> {
        self.remote().await?.ask(worker, method).await
    }
}

/// The way to all mailboxes and the one queue for all answers.
#[derive(Debug)]
pub(crate) struct Remote {
    mouth: Channel,
    reply_to: ShortString,
    asked: Arc<Asked>,
    ears: AbortOnDropHandle<()>,
}

/// Who waits for an answer, by ticket.
type Asked = Mutex<HashMap<String, oneshot::Sender<Value>>>;

impl Remote {
    pub(crate) async fn open(moves: &Link, publish: &Link) -> Result<Self, Fault> {
        let doing = "listen for Celery's remote control";
        let ears = within(doing, moves.connection().create_channel()).await?;
        let (reply_to, answers) = wire::hear_celery(&ears).await?;
        let mouth = within(doing, publish.connection().create_channel()).await?;
        within(doing, mouth.confirm_select(ConfirmSelectOptions::default())).await?;
        let asked = Arc::<Asked>::default();
        let ears = AbortOnDropHandle::new(tokio::spawn(hear(answers, Arc::clone(&asked))));
        Ok(Self { mouth, reply_to, asked, ears })
    }

    pub(crate) fn works(&self) -> bool {
        self.mouth.status().connected() && !self.ears.is_finished()
    }

    /// `None` if the worker has no mailbox.
    async fn ask(&self, worker: &WorkerName, method: &str) -> Result<Option<Value>, Fault> {
        let (ticket, (waiting, answer)) = (ticket(), oneshot::channel());
        lock(&self.asked).insert(ticket.clone(), waiting);
        let _forget = Forget { asked: &self.asked, ticket: &ticket };
        match self.post(worker, method, &json!({}), &ticket, Some(&self.reply_to)).await? {
            Sent::NoMailbox => Ok(None),
            Sent::Delivered => {
                answer.await.map(Some).map_err(|_| Fault::Silent { doing: "hear Celery's remote control".to_owned() })
            }
        }
    }

    /// One message as kombu's pidbox reads it, straight to the worker's mailbox.
    async fn post(
        &self,
        worker: &WorkerName,
        method: &str,
        arguments: &Value,
        ticket: &str,
        reply_to: Option<&ShortString>,
    ) -> Result<Sent, Fault> {
        let doing = "send to Celery's remote control";
        let reply_to = reply_to.map(|queue| (REPLIES, queue.as_str()));
        let (node, mailbox) = (celery::node(worker), ShortString::from(celery::mailbox(worker)));
        let body = celery::question(Some(&node), method, arguments, ticket, reply_to);
        let posted = wire::ask_celery(&self.mouth, "", &mailbox, &body).await?;
        match within(doing, posted).await? {
            Confirmation::Ack(Some(returned)) if returned.delivery.routing_key == mailbox => Ok(Sent::NoMailbox),
            // What was returned to somebody else, lapin hands to any publish that is confirmed next.
            Confirmation::Ack(_) => Ok(Sent::Delivered),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(Fault::Silent { doing: doing.to_owned() }),
        }
    }
}

/// Hands every answer to whoever asked; one that comes too late to nobody.
async fn hear(mut answers: Consumer, asked: Arc<Asked>) {
    while let Some(Ok(answer)) = answers.next().await {
        let Some(ticket) = wire::ticket(&answer.properties) else { continue };
        if let Some(waiting) = lock(&asked).remove(&ticket) {
            let _ = waiting.send(serde_json::from_slice(&answer.data).unwrap_or_default());
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
        lock(self.asked).remove(self.ticket);
    }
}

fn lock(asked: &Asked) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Value>>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}
