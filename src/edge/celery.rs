//! Asks a Celery worker over its remote control (FACTS.md, "Celery's wire"). No edge depends on an answer: users turn remote
//! control off, and an idle worker may have lost its mailbox without noticing (celery#9237).

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, ExchangeKind,
    options::{BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Value, json};

use super::{
    fault::{Fault, within},
    links::Links,
};
use crate::model::{Exposed, ExposedTask};

/// Where all workers of all Celery apps on one virtual host listen; fanout, not durable.
const PIDBOX: &str = "celery.pidbox";
/// For a worker to answer. A round trip takes 20 to 30 ms (FACTS.md); a worker whose main process is busy takes longer.
const ANSWER_LIMIT: Duration = Duration::from_millis(800);

/// A command without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    /// Stop consuming the lane.
    CancelConsumer,
    /// Consume it again.
    AddConsumer,
    /// Warm shutdown: running tasks finish, prefetched ones go back.
    Shutdown,
}

/// Sends a command to one worker.
pub(super) async fn send(links: &Links, worker: &str, lane: &str, command: Command) -> Result<(), Fault> {
    let (method, arguments) = match command {
        Command::CancelConsumer => ("cancel_consumer", json!({ "queue": lane })),
        Command::AddConsumer => ("add_consumer", json!({ "queue": lane })),
        Command::Shutdown => ("shutdown", json!({})),
    };
    publish(links, &[request(worker, method, &arguments, None)]).await
}

/// What the worker has prefetched or started.
pub(super) async fn exposed(links: &Links, worker: &str) -> Exposed {
    match tokio::time::timeout(ANSWER_LIMIT, ask(links, worker)).await {
        Ok(Ok(tasks)) => Exposed::Tasks(tasks),
        Ok(Err(fault)) => Exposed::Unknown(format!("failed to ask the worker: {fault}")),
        Err(_) => Exposed::Unknown(format!(
            "the worker did not answer within {} ms; it may be away, busy, or have its remote control turned off",
            ANSWER_LIMIT.as_millis()
        )),
    }
}

async fn ask(links: &Links, worker: &str) -> Result<Vec<ExposedTask>, Fault> {
    let doing = "ask a worker";
    let ears = within(doing, links.moves.connection().create_channel()).await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = within(doing, ears.queue_declare(ShortString::default(), options, FieldTable::default())).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let listen = ears.basic_consume(queue.name().clone(), ShortString::default(), options, FieldTable::default());
    let mut answers = within(doing, listen).await?;
    let reply_to = Some(queue.name().as_str());
    let nothing = json!({});
    // `active` is asked last: a task that moves from reserved to active in between is then seen twice rather than never.
    let questions = [request(worker, "reserved", &nothing, reply_to), request(worker, "active", &nothing, reply_to)];
    publish(links, &questions).await?;
    let mut tasks = BTreeMap::new();
    for active in [false, true] {
        let Some(Ok(answer)) = answers.next().await else { break };
        let answer: Value = serde_json::from_slice(&answer.data).unwrap_or_default();
        let found =
            answer.as_object().into_iter().flat_map(|nodes| nodes.values()).filter_map(Value::as_array).flatten();
        for task in found {
            let text = |key: &str| task[key].as_str().unwrap_or_default().to_owned();
            tasks.insert(text("id"), ExposedTask { id: text("id"), name: text("name"), active });
        }
    }
    let _ = within(doing, ears.close(200, "done".into())).await;
    Ok(tasks.into_values().collect())
}

/// One message as kombu's pidbox reads it. The answer comes by the anonymous exchange, straight to our queue.
fn request(worker: &str, method: &str, arguments: &Value, reply_to: Option<&str>) -> Vec<u8> {
    // celery/utils/nodenames.py: what has no @ is the host of a node called celery.
    let node = if worker.contains('@') { worker.to_owned() } else { format!("celery@{worker}") };
    json!({
        "method": method,
        "arguments": arguments,
        "destination": [node],
        "pattern": null,
        "matcher": null,
        "ticket": uuid::Uuid::new_v4().to_string(),
        "reply_to": reply_to.map(|queue| json!({ "exchange": "", "routing_key": queue })),
    })
    .to_string()
    .into_bytes()
}

async fn publish(links: &Links, requests: &[Vec<u8>]) -> Result<(), Fault> {
    let doing = "send to Celery's remote control";
    // A channel of its own: publishing to an exchange that no worker has declared yet would end a shared one.
    let mouth = within(doing, links.publish.connection().create_channel()).await?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    within(doing, mouth.exchange_declare(PIDBOX.into(), ExchangeKind::Fanout, passive, FieldTable::default())).await?;
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + ANSWER_LIMIT;
    let mut headers = FieldTable::default();
    headers.insert("clock".into(), AMQPValue::LongLongInt(1));
    headers.insert("expires".into(), AMQPValue::Double(expires.as_secs_f64()));
    for request in requests {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_delivery_mode(1)
            .with_headers(headers.clone());
        let options = BasicPublishOptions::default();
        within(doing, mouth.basic_publish(PIDBOX.into(), ShortString::default(), options, request, properties)).await?;
    }
    within(doing, mouth.close(200, "done".into())).await
}
