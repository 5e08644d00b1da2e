//! What can be asked on Redis: all of Celery's workers, the list of clients, and the lists that hold something. Gates take from
//! an intake by scripts and never wait at one, so whoever waits at a list is a worker; at which list, Redis does not say.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use ::redis::{aio::MultiplexedConnection, cmd};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    DoctorError, Scope, Seen,
    told::{self, Question, Workers},
};
use crate::{
    control::redis::{failed, place},
    edge::{
        celery::{self, EVENTS, PIDBOX, TICKET},
        fault::Fault,
    },
    redis::{self, Pushes, envelope},
    settings::Settings,
};

mod leftover;
mod proof;

const LOOK: Duration = Duration::from_millis(20);
/// kombu asks for the next message again every second, so that a worker is not waiting at some moments.
const LOOKS: u32 = 5;

pub(super) async fn look(
    settings: &Settings,
    scope: &Scope<'_>,
    intakes: &BTreeSet<String>,
) -> Result<Seen, DoctorError> {
    let (link, mut published) = redis::connect(&settings.broker, "worker-gate doctor").await?;
    let mut connection = link.connection();
    let (prefix, db) = place(&settings.broker);
    let mut seen = Seen::default();
    let beats = format!("{}*", envelope::fanout_channel(prefix, db, EVENTS, "worker."));
    // Whoever may not listen knows nothing of heartbeats.
    seen.listened = connection.psubscribe(beats).await.is_ok();
    let (begun, nodes) = (Instant::now(), told::nodes(settings));
    ask(&mut connection, (prefix, db), |workers, asked| told::ask_until(&nodes, workers, asked), &mut seen.workers)
        .await?;
    let mut waiting = 0;
    for _ in 0..LOOKS {
        waiting = waiting.max(waiting_clients(&mut connection, db).await?);
        sleep(LOOK * 10).await;
    }
    seen.found.extend(leftover::look(&mut connection, settings, &seen.workers).await?);
    for (who, user) in scope.users.given() {
        seen.found.extend(proof::prove(settings, who, user).await.map_err(|error| who.failed(error))?);
    }
    if seen.listened {
        hear(&mut published, &nodes, &mut seen.workers, begun).await;
    }
    let known = known(&nodes, &seen.workers);
    if waiting > known {
        let what = format!(
            "{waiting} clients wait for messages in this database, and {known} are workers that are known here; another one \
             may consume"
        );
        seen.unknown.extend(intakes.iter().map(|intake| (intake.clone(), what.clone())));
    }
    Ok(seen)
}

/// How many workers answer, or are named in the settings and were heard: of such a one that it does not answer is said anyway.
fn known(nodes: &BTreeSet<String>, workers: &Workers) -> usize {
    workers.iter().filter(|(node, told)| told.answers() || told.beats && nodes.contains(*node)).count()
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

/// Asks all of Celery's workers everything at once, and waits for answers until when `until` says.
pub(crate) async fn ask(
    connection: &mut MultiplexedConnection,
    (prefix, db): (&str, u32),
    until: impl Fn(&Workers, Instant) -> Instant,
    workers: &mut Workers,
) -> Result<(), Fault> {
    let failed = failed("ask Celery's workers");
    let reply_to = format!("worker-gate.answers.doctor.{}", uuid::Uuid::new_v4().simple());
    let list = format!("{prefix}{reply_to}");
    let headers = json!({ "clock": 1, "expires": celery::expires() });
    let headers = headers.as_object().cloned().unwrap_or_default();
    let mut asked = HashMap::new();
    for question in Question::ALL {
        let ((method, arguments), ticket) = (question.call(), celery::ticket());
        let body = celery::question(None, method, &arguments, &ticket, Some(("", &reply_to)));
        let mut publish = cmd("PUBLISH");
        publish.arg(envelope::fanout_channel(prefix, db, PIDBOX, ""));
        publish.arg(envelope::wrap(&body, &headers, PIDBOX, ""));
        publish.query_async::<i64>(connection).await.map_err(&failed)?;
        asked.insert(ticket, question);
    }
    let begun = Instant::now();
    while Instant::now() < until(workers, begun) {
        let answer: Option<Vec<u8>> = cmd("RPOP").arg(&list).query_async(connection).await.map_err(&failed)?;
        let Some(answer) = answer.and_then(|answer| envelope::unwrap(&answer)) else {
            sleep(LOOK).await;
            continue;
        };
        let ticket = answer.headers.get(TICKET).and_then(Value::as_str).unwrap_or_default();
        if let Some(question) = asked.get(ticket) {
            question.answered(&serde_json::from_slice(&answer.body).unwrap_or_default(), workers);
        }
    }
    // What comes later than this is nobody's.
    let _ = cmd("DEL").arg(&list).query_async::<i64>(connection).await;
    Ok(())
}

/// Hears heartbeats until each of these workers that answers has been heard, or time is up.
async fn hear(published: &mut Pushes, nodes: &BTreeSet<String>, workers: &mut Workers, begun: Instant) {
    loop {
        let deadline = told::hear_until(nodes, workers, begun);
        let Ok(Some(push)) = timeout_at(deadline, published.recv()).await else { return };
        told::heard(&envelope::event(&push).unwrap_or_default(), workers);
    }
}
