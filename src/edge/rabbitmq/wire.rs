//! Channels, private queues, and Celery's questions: what edges and `doctor` alike do on a connection.

use lapin::{
    BasicProperties, Channel, Consumer, ExchangeKind, PublisherConfirm,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::{
    amqp::Link,
    edge::{
        celery::{self, EVENTS, REPLIES},
        fault::{Fault, is_refusal, within},
    },
};

/// A new channel.
pub(crate) async fn open(link: &Link) -> Result<Channel, Fault> {
    within("open a channel", link.connection().create_channel()).await
}

/// A channel for messages. An alarm stops everything on the connection that publishes, and that is no reason to end the
/// other workers' connections.
pub(crate) async fn publishing(link: &Link) -> Result<Channel, Fault> {
    let opened = async {
        let channel = open(link).await?;
        within("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    };
    match opened.await {
        Err(Fault::Silent { .. }) => Err(Fault::Blocked),
        opened => opened,
    }
}

/// Whether there is an exchange of this name.
pub(crate) async fn has_exchange(link: &Link, exchange: &str) -> Result<bool, Fault> {
    let channel = open(link).await?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let declare = channel.exchange_declare(exchange.into(), ExchangeKind::Direct, passive, FieldTable::default());
    match within("find an exchange", declare).await {
        Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => Ok(false),
        there => {
            let _ = channel.close(200, "done".into()).await;
            there.map(|()| true)
        }
    }
}

/// A queue's messages, not counting those that a consumer holds, and its consumers.
pub(crate) async fn count(channel: &Channel, queue: &ShortString) -> Result<lapin::Queue, Fault> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    within("count a queue", channel.queue_declare(queue.clone(), options, FieldTable::default())).await
}

/// The same of a queue that may not be there, which would end the channel.
pub(crate) async fn count_if_there(link: &Link, queue: &ShortString) -> Result<Option<lapin::Queue>, Fault> {
    let channel = open(link).await?;
    match count(&channel, queue).await {
        Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => Ok(None),
        counted => {
            let _ = channel.close(200, "done".into()).await;
            counted.map(Some)
        }
    }
}

/// Consumes a queue. In a task of its own, because whoever waits for it may turn to something else: lapin forgets a consumer whose
/// making is given up half way, and the broker would give it messages for ever. One that nobody wants any more ends.
pub(crate) async fn consume(
    channel: &Channel,
    queue: ShortString,
    options: BasicConsumeOptions,
    arguments: FieldTable,
    doing: &str,
) -> Result<Consumer, Fault> {
    let (channel, doing) = (channel.clone(), doing.to_owned());
    let making = tokio::spawn(async move {
        within(&doing, channel.basic_consume(queue, ShortString::default(), options, arguments)).await
    });
    making.await.unwrap_or_else(|panic| Err(Fault::Silent { doing: format!("consume ({panic})") }))
}

/// A queue of this connection's own, and what comes to it.
pub(crate) async fn listen(channel: &Channel, doing: &str) -> Result<(ShortString, Consumer), Fault> {
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let declare = channel.queue_declare(ShortString::default(), own, FieldTable::default());
    let queue = within(doing, declare).await?.name().clone();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consumer = consume(channel, queue.clone(), options, FieldTable::default(), doing).await?;
    Ok((queue, consumer))
}

/// The same for answers of Celery's workers, which they publish to the exchange that Celery has for it, with the queue's name
/// as the key. By the anonymous exchange it would go as well, but then a worker would need leave to publish to every queue.
pub(crate) async fn hear_celery(channel: &Channel) -> Result<(ShortString, Consumer), Fault> {
    let doing = "listen for Celery's remote control";
    // As kombu declares it (kombu/pidbox.py, `_get_reply_exchange`).
    let (options, none) = (ExchangeDeclareOptions::default(), FieldTable::default());
    within(doing, channel.exchange_declare(REPLIES.into(), ExchangeKind::Direct, options, none)).await?;
    let (queue, answers) = listen(channel, doing).await?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    within(doing, channel.queue_bind(queue.clone(), REPLIES.into(), queue.clone(), options, none)).await?;
    Ok((queue, answers))
}

/// The same for what workers say of themselves: heartbeats, and that they come and go.
///
/// # Errors
/// Where no worker has ever sent an event, there is no exchange for them: 404.
pub(crate) async fn hear_heartbeats(channel: &Channel) -> Result<Consumer, Fault> {
    let doing = "listen to Celery's heartbeats";
    let (queue, events) = listen(channel, doing).await?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    within(doing, channel.queue_bind(queue, EVENTS.into(), "worker.#".into(), options, none)).await?;
    Ok(events)
}

/// One message as kombu's pidbox reads it, with this body.
pub(crate) async fn ask_celery(
    mouth: &Channel,
    exchange: &str,
    key: &ShortString,
    body: &str,
) -> Result<PublisherConfirm, Fault> {
    let mut headers = FieldTable::default();
    headers.insert("clock".into(), AMQPValue::LongLongInt(1));
    headers.insert("expires".into(), AMQPValue::Double(celery::expires()));
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_delivery_mode(1)
        .with_headers(headers);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let posting = mouth.basic_publish(exchange.into(), key.clone(), options, body.as_bytes(), properties);
    within("send to Celery's remote control", posting).await
}

/// The ticket on an answer of Celery's, which says what it answers.
pub(crate) fn ticket(properties: &BasicProperties) -> Option<String> {
    let ticket = properties.headers().as_ref()?.inner().get(celery::TICKET)?.as_long_string()?;
    Some(ticket.to_string())
}
