//! Asking on RabbitMQ: everything comes back to one queue of our own, and how it came says what it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::{
    BasicProperties, Channel, Consumer, ExchangeKind,
    message::Delivery,
    options::{BasicGetOptions, BasicPublishOptions, ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{FACTS, Heard, SORTED, seen};
use crate::{
    amqp::{self, Link},
    control::{
        EXCHANGE, SIGNATURE,
        roll::{self, Beat},
    },
    edge::{
        celery::{self, EVENTS, PIDBOX, REPLIES},
        fault::{Fault, is_refusal, within},
        rabbitmq::{route::names::owner_queue, wire},
    },
    model::WorkerName,
    report::outbox::declare,
    settings::{self, BrokerUrl},
};

/// How often a gate's last word is looked for: while another asker reads it, it is not there.
const READS: u32 = 4;
const READ_AGAIN: Duration = Duration::from_millis(25);
/// So many owner queues are looked for at once, each on a channel of its own.
const LOOKS: usize = 16;

#[derive(Debug)]
pub(super) struct Asker {
    link: Link,
    mouth: Channel,
    queue: ShortString,
    heard: Consumer,
    /// As whom we are logged in, if that is known: RabbitMQ vouches for it.
    user: Option<ShortString>,
    /// Whether heartbeats come.
    listening: bool,
    /// Where facts come from, if they do.
    facts: Option<String>,
}

impl Asker {
    pub(super) async fn connect(broker: &settings::Broker) -> Result<Self, Fault> {
        let link = amqp::connect(broker, "worker-gate asks").await?;
        let (ears, mouth) = (wire::open(&link).await?, wire::open(&link).await?);
        let (queue, heard) = wire::listen(&ears, "make a queue for answers").await?;
        let mut users: Vec<_> = broker.urls.iter().filter_map(user).collect();
        users.dedup();
        // A name that is not ours would have the message refused.
        let user = if let [user] = users[..] { Some(user.into()) } else { None };
        Ok(Self { link, mouth, queue, heard, user, listening: false, facts: None })
    }

    pub(super) async fn ask(&mut self, body: &[u8], signature: Option<String>) -> Result<(), Fault> {
        if !wire::has_exchange(&self.link, EXCHANGE).await? {
            // No gate has ever been here.
            return Ok(());
        }
        let mut headers = FieldTable::default();
        if let Some(signature) = signature {
            headers.insert(SIGNATURE.into(), AMQPValue::LongString(signature.into()));
        }
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_reply_to(self.queue.clone())
            .with_headers(headers);
        if let Some(user) = &self.user {
            properties = properties.with_user_id(user.clone());
        }
        let (exchange, options) = (EXCHANGE.into(), BasicPublishOptions::default());
        let publish = self.mouth.basic_publish(exchange, ShortString::default(), options, body, properties);
        within("ask all gates", publish).await?;
        Ok(())
    }

    pub(super) async fn call_roll(&mut self) -> Result<(), Fault> {
        let doing = "call the roll of gates";
        if !wire::has_exchange(&self.link, roll::CALL).await? {
            return Ok(());
        }
        if self.bind(roll::ROLL, self.queue.as_str(), doing).await? {
            // A channel of its own, since a refusal ends it.
            let mouth = wire::open(&self.link).await?;
            let (call, options) = (roll::CALL.into(), BasicPublishOptions::default());
            let publish = mouth.basic_publish(call, self.queue.clone(), options, b"", BasicProperties::default());
            within(doing, publish).await?;
        }
        Ok(())
    }

    pub(super) async fn ping(&mut self) -> Result<bool, Fault> {
        let doing = "hear Celery's workers";
        if !self.listening {
            self.listening = self.bind(EVENTS, "worker.#", doing).await?;
        }
        if !wire::has_exchange(&self.link, PIDBOX).await? {
            // No worker has ever been here.
            return Ok(true);
        }
        if !self.bind(REPLIES, self.queue.as_str(), doing).await? {
            return Ok(self.listening);
        }
        let mouth = wire::publishing(&self.link).await?;
        let reply_to = Some((REPLIES, self.queue.as_str()));
        let body = celery::question(None, "ping", &json!({}), &celery::ticket(), reply_to);
        let sent = wire::ask_celery(&mouth, PIDBOX, &ShortString::default(), &body).await?;
        match within(doing, sent).await {
            Ok(_) => Ok(true),
            Err(Fault::Command { error, .. }) if is_refusal(&error, 403) => Ok(self.listening),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn hear_facts(&mut self, exchange: &str) -> Result<(), Fault> {
        let doing = "listen to other gates";
        let channel = wire::open(&self.link).await?;
        within(doing, declare(&channel, exchange, ExchangeKind::Fanout)).await?;
        let (options, none) = (ExchangeDeclareOptions { durable: true, ..Default::default() }, FieldTable::default());
        let sorting = channel.exchange_declare(SORTED.into(), ExchangeKind::Topic, options, none);
        within(doing, sorting).await?;
        let (any, options, none) = (ShortString::default(), ExchangeBindOptions::default(), FieldTable::default());
        within(doing, channel.exchange_bind(SORTED.into(), exchange.into(), any, options, none)).await?;
        for key in FACTS {
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            let bind = channel.queue_bind(self.queue.clone(), SORTED.into(), key.into(), options, none);
            within(doing, bind).await?;
        }
        self.facts = Some(exchange.to_owned());
        let _ = channel.close(200, "done".into()).await;
        Ok(())
    }

    /// Has what comes to an exchange come to our queue. `false` if there is no such exchange, or we may not.
    async fn bind(&self, exchange: &str, key: &str, doing: &str) -> Result<bool, Fault> {
        let channel = wire::open(&self.link).await?;
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        match within(doing, channel.queue_bind(self.queue.clone(), exchange.into(), key.into(), options, none)).await {
            Ok(()) => {
                let _ = channel.close(200, "done".into()).await;
                Ok(true)
            }
            Err(Fault::Command { error, .. }) if is_refusal(&error, 404) || is_refusal(&error, 403) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn next(&mut self, until: Instant) -> Result<Option<Heard>, Fault> {
        loop {
            let Ok(next) = timeout_at(until, self.heard.next()).await else { return Ok(None) };
            let delivery = next.ok_or(Fault::LinkDown)?;
            let delivery = delivery.map_err(|error| Fault::command("hear the answers", error))?;
            if let Some(heard) = heard(&delivery, self.facts.as_deref()) {
                return Ok(Some(heard));
            }
        }
    }

    pub(super) async fn beats(&mut self, gates: &BTreeSet<String>) -> Result<BTreeMap<String, Beat>, Fault> {
        let mut beats = BTreeMap::new();
        for _ in 0..READS {
            // What was read goes back with the end of the channel.
            let mut channel = wire::open(&self.link).await?;
            let mut is_complete = true;
            for gate in gates.iter().filter(|gate| !beats.contains_key(*gate)).cloned().collect::<Vec<_>>() {
                let read = channel.basic_get(roll::beat_queue(&gate).into(), BasicGetOptions::default());
                match within("read what a gate said last", read).await {
                    Ok(Some(message)) => {
                        if let Some(beat) = Beat::read(&message.data) {
                            beats.insert(gate, beat);
                        }
                    }
                    Ok(None) => is_complete = false,
                    Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => {
                        channel = wire::open(&self.link).await?;
                    }
                    // Who may not read it knows the gate by its name alone.
                    Err(Fault::Command { error, .. }) if is_refusal(&error, 403) => return Ok(beats),
                    Err(fault) => return Err(fault),
                }
            }
            let _ = channel.close(200, "done".into()).await;
            if is_complete {
                break;
            }
            sleep(READ_AGAIN).await;
        }
        Ok(beats)
    }

    /// The owner queue is exclusive, so whoever looks for it is told that it is not there (404), or that it is somebody's (405).
    pub(super) async fn unowned(&self, workers: &BTreeSet<WorkerName>) -> Result<BTreeSet<WorkerName>, Fault> {
        let look = |worker: WorkerName| async move {
            match wire::count_if_there(&self.link, &owner_queue(worker.as_str())).await {
                Ok(None) => Ok(Some(worker)),
                Ok(Some(_)) => Ok(None),
                Err(Fault::Command { error, .. }) if is_refusal(&error, 405) || is_refusal(&error, 403) => Ok(None),
                Err(fault) => Err(fault),
            }
        };
        let looks = stream::iter(workers.iter().cloned().map(look)).buffer_unordered(LOOKS);
        looks.try_filter_map(async |worker| Ok(worker)).try_collect().await
    }

    pub(super) async fn close(self, limit: Duration) {
        self.link.close(limit).await;
    }
}

fn user(url: &BrokerUrl) -> Option<&str> {
    match url {
        BrokerUrl::Amqp(url) => Some(&url.user),
        BrokerUrl::Redis(_) => None,
    }
}

fn heard(delivery: &Delivery, facts: Option<&str>) -> Option<Heard> {
    let body = || serde_json::from_slice::<Value>(&delivery.data).ok();
    match delivery.exchange.as_str() {
        roll::ROLL => {
            let headers = delivery.properties.headers().as_ref()?;
            let queue = headers.inner().get(roll::CAME_FROM)?.as_long_string()?.to_string();
            Some(Heard::Known(roll::gate_of(&queue)?.to_owned()))
        }
        REPLIES => Some(Heard::Seen(body()?.as_object()?.keys().next()?.clone())),
        EVENTS => seen(&body()?),
        exchange if facts == Some(exchange) => serde_json::from_slice(&delivery.data).ok().map(Heard::Fact),
        _ => serde_json::from_slice(&delivery.data).ok().map(Heard::Answer),
    }
}
