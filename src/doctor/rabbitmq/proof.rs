//! Tries, as the user of a worker or of producers, what it must be refused. RabbitMQ looks for the right first and at the
//! command after that, so each attempt is one that it refuses for another reason where the right is there: nothing is
//! consumed, published or declared. Only a binding is made and taken away, with a key that no message has.

use std::collections::BTreeSet;

use lapin::{
    BasicProperties, Channel, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::{
    amqp,
    doctor::{DoctorError, Finding, users::Who},
    edge::{
        fault::{Fault, is_refusal, within},
        held,
        rabbitmq::{route::names::feed_exchange, wire},
    },
    settings::{Broker, BrokerUrl, EdgeKind, FeedIntake, Settings, Worker},
};

/// Attempts on one connection. A refusal ends a channel, and lapin forgets to give some of those numbers free again (4.12.3).
const ATTEMPTS: usize = 500;

/// Something to be refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Attempt {
    Consume(String),
    Bind { queue: String, exchange: String },
    Publish(String),
    DeclareExchange(String),
    DeclareQueue(String),
}

impl Attempt {
    fn what(&self) -> String {
        match self {
            Self::Consume(queue) => format!("read {queue}"),
            Self::Bind { queue, exchange } => format!("bind {queue} to {exchange}, past the gate"),
            Self::Publish(exchange) if exchange.is_empty() => {
                "publish by the anonymous exchange, and so to every queue, past every gate".to_owned()
            }
            Self::Publish(exchange) => format!("publish to {exchange}"),
            Self::DeclareExchange(name) | Self::DeclareQueue(name) => format!("declare and delete {name}"),
        }
    }
}

pub(super) async fn prove(settings: &Settings, who: Who, url: &BrokerUrl) -> Result<Vec<Finding>, DoctorError> {
    let broker = Broker { urls: vec![url.clone()], ..settings.broker.clone() };
    let user = if let BrokerUrl::Amqp(url) = url { url.user.as_str() } else { "" };
    let mut allowed = BTreeSet::new();
    let attempts: Vec<_> = attempts(settings, who).into_iter().collect();
    for some in attempts.chunks(ATTEMPTS) {
        let link = amqp::connect(&broker, "worker-gate doctor rights").await?;
        for attempt in some {
            if is_allowed(&wire::open(&link).await?, attempt).await? {
                allowed.insert(attempt.clone());
            }
        }
    }
    Ok(findings(settings, who, user, allowed))
}

/// A worker may read one lane, its own; which one that is, the user's name does not tell.
fn findings(settings: &Settings, who: Who, user: &str, mut allowed: BTreeSet<Attempt>) -> Vec<Finding> {
    let mut found = Vec::new();
    if who == Who::Worker {
        let lanes: Vec<_> = settings.workers.iter().map(|worker| worker.lane.as_str()).collect();
        let read: Vec<_> =
            lanes.into_iter().filter(|lane| allowed.remove(&Attempt::Consume((*lane).to_owned()))).collect();
        if read.len() > 1 {
            found.push(who.not_refused(user, &format!("read the lanes of other workers: {}", read.join(", "))));
        }
    }
    found.extend(allowed.iter().map(|attempt| who.not_refused(user, &attempt.what())));
    found
}

fn attempts(settings: &Settings, who: Who) -> BTreeSet<Attempt> {
    let mut attempts = BTreeSet::new();
    for worker in &settings.workers {
        let (lane, name) = (&worker.lane, &worker.name);
        attempts.insert(Attempt::Consume(lane.clone()));
        attempts.extend(of_intake(worker));
        // What leads to the lane behind the edge.
        attempts.extend([format!("{lane}.lane"), format!("worker-gate.edge.{name}")].map(Attempt::Publish));
        if who == Who::Producer {
            // The exchange that Celery declares for the lane.
            attempts.insert(Attempt::Publish(lane.clone()));
        }
    }
    attempts.extend([String::new(), settings.events.exchange.clone()].map(Attempt::Publish));
    attempts
}

fn of_intake(worker: &Worker) -> Vec<Attempt> {
    let bind = |exchange: &str| Attempt::Bind { queue: worker.lane.clone(), exchange: exchange.to_owned() };
    match &worker.edge {
        EdgeKind::Route(intake) => {
            let behind = held(&intake.exchange);
            vec![
                bind(&intake.exchange),
                bind(&behind),
                Attempt::DeclareExchange(intake.exchange.clone()),
                Attempt::Consume(held(&worker.lane)),
                // A hash intake's holding queue.
                Attempt::Consume(behind),
            ]
        }
        EdgeKind::Feed(feed) => match &feed.intake {
            FeedIntake::Queue(queue) => {
                let exchange = feed_exchange(queue);
                vec![
                    bind(&exchange),
                    bind(&held(&exchange)),
                    Attempt::DeclareExchange(exchange),
                    Attempt::DeclareQueue(queue.clone()),
                    Attempt::Consume(queue.clone()),
                ]
            }
            FeedIntake::Exchange { .. } => Vec::new(),
        },
    }
}

/// Whether it is not refused. The channel may be gone after it.
async fn is_allowed(channel: &Channel, attempt: &Attempt) -> Result<bool, Fault> {
    let tried = match attempt {
        Attempt::Consume(queue) => consume(channel, queue.as_str().into()).await,
        Attempt::Bind { queue, exchange } => bind(channel, queue.as_str().into(), exchange.as_str().into()).await,
        Attempt::Publish(exchange) => publish(channel, exchange.as_str().into()).await,
        Attempt::DeclareExchange(name) => declare_exchange(channel, name.as_str().into()).await,
        Attempt::DeclareQueue(name) => declare_queue(channel, name.as_str().into()).await,
    };
    let allowed = match tried {
        Ok(allowed) => allowed,
        Err(Fault::Command { error, .. }) if is_refusal(&error, 403) => false,
        // Refused for what was wrong with it on purpose, or for what is not there: not for want of the right.
        Err(Fault::Command { error, .. }) if error.is_amqp_soft_error() => true,
        Err(fault) => return Err(fault),
    };
    if channel.status().connected() {
        let _ = channel.close(200, "done".into()).await;
    }
    Ok(allowed)
}

/// A priority is a number (RabbitMQ's page "Consumer Priorities").
async fn consume(channel: &Channel, queue: ShortString) -> Result<bool, Fault> {
    let mut wrong = FieldTable::default();
    wrong.insert("x-priority".into(), AMQPValue::LongString("none".into()));
    let consume = channel.basic_consume(queue, ShortString::default(), BasicConsumeOptions::default(), wrong);
    within("try to read a queue", consume).await.map(|_| true)
}

async fn bind(channel: &Channel, queue: ShortString, exchange: ShortString) -> Result<bool, Fault> {
    let doing = "try to bind a queue";
    let key: ShortString = format!("worker-gate.doctor.{}", uuid::Uuid::new_v4()).into();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    within(doing, channel.queue_bind(queue.clone(), exchange.clone(), key.clone(), options, none)).await?;
    within(doing, channel.queue_unbind(queue, exchange, key, FieldTable::default())).await?;
    Ok(true)
}

/// A message's expiration is a number of milliseconds.
async fn publish(channel: &Channel, exchange: ShortString) -> Result<bool, Fault> {
    let doing = "try to publish";
    within(doing, channel.confirm_select(lapin::options::ConfirmSelectOptions::default())).await?;
    let (options, wrong) = (BasicPublishOptions::default(), BasicProperties::default().with_expiration("never".into()));
    let publish = channel.basic_publish(exchange, "worker-gate.doctor".into(), options, b"", wrong);
    within(doing, within(doing, publish).await?).await.map(|_| true)
}

/// As internal, which none of these is. What is not there is not declared.
async fn declare_exchange(channel: &Channel, name: ShortString) -> Result<bool, Fault> {
    let doing = "try to declare an exchange";
    let declare = async |options: ExchangeDeclareOptions| {
        let declare = channel.exchange_declare(name.clone(), ExchangeKind::Direct, options, FieldTable::default());
        within(doing, declare).await
    };
    match declare(ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() }).await {
        Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => return Ok(false),
        there => there?,
    }
    let internal = ExchangeDeclareOptions { durable: true, internal: true, ..ExchangeDeclareOptions::default() };
    declare(internal).await.map(|()| true)
}

/// As exclusive, which for anybody's else is refused.
async fn declare_queue(channel: &Channel, name: ShortString) -> Result<bool, Fault> {
    let doing = "try to declare a queue";
    let declare = async |options: QueueDeclareOptions| {
        within(doing, channel.queue_declare(name.clone(), options, FieldTable::default())).await.map(drop)
    };
    match declare(QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() }).await {
        // Nobody's, or somebody's own; of that one nothing can be known.
        Err(Fault::Command { error, .. }) if is_refusal(&error, 404) || is_refusal(&error, 405) => return Ok(false),
        there => there?,
    }
    declare(QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() }).await.map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Source, load};

    fn settings() -> Settings {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        let worker = |n: u32| {
            format!(
                "[[workers]]\nname = \"w{n}\"\nedge = \"route\"\nlane = \"l{n}\"\nintake = {{ exchange = \"x\", type = \"direct\", keys = [\"{n}\"] }}\n"
            )
        };
        let text = format!(
            "[broker]\nurl = \"amqp://localhost//\"\n[checks.codex_cli]\nrun = [[\"true\"]]\n{}{}",
            worker(0),
            worker(1)
        );
        std::fs::write(&file, text).unwrap();
        load(&Source { file: Some(file), hostname: "h".into(), ..Source::default() }).unwrap().settings
    }

    #[test]
    fn a_worker_may_read_one_lane_and_a_producer_none() {
        let settings = settings();
        let lanes = |lanes: &[&str]| lanes.iter().map(|lane| Attempt::Consume((*lane).to_owned())).collect();
        let count = |who, allowed| findings(&settings, who, "u", allowed).len();
        assert_eq!(count(Who::Worker, lanes(&["l0"])), 0);
        assert_eq!(count(Who::Worker, lanes(&["l0", "l1"])), 1);
        assert_eq!(count(Who::Worker, lanes(&["l0", "l0.held"])), 1);
        assert_eq!(count(Who::Producer, lanes(&["l0"])), 1);
    }

    #[test]
    fn whatever_would_pass_the_gate_is_tried() {
        let tried = attempts(&settings(), Who::Producer);
        for exchange in ["", "l0", "l0.lane", "worker-gate.edge.w0", "worker-gate.health"] {
            assert!(tried.contains(&Attempt::Publish(exchange.to_owned())), "{exchange}");
        }
        assert!(tried.contains(&Attempt::Bind { queue: "l1".into(), exchange: "x".into() }));
        assert!(!tried.contains(&Attempt::Publish("x".to_owned())));
    }
}
