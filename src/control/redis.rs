//! The desk on Redis: a PUB/SUB channel, in kombu's own envelope, so that a program with kombu can ask as well.
//!
//! It has a connection of its own. Whoever may publish may flood the channel, and Redis ends the connection of a subscriber that
//! does not keep up; that must not be one on which anything else depends. What comes is taken off it at once, and what is too
//! much is dropped.

use std::time::Duration;

use ::redis::{PushInfo, PushKind, Value as Reply, cmd};
use serde_json::{Map, Value};
use tokio::{
    sync::mpsc,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    EXCHANGE, LONGEST, SIGNATURE,
    desk::{Desk, Letter},
};
use crate::{
    edge::fault::Fault,
    redis::{self, Link, Pushes, envelope, envelope::fanout_channel},
    settings::Broker,
};

/// As on RabbitMQ: a hundred are taken in a second, and a hundred may wait.
const PACE: Duration = Duration::from_millis(10);
const QUEUE: usize = 100;
/// The envelope has the body in base64, and some hundred bytes more.
const LONGEST_MESSAGE: usize = LONGEST * 2;
/// For an answer to be handed to Redis.
const REPLY_LIMIT: Duration = Duration::from_secs(1);
/// Before a connection that was lost is made again.
const RETRY: Duration = Duration::from_secs(1);
/// Refused requests are told at least this often.
const LOOK: Duration = Duration::from_secs(10);

/// The exchange that answers go by; their key is the asker's.
pub(crate) const ANSWERS: &str = "worker-gate.answers";
/// The header with that key.
pub(crate) const REPLY_TO: &str = "worker-gate-reply-to";

/// Answers until `stop`. A gate that cannot be asked guards as well as any other.
///
/// # Errors
/// None; what stands in the way is logged.
pub(crate) async fn serve(broker: Broker, mut desk: Desk, stop: CancellationToken) -> Result<(), Fault> {
    let mut told = false;
    let serving = async {
        loop {
            if let Err(fault) = answer_all(&broker, &mut desk, &mut told).await
                && !std::mem::replace(&mut told, true)
            {
                tracing::warn!("failed to {fault}; worker-gate status and hold do not reach this gate");
            }
            sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = serving => Ok(()),
        () = stop.cancelled() => Ok(()),
    }
}

async fn answer_all(broker: &Broker, desk: &mut Desk, told: &mut bool) -> Result<(), Fault> {
    let (link, pushes) = redis::connect(broker, &format!("worker-gate {} control", desk.gate())).await?;
    let (prefix, db) = place(broker);
    let subscribed = link.connection().subscribe(fanout_channel(prefix, db, EXCHANGE, "")).await;
    subscribed.map_err(failed("hear requests to all gates"))?;
    *told = false;
    let (letters, mut waiting) = mpsc::channel(QUEUE);
    tokio::select! {
        () = take(pushes, letters) => Err(Fault::LinkDown),
        () = link.lost() => Err(Fault::LinkDown),
        done = answer(&link, (prefix, db), desk, &mut waiting) => done,
    }
}

/// Takes whatever comes, and keeps what there is room for.
async fn take(mut pushes: Pushes, letters: mpsc::Sender<Vec<u8>>) {
    while let Some(push) = pushes.recv().await {
        if let Some(text) = published(&push)
            && text.len() <= LONGEST_MESSAGE
        {
            // What finds it full is one of a flood.
            let _ = letters.try_send(text.to_vec());
        }
    }
}

async fn answer(
    link: &Link,
    (prefix, db): (&str, u32),
    desk: &mut Desk,
    letters: &mut mpsc::Receiver<Vec<u8>>,
) -> Result<(), Fault> {
    let mut look = interval(LOOK);
    loop {
        // Cancel-safe: a channel and an interval keep what is not taken.
        let text = tokio::select! {
            Some(text) = letters.recv() => text,
            _ = look.tick() => {
                desk.look_round();
                continue;
            }
        };
        let Some(message) = envelope::unwrap(&text) else { continue };
        let header = |name: &str| message.headers.get(name).and_then(Value::as_str).map(str::to_owned);
        let (signature, reply_to) = (header(SIGNATURE), header(REPLY_TO));
        let answer = desk.answer(Letter { body: message.body, signature, user: None }, Default::default).await;
        if let (Some(to), Some(answer)) = (reply_to, answer) {
            let body = String::from_utf8_lossy(&answer);
            let message = envelope::wrap(&body, &Map::new(), ANSWERS, &to);
            let mut publish = cmd("PUBLISH");
            publish.arg(fanout_channel(prefix, db, ANSWERS, &to)).arg(message);
            let mut connection = link.connection();
            // Whoever asked has gone if this fails, or Redis has.
            let _ = timeout(REPLY_LIMIT, publish.query_async::<i64>(&mut connection)).await;
        }
        sleep(PACE).await;
    }
}

/// What was published on a channel that was subscribed to by its name.
pub(crate) fn published(push: &PushInfo) -> Option<&[u8]> {
    match push.data.get(1) {
        Some(Reply::BulkString(text)) if push.kind == PushKind::Message => Some(text),
        Some(_) | None => None,
    }
}

/// The prefix and the database, which are part of a channel's name.
pub(crate) fn place(broker: &Broker) -> (&str, u32) {
    (&broker.global_keyprefix, broker.database())
}

/// What Redis said while `doing`.
pub(crate) fn failed(doing: &str) -> impl Fn(::redis::RedisError) -> Fault {
    move |error| Fault::Redis { doing: doing.to_owned(), error: Box::new(error) }
}
