//! What can be asked on RabbitMQ: how many consume a queue, all gates, all of Celery's workers, and how things are declared.
//! AMQP lists nothing, so whatever the settings do not name is not found here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{Consumer, types::ShortString};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    DoctorError, Scope, Seen,
    told::{self, Question, Workers},
};
use crate::{
    amqp::{self, Link},
    control::{
        Answer, Ask, Says,
        asker::{Asker, Heard},
    },
    edge::{
        celery::{self, PIDBOX},
        fault::{Fault, is_refusal, within},
        rabbitmq::wire,
    },
    settings::{Settings, broker_url::AmqpUrl},
};

pub(crate) mod intake;
mod leftover;
mod proof;

/// For answers of whoever hears a question; a gate answers from memory, and a worker in 30 ms.
const PATIENCE: Duration = Duration::from_secs(1);
/// A gate that has just stopped to consume is counted once by the broker and not by itself, or the other way round; a consumer
/// that is none is there each time.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(150);

pub(super) async fn look(
    settings: &Settings,
    url: &AmqpUrl,
    scope: &Scope<'_>,
    intakes: &BTreeSet<String>,
) -> Result<Seen, DoctorError> {
    let link = amqp::connect(&settings.broker, "worker-gate doctor").await?;
    let mut seen = Seen::default();
    let beats = heartbeats(&link).await?;
    let begun = Instant::now();
    let nodes = told::nodes(settings);
    ask(&link, |workers, asked| told::ask_until(&nodes, workers, asked), &mut seen.workers).await?;
    let lanes: BTreeSet<String> = settings.workers.iter().map(|worker| worker.lane.clone()).collect();
    let beyond = beyond_gates(&link, settings, intakes.union(&lanes)).await?;
    seen.found.extend(intake::look(settings, url).await?);
    seen.found.extend(leftover::look(&link, settings, scope.lanes).await?);
    for (who, user) in scope.users.given() {
        seen.found.extend(proof::prove(settings, who, user).await.map_err(|error| who.failed(error))?);
    }
    seen.listened = match beats {
        Beats::Heard(mut beats) => {
            hear(&mut beats, &nodes, &mut seen.workers, begun).await;
            true
        }
        Beats::None => !wire::has_exchange(&link, celery::EVENTS).await?,
        Beats::Refused => false,
    };
    // Last, because a heartbeat makes a worker known, too; it is no answer.
    for queue in intakes {
        let named = seen.workers.values().filter(|told| told.consumes(queue)).count();
        let more = beyond.get(queue).copied().unwrap_or_default() - i64::try_from(named).unwrap_or(i64::MAX);
        if more > 0 {
            let who = if more == 1 { "one consumer more consumes".to_owned() } else { format!("{more} more consume") };
            seen.unknown.insert(queue.clone(), who);
        }
    }
    seen.lanes = beyond.into_iter().filter(|(queue, _)| lanes.contains(queue)).collect();
    link.close(PATIENCE).await;
    Ok(seen)
}

/// How many consume each queue beyond gates, at the least.
async fn beyond_gates(
    link: &Link,
    settings: &Settings,
    queues: impl Iterator<Item = &String> + Clone,
) -> Result<BTreeMap<String, i64>, DoctorError> {
    let mut asker = Asker::connect(&settings.broker, &settings.control, "worker-gate doctor".to_owned()).await?;
    let mut beyond = BTreeMap::new();
    for _ in 0..LOOKS {
        let gates = gates(&mut asker).await?;
        for queue in queues.clone() {
            let counted =
                wire::count_if_there(link, &queue.as_str().into()).await?.map_or(0, |queue| queue.consumer_count());
            let known: usize = gates.iter().filter_map(|consumes| consumes.get(queue)).sum();
            let more = i64::from(counted) - i64::try_from(known).unwrap_or(i64::MAX);
            let least = beyond.entry(queue.clone()).or_insert(more);
            *least = more.min(*least);
        }
        sleep(PAUSE).await;
    }
    asker.close().await;
    Ok(beyond)
}

/// How often each gate says that it consumes which queue.
async fn gates(asker: &mut Asker) -> Result<Vec<BTreeMap<String, usize>>, Fault> {
    let id = asker.ask(Ask::Consumes).await?;
    let mut gates = Vec::new();
    // The first answers come at once; whoever has not answered a moment after them does not answer.
    let until = Instant::now() + PATIENCE / 2;
    while let Some(heard) = asker.next(until).await? {
        if let Heard::Answer(Answer { id: of, says: Says::Consumes(consumes), .. }) = heard
            && of == id
        {
            gates.push(consumes);
        }
    }
    Ok(gates)
}

/// Asks all of Celery's workers everything at once, and waits for answers until when `until` says.
pub(crate) async fn ask(
    link: &Link,
    until: impl Fn(&Workers, Instant) -> Instant,
    workers: &mut Workers,
) -> Result<(), Fault> {
    if !wire::has_exchange(link, PIDBOX).await? {
        // No worker has ever been here.
        return Ok(());
    }
    let (ears, mouth) = (wire::open(link).await?, wire::publishing(link).await?);
    let (queue, mut answers) = wire::hear_celery(&ears).await?;
    let mut asked = HashMap::new();
    for question in Question::ALL {
        let ((method, arguments), ticket) = (question.call(), celery::ticket());
        let reply_to = Some((celery::REPLIES, queue.as_str()));
        let body = celery::question(None, method, &arguments, &ticket, reply_to);
        let posted = wire::ask_celery(&mouth, PIDBOX, &ShortString::default(), &body).await?;
        within("ask Celery's workers", posted).await?;
        asked.insert(ticket, question);
    }
    let begun = Instant::now();
    while let Ok(Some(Ok(answer))) = timeout_at(until(workers, begun), answers.next()).await {
        if let Some(question) = wire::ticket(&answer.properties).and_then(|ticket| asked.get(&ticket)) {
            question.answered(&serde_json::from_slice(&answer.data).unwrap_or_default(), workers);
        }
    }
    let _ = tokio::join!(ears.close(200, "done".into()), mouth.close(200, "done".into()));
    Ok(())
}

/// What there is to be heard of heartbeats.
enum Beats {
    Heard(Box<Consumer>),
    /// Where no worker has ever sent an event, there is no exchange for them.
    None,
    /// This user may not listen.
    Refused,
}

/// Begins to listen to heartbeats.
async fn heartbeats(link: &Link) -> Result<Beats, Fault> {
    let channel = wire::open(link).await?;
    match wire::hear_heartbeats(&channel).await {
        Ok(beats) => Ok(Beats::Heard(Box::new(beats))),
        Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => Ok(Beats::None),
        Err(Fault::Command { error, .. }) if is_refusal(&error, 403) => Ok(Beats::Refused),
        Err(fault) => Err(fault),
    }
}

/// Hears heartbeats until each of these workers that answers has been heard, or time is up.
async fn hear(beats: &mut Consumer, nodes: &BTreeSet<String>, workers: &mut Workers, begun: Instant) {
    loop {
        let deadline = told::hear_until(nodes, workers, begun);
        let Ok(Some(Ok(event))) = timeout_at(deadline, beats.next()).await else { return };
        told::heard(&serde_json::from_slice(&event.data).unwrap_or_default(), workers);
    }
}
