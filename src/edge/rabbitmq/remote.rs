//! Asks a Celery worker over its remote control.
//!
//! What is for one worker goes straight to its mailbox. The fanout exchange in front of all mailboxes would have every
//! worker of the virtual host read it, does not exist before the first worker does, and says nothing of one that is away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Consumer,
    options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::links::Links;
use crate::{
    amqp::Link,
    edge::{
        celery::{self, ANSWER_LIMIT, Command, TICKET, ticket},
        fault::{Fault, within},
    },
    failpoint,
    model::{Exposed, ExposedTask, WorkerName},
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
    let sent = remote.post(&Node::of(worker), method, &arguments, &ticket(), None).await;
    sent.inspect(|_| failpoint::hit(command.sent()))
}

/// What the worker has prefetched or started.
pub(crate) async fn exposed(links: &Links, worker: &WorkerName) -> Exposed {
    let node = Node::of(worker);
    match tokio::time::timeout(ANSWER_LIMIT, ask(links, &node)).await {
        Ok(Ok(Some(tasks))) => Exposed::Tasks(tasks),
        Ok(Ok(None)) => Exposed::Unknown(format!(
            "the worker has no mailbox {}; it is away, or has its remote control turned off",
            node.mailbox
        )),
        Ok(Err(fault)) => Exposed::Unknown(format!("failed to ask the worker: {fault}")),
        Err(_) => celery::silent(),
    }
}

/// `None` if the worker has no mailbox.
async fn ask(links: &Links, node: &Node) -> Result<Option<Vec<ExposedTask>>, Fault> {
    let remote = links.remote().await?;
    // `active` is asked last: a task that moves from reserved to active in between is then seen twice rather than never.
    let (reserved, active) = tokio::try_join!(biased; remote.ask(node, "reserved"), remote.ask(node, "active"))?;
    let (Some(reserved), Some(active)) = (reserved, active) else { return Ok(None) };
    Ok(Some(celery::tasks(&reserved, &active)))
}

/// A worker as Celery knows it.
struct Node {
    name: String,
    /// The queue that it declares for itself (kombu/pidbox.py).
    mailbox: ShortString,
}

impl Node {
    fn of(worker: &WorkerName) -> Self {
        let name = celery::node(worker);
        let mailbox = format!("{name}.celery.pidbox").into();
        Self { name, mailbox }
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
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = within(doing, ears.queue_declare(ShortString::default(), options, FieldTable::default())).await?;
        let reply_to = queue.name().clone();
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let listen = ears.basic_consume(reply_to.clone(), ShortString::default(), options, FieldTable::default());
        let answers = within(doing, listen).await?;
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
    async fn ask(&self, node: &Node, method: &str) -> Result<Option<Value>, Fault> {
        let (ticket, (waiting, answer)) = (ticket(), oneshot::channel());
        lock(&self.asked).insert(ticket.clone(), waiting);
        let _forget = Forget { asked: &self.asked, ticket: &ticket };
        match self.post(node, method, &json!({}), &ticket, Some(&self.reply_to)).await? {
            Sent::NoMailbox => Ok(None),
            Sent::Delivered => {
                answer.await.map(Some).map_err(|_| Fault::Silent { doing: "hear Celery's remote control".to_owned() })
            }
        }
    }

    /// One message as kombu's pidbox reads it. The answer comes by the anonymous exchange, straight to our queue.
    async fn post(
        &self,
        node: &Node,
        method: &str,
        arguments: &Value,
        ticket: &str,
        reply_to: Option<&ShortString>,
    ) -> Result<Sent, Fault> {
        let doing = "send to Celery's remote control";
        let body = celery::question(Some(&node.name), method, arguments, ticket, reply_to.map(ShortString::as_str));
        let mut headers = FieldTable::default();
        headers.insert("clock".into(), AMQPValue::LongLongInt(1));
        headers.insert("expires".into(), AMQPValue::Double(celery::expires()));
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(1)
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let exchange = ShortString::default();
        let posting = self.mouth.basic_publish(exchange, node.mailbox.clone(), options, body.as_bytes(), properties);
        match within(doing, within(doing, posting).await?).await? {
            Confirmation::Ack(Some(returned)) if returned.delivery.routing_key == node.mailbox => Ok(Sent::NoMailbox),
            // What was returned to somebody else, lapin hands to any publish that is confirmed next.
            Confirmation::Ack(_) => Ok(Sent::Delivered),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(Fault::Silent { doing: doing.to_owned() }),
        }
    }
}

/// Hands every answer to whoever asked; one that comes too late to nobody.
async fn hear(mut answers: Consumer, asked: Arc<Asked>) {
    while let Some(Ok(answer)) = answers.next().await {
        let headers = answer.properties.headers().as_ref();
        let Some(ticket) = headers.and_then(|headers| headers.inner().get(TICKET)?.as_long_string()) else { continue };
        if let Some(waiting) = lock(&asked).remove(&ticket.to_string()) {
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
