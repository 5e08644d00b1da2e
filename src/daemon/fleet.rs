//! Listens to other gates, where `fleet.max_quarantined` asks for a view of the whole fleet. With it off nothing is done here.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use crate::{
    control::{
        Ask, Says,
        asker::{AskError, Asker, Heard},
    },
    edge::fault::Fault,
    model::WorkerName,
    settings::Settings,
    verdict::{FleetNews, Peer},
};

/// All gates are asked anew: one that was killed says nothing of itself.
const ASK: Duration = Duration::from_secs(300);
/// For all of them to answer.
const ANSWERS: Duration = Duration::from_secs(1);
/// Before a connection that was lost is made again.
const RETRY: Duration = Duration::from_secs(5);
/// What was quarantined longer ago is not taken for new.
const RECENT: Duration = Duration::from_secs(300);

/// Tells what other gates say of their workers, while `is_on`, until nobody listens.
pub(super) async fn watch(settings: Settings, mut is_on: watch::Receiver<bool>, news: mpsc::Sender<FleetNews>) {
    loop {
        if is_on.wait_for(|on| *on).await.is_err() {
            // The gate is about to end.
            return std::future::pending().await;
        }
        tokio::select! {
            error = listen(&settings, &news) => {
                tracing::warn!("failed to {}; fleet.max_quarantined does not hold until it does", crate::chain::chain(&error));
            }
            _ = is_on.wait_for(|on| !*on) => {}
        }
        let _ = news.send(FleetNews::Unknown).await;
        sleep(RETRY).await;
    }
}

async fn listen(settings: &Settings, news: &mpsc::Sender<FleetNews>) -> AskError {
    let Err(error) = try_listen(settings, news).await;
    error
}

async fn try_listen(settings: &Settings, news: &mpsc::Sender<FleetNews>) -> Result<std::convert::Infallible, AskError> {
    let gate = &settings.gate.name;
    let mut asker = Asker::connect(&settings.broker, &settings.control, format!("worker-gate {gate}")).await?;
    asker.hear_facts(&settings.events.exchange).await?;
    let mut is_told = false;
    loop {
        let question = asker.ask(Ask::Status).await?;
        let (mut peers, until) = (Vec::new(), Instant::now() + ANSWERS);
        let mut early = Vec::new();
        while let Some(heard) = asker.next(until).await? {
            match heard {
                Heard::Answer(answer) if answer.id == question => {
                    if let Says::Status(records) = answer.says {
                        peers.extend(records.iter().filter_map(|record| peer(record, &answer.gate, true)));
                    }
                }
                Heard::Fact(fact) => early.push(fact),
                Heard::Answer(_) | Heard::Known(_) | Heard::Seen(_) => {}
            }
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!(workers = peers.len(), "other gates are heard, as fleet.max_quarantined asks for");
        }
        tell(news, FleetNews::All(peers)).await?;
        for fact in early {
            tell_fact(news, &fact).await?;
        }
        let again = Instant::now() + ASK;
        while let Some(heard) = asker.next(again).await? {
            if let Heard::Fact(fact) = heard {
                tell_fact(news, &fact).await?;
            }
        }
    }
}

async fn tell_fact(news: &mpsc::Sender<FleetNews>, fact: &Map<String, Value>) -> Result<(), Fault> {
    let text = |name: &str| fact.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("type") == "gate-offline" {
        return tell(news, FleetNews::Gone { gate: text("gate").to_owned() }).await;
    }
    match peer(fact, text("gate"), false) {
        Some(peer) => tell(news, FleetNews::Peer(peer)).await,
        None => Ok(()),
    }
}

async fn tell(news: &mpsc::Sender<FleetNews>, what: FleetNews) -> Result<(), Fault> {
    news.send(what).await.map_err(|_| Fault::LinkDown)
}

/// What a record says of a worker. One that `may_be_old` is told without its reason if that is long ago.
fn peer(record: &Map<String, Value>, gate: &str, may_be_old: bool) -> Option<Peer> {
    let text = |name: &str| record.get(name).and_then(Value::as_str);
    let changed: Option<Timestamp> = text("changed_at").and_then(|at| at.parse().ok());
    let age = changed.and_then(|at| Duration::try_from(Timestamp::now().duration_since(at)).ok());
    let is_old = may_be_old && age.is_none_or(|age| age > RECENT);
    let code = record.get("reason").and_then(|reason| reason["code"].as_str());
    Some(Peer {
        gate: gate.to_owned(),
        worker: WorkerName::new(text("worker_name")?),
        intake: text("intake")?.to_owned(),
        admission: serde_json::from_value(record.get("admission")?.clone()).ok()?,
        code: code.filter(|_| !is_old).map(str::to_owned),
    })
}
