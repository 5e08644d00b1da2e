//! Who owns a worker. The owner queue is exclusive to the owner's control connection (G6), and it is also the owner's
//! mailbox: whoever is refused can ask it who it is.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Consumer,
    message::Delivery,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use serde_json::json;

use super::{
    names::Names,
    topology::{Topology, publishing},
};
use crate::edge::{
    fault::{Fault, is_refusal, within},
    rabbitmq::links::Links,
};

/// For the owner to say its name. It answers from memory, so a second is a lot.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Takes the worker, and hears what is sent to its owner.
///
/// Whoever was refused `before` asks first: a refusal ends a channel, lapin forgets to give some of those numbers free again
/// (4.12.3), and a connection without a number left would have to end, with the edges of the workers that are owned.
pub(super) async fn own(
    links: &Links,
    control: &Channel,
    topology: &Topology<'_>,
    before: bool,
) -> Result<Consumer, Fault> {
    let names = topology.names;
    let owned = |owner| Fault::Owned { worker: topology.worker.name.to_string(), owner };
    if before && let Ok(Some(owner)) = ask(links, names).await {
        return Err(owned(owner));
    }
    let options = QueueDeclareOptions { exclusive: true, auto_delete: false, ..QueueDeclareOptions::default() };
    let declared =
        within("own the worker", control.queue_declare(names.owner.clone(), options, FieldTable::default())).await;
    match declared {
        Ok(_) => {}
        Err(Fault::Command { error, .. }) if is_refusal(&error, 405) => {
            return Err(owned(ask(links, names).await.ok().flatten().unwrap_or_else(nobody)));
        }
        Err(fault) => return topology.refine(Err(fault), &names.owner),
    }
    let listen = control.basic_consume(
        names.owner.clone(),
        ShortString::default(),
        BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() },
        FieldTable::default(),
    );
    within("hear the owner queue", listen).await
}

fn nobody() -> String {
    "a connection that does not answer; it may be a former one, which RabbitMQ drops after about 2.5 heartbeats"
        .to_owned()
}

/// Asks the owner for its name. `None` if there is no owner.
async fn ask(links: &Links, names: &Names) -> Result<Option<String>, Fault> {
    let doing = "ask who owns the worker";
    let ears = within(doing, links.moves.connection().create_channel()).await?;
    let reply = within(
        doing,
        ears.queue_declare(
            ShortString::default(),
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() },
            FieldTable::default(),
        ),
    )
    .await?;
    let mut answers = within(
        doing,
        ears.basic_consume(
            reply.name().clone(),
            ShortString::default(),
            BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() },
            FieldTable::default(),
        ),
    )
    .await?;
    let mouth = publishing(&links.publish).await?;
    let question = BasicProperties::default().with_reply_to(reply.name().clone()).with_type("who".into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let asking = mouth.basic_publish(ShortString::default(), names.owner.clone(), options, b"{}", question);
    let is_there = matches!(within(doing, within(doing, asking).await?).await?, Confirmation::Ack(None));
    let answer = if is_there { tokio::time::timeout(ANSWER_LIMIT, answers.next()).await } else { Ok(None) };
    let _ = tokio::join!(ears.close(200, "done".into()), mouth.close(200, "done".into()));
    if !is_there {
        return Ok(None);
    }
    let Ok(Some(Ok(answer))) = answer else { return Ok(Some(nobody())) };
    let answer: serde_json::Value = serde_json::from_slice(&answer.data).unwrap_or_default();
    match (answer["gate"].as_str(), answer["pid"].as_u64()) {
        (Some(gate), Some(pid)) => Ok(Some(format!("the gate {gate} (process {pid})"))),
        (_, _) => Ok(Some(nobody())),
    }
}

/// Answers one question, or lets it be: whoever asked asks again.
pub(super) async fn answer(links: Arc<Links>, question: Delivery, gate: String) {
    let Some(reply_to) = question.properties.reply_to().clone() else { return };
    let body = json!({ "gate": gate, "pid": std::process::id() }).to_string();
    let answering = async {
        let mouth = publishing(&links.publish).await?;
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default().with_content_type("application/json".into());
        let sent = mouth.basic_publish(ShortString::default(), reply_to, options, body.as_bytes(), properties);
        within("answer", within("answer", sent).await?).await?;
        within("answer", mouth.close(200, "done".into())).await
    };
    let _ = answering.await;
}
