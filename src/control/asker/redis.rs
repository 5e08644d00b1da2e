//! Asking on Redis: gates answer on a PUB/SUB channel of our own, and Celery's workers on a list.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use ::redis::cmd;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{FACTS, Heard, seen};
use crate::{
    control::{
        EXCHANGE, SIGNATURE,
        redis::{ANSWERS, REPLY_TO, failed, place, published},
        roll::{self, Beat},
    },
    edge::{
        celery::{self, EVENTS, PIDBOX},
        fault::Fault,
        redis::keys::owner_key,
    },
    model::WorkerName,
    redis::{self, Link, Pushes, envelope, envelope::fanout_channel},
    settings::Broker,
};

/// Between two looks for what Celery's workers answer; a round trip takes 20 to 30 ms.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Asker {
    link: Link,
    pushes: Pushes,
    prefix: String,
    db: u32,
    /// Names our channel and our list.
    me: String,
    /// Whether Celery's workers were asked.
    pinged: bool,
    beats: HashMap<String, Beat>,
    heard: VecDeque<Heard>,
}

impl Asker {
    pub(super) async fn connect(broker: &Broker) -> Result<Self, Fault> {
        let (link, pushes) = redis::connect(broker, "worker-gate asks").await?;
        let (prefix, db) = place(broker);
        let me = uuid::Uuid::new_v4().simple().to_string();
        let subscribed = link.connection().subscribe(fanout_channel(prefix, db, ANSWERS, &me)).await;
        subscribed.map_err(failed("listen for answers"))?;
        let (beats, heard) = (HashMap::new(), VecDeque::new());
        Ok(Self { link, pushes, prefix: prefix.to_owned(), db, me, pinged: false, beats, heard })
    }

    pub(super) async fn ask(&mut self, body: &[u8], signature: Option<String>) -> Result<(), Fault> {
        let mut headers = Map::new();
        headers.insert(REPLY_TO.to_owned(), self.me.clone().into());
        if let Some(signature) = signature {
            headers.insert(SIGNATURE.to_owned(), signature.into());
        }
        let message = envelope::wrap(&String::from_utf8_lossy(body), &headers, EXCHANGE, "");
        self.publish(EXCHANGE, &message).await.map_err(failed("ask all gates"))
    }

    async fn publish(&self, exchange: &str, message: &str) -> Result<(), ::redis::RedisError> {
        let mut publish = cmd("PUBLISH");
        publish.arg(fanout_channel(&self.prefix, self.db, exchange, "")).arg(message);
        publish.query_async::<i64>(&mut self.link.connection()).await.map(|_| ())
    }

    pub(super) async fn call_roll(&mut self) -> Result<(), Fault> {
        let key = format!("{}{}", self.prefix, roll::HASH);
        let mut connection = self.link.connection();
        let said: HashMap<String, Vec<u8>> = match cmd("HGETALL").arg(&key).query_async(&mut connection).await {
            Ok(said) => said,
            Err(error) if is_refused(&error) => return Ok(()),
            Err(error) => return Err(failed("call the roll of gates")(error)),
        };
        let now = Timestamp::now();
        for (gate, said) in said {
            let beat = Beat::read(&said);
            let age = beat.as_ref().and_then(|beat| Duration::try_from(now.duration_since(beat.at)).ok());
            if age.is_some_and(|age| age > roll::FORGOTTEN) {
                // RabbitMQ does this by itself. Who may not, leaves it to the next one.
                let _ = cmd("HDEL").arg(&key).arg(&gate).query_async::<i64>(&mut connection).await;
                continue;
            }
            self.beats.extend(beat.map(|beat| (gate.clone(), beat)));
            self.heard.push_back(Heard::Known(gate));
        }
        Ok(())
    }

    pub(super) async fn ping(&mut self) -> Result<bool, Fault> {
        let mut connection = self.link.connection();
        let beats = format!("{}*", fanout_channel(&self.prefix, self.db, EVENTS, "worker."));
        let listening = connection.psubscribe(beats).await.is_ok();
        let body = celery::question(None, "ping", &json!({}), &celery::ticket(), Some(("", &self.list())));
        let headers = json!({ "clock": 1, "expires": celery::expires() });
        let headers = headers.as_object().cloned().unwrap_or_default();
        self.pinged = self.publish(PIDBOX, &envelope::wrap(&body, &headers, PIDBOX, "")).await.is_ok();
        Ok(listening || self.pinged)
    }

    pub(super) async fn hear_facts(&mut self, exchange: &str) -> Result<(), Fault> {
        let channels: Vec<_> = FACTS.iter().map(|key| fanout_channel(&self.prefix, self.db, exchange, key)).collect();
        let subscribed = self.link.connection().subscribe(channels).await;
        subscribed.map_err(failed("listen to other gates"))
    }

    /// Where workers answer, without the prefix, which they put before it themselves. `doctor` has such a list, too, and the
    /// rights to it.
    fn list(&self) -> String {
        format!("worker-gate.answers.doctor.{}", self.me)
    }

    pub(super) async fn next(&mut self, until: Instant) -> Result<Option<Heard>, Fault> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Ok(Some(heard));
            }
            if self.pinged {
                self.collect().await;
                if !self.heard.is_empty() {
                    continue;
                }
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            let look = if self.pinged { until.min(now + LOOK) } else { until };
            match timeout_at(look, self.pushes.recv()).await {
                Ok(Some(push)) => self.heard.extend(heard(&push)),
                Ok(None) => return Err(Fault::LinkDown),
                Err(_) => {}
            }
        }
    }

    /// Takes what Celery's workers have answered. What cannot be read now is no reason to end: it is one column of a table.
    async fn collect(&mut self) {
        let (list, mut connection) = (format!("{}{}", self.prefix, self.list()), self.link.connection());
        loop {
            let popped: Result<Option<Vec<u8>>, _> = cmd("RPOP").arg(&list).query_async(&mut connection).await;
            let Ok(Some(answer)) = popped else { return };
            let answer =
                envelope::unwrap(&answer).and_then(|answer| serde_json::from_slice::<Value>(&answer.body).ok());
            let node = answer.and_then(|answer| answer.as_object()?.keys().next().cloned());
            self.heard.extend(node.map(Heard::Seen));
        }
    }

    pub(super) fn beats(&mut self, gates: &BTreeSet<String>) -> BTreeMap<String, Beat> {
        let beat = |gate: &String| Some((gate.clone(), self.beats.get(gate)?.clone()));
        gates.iter().filter_map(beat).collect()
    }

    pub(super) async fn unowned(&self, workers: &BTreeSet<WorkerName>) -> Result<BTreeSet<WorkerName>, Fault> {
        let mut look = cmd("MGET");
        look.arg(workers.iter().map(|worker| owner_key(&self.prefix, worker.as_str())).collect::<Vec<_>>());
        let owners: Vec<Option<Vec<u8>>> = match look.query_async(&mut self.link.connection()).await {
            Ok(owners) => owners,
            Err(error) if is_refused(&error) => return Ok(BTreeSet::new()),
            Err(error) => return Err(failed("find out who owns workers")(error)),
        };
        let unowned = workers.iter().zip(owners).filter(|(_, owner)| owner.is_none());
        Ok(unowned.map(|(worker, _)| worker.clone()).collect())
    }

    pub(super) async fn close(self) {
        if self.pinged {
            // What comes later than this is nobody's.
            sleep(LOOK).await;
            let list = format!("{}{}", self.prefix, self.list());
            let _ = cmd("DEL").arg(list).query_async::<i64>(&mut self.link.connection()).await;
        }
    }
}

fn is_refused(error: &::redis::RedisError) -> bool {
    error.kind() == ::redis::ErrorKind::Server(::redis::ServerErrorKind::NoPerm)
}

fn heard(push: &::redis::PushInfo) -> Option<Heard> {
    if let Some(text) = published(push) {
        let message = envelope::unwrap(text)?;
        return match message.exchange.as_str() {
            ANSWERS => serde_json::from_slice(&message.body).ok().map(Heard::Answer),
            _ => serde_json::from_slice(&message.body).ok().map(Heard::Fact),
        };
    }
    seen(&envelope::event(push)?)
}
