//! Tries, as the user of a worker or of producers, what it must be refused. Redis looks for the right when a command is put
//! into a transaction, and each of these is given up at once: nothing is ever run.

use ::redis::{Cmd, aio::MultiplexedConnection, cmd};

use super::failed;
use crate::{
    doctor::{DoctorError, Finding, users::Who},
    edge::{fault::Fault, redis::keys},
    redis,
    report::outbox::stream,
    settings::{Broker, BrokerUrl, EdgeKind, FeedIntake, Settings, Worker},
};

/// Something to be refused: commands that come to the same.
struct Attempt {
    what: String,
    commands: Vec<Vec<String>>,
}

impl Attempt {
    fn new(what: String, commands: &[&[&str]]) -> Self {
        let words = |words: &&[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self { what, commands: commands.iter().map(words).collect() }
    }
}

pub(super) async fn prove(settings: &Settings, who: Who, url: &BrokerUrl) -> Result<Vec<Finding>, DoctorError> {
    let broker = Broker { urls: vec![url.clone()], ..settings.broker.clone() };
    let user = url.as_redis().and_then(|url| url.user.as_deref()).unwrap_or("default");
    let (link, _pushes) = redis::connect(&broker, "worker-gate doctor rights").await?;
    let mut connection = link.connection();
    if let Err(error) = transaction(&mut connection, "MULTI").await {
        if redis::is_refusal(&error) {
            return Ok(vec![Finding::warning(
                "unproven",
                format!("the user {user} may not begin a transaction (MULTI), in which its rights are tried"),
                "give it the rights that worker-gate doctor --grants prints".to_owned(),
            )]);
        }
        return Err(failed("try a user's rights")(error).into());
    }
    transaction(&mut connection, "DISCARD").await.map_err(failed("try a user's rights"))?;
    let mut found = Vec::new();
    if who == Who::Worker {
        let mut read = Vec::new();
        for worker in &settings.workers {
            if is_allowed(&mut connection, &take(&list(settings, &worker.lane))).await? {
                read.push(worker.lane.as_str());
            }
        }
        if read.len() > 1 {
            found.push(who.not_refused(user, &format!("take from the lanes of other workers: {}", read.join(", "))));
        }
    }
    for attempt in attempts(settings, who) {
        let mut allowed = Vec::new();
        for command in &attempt.commands {
            if is_allowed(&mut connection, command).await? {
                allowed.extend(command.first().map(String::as_str));
            }
        }
        if !allowed.is_empty() {
            found.push(who.not_refused(user, &format!("{} ({})", attempt.what, allowed.join(", "))));
        }
    }
    Ok(found)
}

/// A queue's first list, which stands for all of them.
fn list(settings: &Settings, queue: &str) -> String {
    format!("{}{queue}", settings.broker.global_keyprefix)
}

fn take(list: &str) -> Vec<String> {
    ["BRPOP", list, "0"].map(str::to_owned).to_vec()
}

fn attempts(settings: &Settings, who: Who) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut sources = std::collections::BTreeSet::new();
    for worker in &settings.workers {
        if let EdgeKind::Feed(feed) = &worker.edge {
            let source = keys::source(worker, feed);
            if sources.insert(source.clone()) {
                attempts.push(from_intake(&list(settings, &source), &source));
            }
            if let FeedIntake::Exchange { exchange, .. } = &feed.intake {
                let table = list(settings, &format!("_kombu.binding.{exchange}"));
                let what = format!("bind a queue to {exchange}, past the gate");
                attempts.push(Attempt::new(what, &[&["SADD", &table, "x"], &["SREM", &table, "x"]]));
            }
        }
        attempts.push(of_gate(settings, worker));
        if who == Who::Producer {
            let (lane, what) = (list(settings, &worker.lane), format!("reach the lane {}, past the gate", worker.lane));
            attempts
                .push(Attempt::new(what, &[&["LPUSH", &lane, "x"], &["RPUSH", &lane, "x"], &["BRPOP", &lane, "0"]]));
        }
    }
    let facts = stream(&settings.broker.global_keyprefix, &settings.events.exchange);
    attempts.push(Attempt::new("write facts in the gate's name".to_owned(), &[&["XADD", &facts, "*", "event", "x"]]));
    let everything: &[&[&str]] = &[&["FLUSHDB"], &["CONFIG", "GET", "*"], &["ACL", "LIST"]];
    attempts.push(Attempt::new("do what is an administrator's".to_owned(), everything));
    attempts
}

fn from_intake(list: &str, queue: &str) -> Attempt {
    let commands: &[&[&str]] = &[
        &["BRPOP", list, "0"],
        &["RPOP", list],
        &["LPOP", list],
        &["LMOVE", list, list, "RIGHT", "LEFT"],
        &["LRANGE", list, "0", "-1"],
        &["LINDEX", list, "0"],
    ];
    Attempt::new(format!("take from the intake {queue}, or read it"), commands)
}

/// The keys that stand for an edge.
fn of_gate(settings: &Settings, worker: &Worker) -> Attempt {
    let key = |purpose: &str| list(settings, &format!("worker-gate.{purpose}.{}", worker.name));
    let (owner, edge) = (key("owner"), key("edge"));
    let what = format!("own the worker {} or open its edge, as only a gate may", worker.name);
    Attempt::new(what, &[&["SET", &owner, "x"], &["SET", &edge, "x"], &["DEL", &owner]])
}

/// Whether it is not refused.
async fn is_allowed(connection: &mut MultiplexedConnection, words: &[String]) -> Result<bool, Fault> {
    let failed = failed("try a user's rights");
    transaction(connection, "MULTI").await.map_err(&failed)?;
    let mut command = Cmd::new();
    command.arg(words);
    let tried = command.query_async::<::redis::Value>(connection).await;
    transaction(connection, "DISCARD").await.map_err(&failed)?;
    match tried {
        Ok(_) => Ok(true),
        Err(error) if error.is_io_error() || error.is_timeout() => Err(failed(error)),
        // Refused, or not even known to this Redis.
        Err(_) => Ok(false),
    }
}

async fn transaction(connection: &mut MultiplexedConnection, word: &str) -> ::redis::RedisResult<()> {
    cmd(word).query_async(connection).await
}
