//! Says which queues this gate consumes, to whoever asks all gates: only so can a consumer that is no gate be told from one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Consumer, ExchangeKind,
    options::{BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions},
    types::{FieldTable, ShortString},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    links::Links,
    wire::{self, open, publishing},
};
use crate::edge::{
    fault::{Fault, within},
    links::LinkState,
};

/// A fanout to all gates.
pub(crate) const EXCHANGE: &str = "worker-gate.control";

/// One gate's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) gate: String,
    pub(crate) pid: u32,
    /// How often it consumes each shared queue at this moment.
    pub(crate) consumes: BTreeMap<String, usize>,
}

/// How often this gate consumes which queue.
#[derive(Debug, Default)]
pub(crate) struct Consumed(Mutex<BTreeMap<String, usize>>);

impl Consumed {
    /// Once more, until what is handed back is dropped.
    pub(super) fn begin(self: &Arc<Self>, queue: &str) -> Consuming {
        *self.lock().entry(queue.to_owned()).or_default() += 1;
        Consuming { consumed: Arc::clone(self), queue: queue.to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue being consumed.
#[derive(Debug)]
pub(crate) struct Consuming {
    consumed: Arc<Consumed>,
    queue: String,
}

impl Drop for Consuming {
    fn drop(&mut self) {
        if let Some(times) = self.consumed.lock().get_mut(&self.queue) {
            *times -= 1;
        }
    }
}

/// Answers until `stop`, on whichever links there are. A gate that cannot be asked guards as well as any other.
pub(crate) async fn keep(
    mut links: watch::Receiver<LinkState<Links>>,
    gate: String,
    stop: CancellationToken,
) -> Result<(), Fault> {
    loop {
        let state = links.borrow_and_update().clone();
        let answering = async {
            if let LinkState::Up(links) = state
                && let Err(fault) = answer_all(&links, &gate).await
                && links.control.connection().status().connected()
            {
                tracing::warn!("failed to {fault}; worker-gate doctor will not know of this gate");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = answering => {}
            changed = links.changed() => if changed.is_err() { return Ok(()) },
            () = stop.cancelled() => return Ok(()),
        }
    }
}

async fn answer_all(links: &Links, gate: &str) -> Result<(), Fault> {
    let mut questions = listen(&open(&links.moves).await?).await?;
    while let Some(question) = questions.next().await {
        let question = question.map_err(|error| Fault::command("hear questions to all gates", error))?;
        let Some(reply_to) = question.properties.reply_to().clone() else { continue };
        let consumes = links.consumed.lock().clone();
        let answer = Answer { gate: gate.to_owned(), pid: std::process::id(), consumes };
        let body = serde_json::to_vec(&answer).unwrap_or_default();
        // Whoever asked has gone if this fails, or the broker is in alarm.
        let _ = reply(links, reply_to, &body).await;
    }
    Ok(())
}

async fn reply(links: &Links, to: ShortString, body: &[u8]) -> Result<(), Fault> {
    let mouth = publishing(&links.publish).await?;
    let properties = BasicProperties::default().with_content_type("application/json".into());
    let sent = mouth.basic_publish(ShortString::default(), to, BasicPublishOptions::default(), body, properties);
    within("answer", within("answer", sent).await?).await?;
    within("answer", mouth.close(200, "done".into())).await
}

/// Makes the exchange, if it is not there.
pub(crate) async fn declare(channel: &Channel) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Fanout, options, FieldTable::default()).await
}

async fn listen(channel: &Channel) -> Result<Consumer, Fault> {
    let doing = "hear questions to all gates";
    within(doing, declare(channel)).await?;
    let (queue, questions) = wire::listen(channel, doing).await?;
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    within(doing, channel.queue_bind(queue, EXCHANGE.into(), ShortString::default(), bind, none)).await?;
    Ok(questions)
}
