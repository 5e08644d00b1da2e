//! What can be asked on RabbitMQ: how many consume a queue, all gates, and all of Celery's workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Consumer,
    options::{
        BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{DoctorError, Seen};
use crate::{
    amqp::{self, Link},
    edge::{
        celery,
        fault::{Fault, is_refusal, within},
        rabbitmq::census,
    },
    settings::Settings,
};

/// For answers of whoever hears a question; a gate answers from memory, and a worker in 30 ms.
const PATIENCE: Duration = Duration::from_secs(1);
/// A gate that has just stopped to consume is counted once by the broker and not by itself, or the other way round; a consumer
/// that is none is there each time.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(150);

pub(super) async fn look(settings: &Settings, intakes: &BTreeSet<String>) -> Result<Seen, DoctorError> {
    let link = amqp::connect(&settings.broker, "worker-gate doctor").await?;
    let channel = open(&link).await?;
    let mut seen = Seen { workers: workers(&link).await?, ..Seen::default() };
    within("ask all gates", census::declare(&channel)).await?;
    let mut unknown: BTreeMap<&String, i64> = BTreeMap::new();
    for _ in 0..LOOKS {
        let gates = gates(&channel).await?;
        for queue in intakes {
            let counted = consumers(&link, queue).await?;
            let known: usize = gates.iter().filter_map(|gate| gate.consumes.get(queue)).sum();
            let named = seen.workers.values().filter(|queues| queues.contains(queue)).count();
            let more = i64::from(counted) - i64::try_from(known + named).unwrap_or(i64::MAX);
            let least = unknown.entry(queue).or_insert(more);
            *least = more.min(*least);
        }
        sleep(PAUSE).await;
    }
    for (queue, more) in unknown {
        if more > 0 {
            let who = if more == 1 { "one consumer more consumes".to_owned() } else { format!("{more} more consume") };
            seen.unknown.insert(queue.clone(), who);
        }
    }
    link.close(PATIENCE).await;
    Ok(seen)
}

async fn open(link: &Link) -> Result<Channel, Fault> {
    within("open a channel", link.connection().create_channel()).await
}

/// How many consume a queue; none, if it is not there.
async fn consumers(link: &Link, queue: &str) -> Result<u32, Fault> {
    let channel = open(link).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match within("count a queue", channel.queue_declare(queue.into(), options, FieldTable::default())).await {
        Ok(queue) => {
            let _ = channel.close(200, "done".into()).await;
            Ok(queue.consumer_count())
        }
        Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => Ok(0),
        Err(fault) => Err(fault),
    }
}

async fn gates(channel: &Channel) -> Result<Vec<census::Answer>, Fault> {
    let (queue, mut answers) = listen(channel).await?;
    let question = BasicProperties::default().with_reply_to(queue).with_type("who".into());
    publish(channel, census::EXCHANGE, b"{}", question).await?;
    let mut gates = Vec::new();
    // The first answers come at once; whoever has not answered a moment after them does not answer.
    let until = Instant::now() + PATIENCE / 2;
    while let Ok(Some(Ok(answer))) = timeout_at(until, answers.next()).await {
        gates.extend(serde_json::from_slice::<census::Answer>(&answer.data));
    }
    let cancel = channel.basic_cancel(answers.tag(), BasicCancelOptions::default());
    within("ask all gates", cancel).await?;
    Ok(gates)
}

/// Asks all of Celery's workers which queues they consume.
async fn workers(link: &Link) -> Result<BTreeMap<String, BTreeSet<String>>, Fault> {
    let channel = open(link).await?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let fanout = lapin::ExchangeKind::Fanout;
    let there = channel.exchange_declare(celery::PIDBOX.into(), fanout, passive, FieldTable::default());
    match within("find Celery's remote control", there).await {
        // No worker has ever been here.
        Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => return Ok(BTreeMap::new()),
        there => there?,
    }
    let (queue, mut answers) = listen(&channel).await?;
    let body = celery::question(None, "active_queues", &json!({}), &celery::ticket(), Some(queue.as_str()));
    let mut headers = FieldTable::default();
    headers.insert("clock".into(), AMQPValue::LongLongInt(1));
    headers.insert("expires".into(), AMQPValue::Double(celery::expires()));
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_headers(headers);
    publish(&channel, celery::PIDBOX, body.as_bytes(), properties).await?;
    let mut workers = BTreeMap::new();
    let until = Instant::now() + PATIENCE;
    while let Ok(Some(Ok(answer))) = timeout_at(until, answers.next()).await {
        workers.extend(celery::queues(&serde_json::from_slice::<Value>(&answer.data).unwrap_or_default()));
    }
    let _ = channel.close(200, "done".into()).await;
    Ok(workers)
}

async fn listen(channel: &Channel) -> Result<(ShortString, Consumer), Fault> {
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let declare = channel.queue_declare(ShortString::default(), own, FieldTable::default());
    let queue = within("listen for answers", declare).await?.name().clone();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consume = channel.basic_consume(queue.clone(), ShortString::default(), options, FieldTable::default());
    Ok((queue, within("listen for answers", consume).await?))
}

async fn publish(channel: &Channel, exchange: &str, body: &[u8], properties: BasicProperties) -> Result<(), Fault> {
    let options = BasicPublishOptions::default();
    let publish = channel.basic_publish(exchange.into(), ShortString::default(), options, body, properties);
    within("ask", publish).await.map(drop)
}
