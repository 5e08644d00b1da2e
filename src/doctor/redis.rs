//! What can be asked on Redis: all of Celery's workers, and the list of clients. Gates take from an intake by scripts and never
//! wait at one, so whoever waits at a list is a worker; at which list, Redis does not say.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ::redis::{aio::MultiplexedConnection, cmd};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{DoctorError, Seen};
use crate::{
    edge::{celery, fault::Fault},
    redis::{self, envelope},
    settings::{BrokerUrl, Settings},
};

/// For the answers of workers, which take 30 ms on an idle machine.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);
/// kombu asks for the next message again every second, so that a worker is not waiting at some moments.
const LOOKS: u32 = 5;

pub(super) async fn look(settings: &Settings, intakes: &BTreeSet<String>) -> Result<Seen, DoctorError> {
    let (link, _pushes) = redis::connect(&settings.broker, "worker-gate doctor").await?;
    let mut connection = link.connection();
    let db = settings.broker.urls.first().and_then(BrokerUrl::as_redis).map_or(0, |url| url.db);
    let workers = workers(&mut connection, &settings.broker.global_keyprefix, db).await?;
    let mut waiting = 0;
    for _ in 0..LOOKS {
        waiting = waiting.max(waiting_clients(&mut connection, db).await?);
        sleep(LOOK * 10).await;
    }
    let mut unknown = BTreeMap::new();
    if waiting > workers.len() {
        let what = format!(
            "of {waiting} clients that wait for messages in this database only {} are workers that answer over remote control; \
             another one may consume",
            workers.len()
        );
        unknown.extend(intakes.iter().map(|intake| (intake.clone(), what.clone())));
    }
    Ok(Seen { workers, unknown })
}

/// How many clients of this database wait at a list.
async fn waiting_clients(connection: &mut MultiplexedConnection, db: u32) -> Result<usize, Fault> {
    let list: Result<String, _> = cmd("CLIENT").arg("LIST").query_async(connection).await;
    // Whoever may not see the others goes by what they say themselves.
    let Ok(list) = list else { return Ok(0) };
    let db = format!("db={db}");
    let is_waiting = |line: &&str| {
        let mut words = line.split(' ');
        words.clone().any(|word| word == db) && words.any(|word| matches!(word, "cmd=brpop" | "cmd=BRPOP"))
    };
    Ok(list.lines().filter(is_waiting).count())
}

/// Asks all of Celery's workers which queues they consume.
async fn workers(
    connection: &mut MultiplexedConnection,
    prefix: &str,
    db: u32,
) -> Result<BTreeMap<String, BTreeSet<String>>, Fault> {
    let failed =
        |error: ::redis::RedisError| Fault::Redis { doing: "ask Celery's workers".to_owned(), error: Box::new(error) };
    let reply_to = format!("worker-gate.answers.doctor.{}", uuid::Uuid::new_v4().simple());
    let list = format!("{prefix}{reply_to}");
    let body = celery::question(None, "active_queues", &json!({}), &celery::ticket(), Some(&reply_to));
    let headers = json!({ "clock": 1, "expires": celery::expires() });
    let message = envelope::wrap(&body, &headers.as_object().cloned().unwrap_or_default(), celery::PIDBOX, "");
    let mut publish = cmd("PUBLISH");
    publish.arg(envelope::fanout_channel(prefix, db, celery::PIDBOX, "")).arg(message);
    publish.query_async::<i64>(connection).await.map_err(failed)?;
    let (mut workers, until) = (BTreeMap::new(), Instant::now() + PATIENCE);
    while Instant::now() < until {
        let answer: Option<Vec<u8>> = cmd("RPOP").arg(&list).query_async(connection).await.map_err(failed)?;
        let Some(answer) = answer.and_then(|answer| envelope::unwrap(&answer)) else {
            sleep(LOOK).await;
            continue;
        };
        workers.extend(celery::queues(&serde_json::from_slice::<Value>(&answer.body).unwrap_or_default()));
    }
    // What comes later than this is nobody's.
    let _ = cmd("DEL").arg(&list).query_async::<i64>(connection).await;
    Ok(workers)
}
