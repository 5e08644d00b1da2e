//! What all gates on the broker say, put together: who answers, who is known and silent, and whose worker is whose.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::{
    control::{
        Answer, Ask, Done, Says,
        asker::{Asker, Heard},
        roll::Beat,
    },
    edge::{celery::node, fault::Fault},
    model::WorkerName,
};

/// When nothing new has come for so long, everybody who is quick has answered: a gate answers from memory, and a worker in 30 ms.
const QUIET: Duration = Duration::from_millis(120);
/// For those who are there and slow.
pub(super) const LIMIT: Duration = Duration::from_millis(900);
/// Whoever has spoken within this time is taken to be there: heartbeats come every 5 s.
const ALIVE: Duration = Duration::from_secs(12);
/// A gate that has said goodbye is shown for so long.
const GOODBYE: Duration = Duration::from_secs(3600);

/// What has been heard so far.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// Worker records with `gate` and `worker_seen`, by worker.
    pub(super) workers: Vec<Map<String, Value>>,
    /// Gates that were there and do not answer.
    pub(super) silent: BTreeMap<String, Option<Beat>>,
    /// Gates that have said goodbye within an hour.
    pub(super) stopped: BTreeMap<String, Beat>,
    /// Gates that refuse, and why.
    pub(super) refused: BTreeMap<String, String>,
    /// What became of an order.
    pub(super) done: Vec<(String, Done)>,
    /// Every gate that has answered.
    pub(super) answered: BTreeSet<String>,
    /// Workers of silent gates whom nobody owns, as the broker says: their ways are shut.
    pub(super) unowned: BTreeSet<WorkerName>,
}

/// Asks, and listens until everybody who is known has answered, or `limit` is over.
pub(super) async fn ask(asker: &mut Asker, ping: bool, limit: Duration) -> Result<Fleet, Fault> {
    let begun = Instant::now();
    let mut hearing = Hearing { status: asker.ask(Ask::Status).await?, ..Hearing::default() };
    hearing.call(asker, ping).await?;
    hearing.listen(asker, begun + limit, |_| false).await?;
    hearing.finish(asker, begun + limit, |_| true).await
}

/// Sends an order with it, and listens until these workers' gate has answered, or `limit` is over.
pub(super) async fn order(
    asker: &mut Asker,
    order: Ask,
    workers: &BTreeSet<String>,
    limit: Duration,
) -> Result<Fleet, Fault> {
    let begun = Instant::now();
    let order = asker.ask(order).await?;
    let mut hearing = Hearing { status: asker.ask(Ask::Status).await?, order: Some(order), ..Hearing::default() };
    hearing.call(asker, false).await?;
    let is_done = |fleet: &Fleet| {
        let done: BTreeSet<_> = fleet.done.iter().map(|(_, done)| done.worker.as_str()).collect();
        workers.iter().all(|worker| done.contains(worker.as_str()))
    };
    hearing.listen(asker, begun + limit, is_done).await?;
    hearing.finish(asker, begun + limit, is_done).await
}

#[derive(Debug, Default)]
struct Hearing {
    status: String,
    order: Option<String>,
    known: BTreeSet<String>,
    seen: BTreeSet<String>,
    can_see: bool,
    fleet: Fleet,
}

impl Hearing {
    async fn call(&mut self, asker: &mut Asker, ping: bool) -> Result<(), Fault> {
        asker.call_roll().await?;
        if ping {
            self.can_see = asker.ping().await?;
        }
        Ok(())
    }

    /// Listens until nothing new comes, or it is enough.
    async fn listen(
        &mut self,
        asker: &mut Asker,
        until: Instant,
        is_enough: impl Fn(&Fleet) -> bool,
    ) -> Result<(), Fault> {
        let mut quiet = Instant::now() + QUIET;
        while !is_enough(&self.fleet)
            && let Some(heard) = asker.next(quiet.min(until)).await?
        {
            if self.take(heard) {
                quiet = Instant::now() + QUIET;
            }
        }
        Ok(())
    }

    /// Waits for those who were there a moment ago, and puts everything together.
    async fn finish(
        mut self,
        asker: &mut Asker,
        until: Instant,
        is_enough: impl Fn(&Fleet) -> bool,
    ) -> Result<Fleet, Fault> {
        let missing = |hearing: &Self| -> BTreeSet<String> {
            hearing.known.difference(&hearing.fleet.answered).cloned().collect()
        };
        let mut beats = BTreeMap::new();
        if !missing(&self).is_empty() {
            beats = asker.beats(&missing(&self)).await?;
        }
        let now = Timestamp::now();
        let is_there = |beat: &Beat| !beat.goodbye && age(now, beat) < ALIVE;
        let awaited: BTreeSet<String> =
            beats.iter().filter(|(_, beat)| is_there(beat)).map(|(gate, _)| gate.clone()).collect();
        loop {
            let is_complete = awaited.is_subset(&self.fleet.answered) && is_enough(&self.fleet);
            if is_complete {
                break;
            }
            let Some(heard) = asker.next(until).await? else { break };
            self.take(heard);
        }
        for gate in missing(&self) {
            match beats.remove(&gate) {
                Some(beat) if beat.goodbye && age(now, &beat) > GOODBYE => {}
                Some(beat) if beat.goodbye => {
                    self.fleet.stopped.insert(gate, beat);
                }
                beat => {
                    self.fleet.silent.insert(gate, beat);
                }
            }
        }
        self.arrange();
        let left = self.fleet.left();
        if !left.is_empty() {
            self.fleet.unowned = asker.unowned(&left).await?;
        }
        Ok(self.fleet)
    }

    /// Takes in what was heard; whether it is news.
    fn take(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Known(gate) => self.known.insert(gate),
            Heard::Seen(node) => self.seen.insert(node),
            Heard::Answer(answer) => self.answer(answer),
            Heard::Fact(_) => false,
        }
    }

    fn answer(&mut self, answer: Answer) -> bool {
        let Answer { id, gate, says, .. } = answer;
        let (is_status, is_order) = (id == self.status, self.order.as_ref() == Some(&id));
        match says {
            Says::Status(records) if is_status => {
                if !self.fleet.answered.insert(gate.clone()) {
                    return false;
                }
                for mut record in records {
                    record.insert("gate".to_owned(), gate.clone().into());
                    self.fleet.workers.push(record);
                }
            }
            Says::Done(done) if is_order => self.fleet.done.extend(done.into_iter().map(|done| (gate.clone(), done))),
            Says::Refused(why) if is_status || is_order => {
                self.fleet.answered.insert(gate.clone());
                self.fleet.refused.insert(gate, why);
            }
            Says::Status(_) | Says::Done(_) | Says::Refused(_) | Says::Consumes(_) => return false,
        }
        true
    }

    /// One row for each worker: of two gates that have it, the one that owns it.
    fn arrange(&mut self) {
        let is_elsewhere = |record: &Map<String, Value>| {
            record.get("reason").and_then(|reason| reason["code"].as_str()) == Some("owned_elsewhere")
        };
        let workers = &mut self.fleet.workers;
        workers.sort_by(|a, b| {
            let key = |record: &Map<String, Value>| (name(record).to_owned(), is_elsewhere(record));
            key(a).cmp(&key(b))
        });
        workers.dedup_by(|second, first| name(second) == name(first) && is_elsewhere(second));
        for record in workers {
            let node = node(&WorkerName::new(name(record)));
            let seen = if self.can_see { Value::Bool(self.seen.contains(&node)) } else { Value::Null };
            record.insert("worker_seen".to_owned(), seen);
        }
    }
}

impl Fleet {
    /// Whether there is, or was, any gate.
    pub(super) fn is_empty(&self) -> bool {
        self.answered.is_empty() && self.silent.is_empty() && self.stopped.is_empty()
    }

    /// The workers whose gate is silent, and whom no other gate has.
    fn left(&self) -> BTreeSet<WorkerName> {
        let owned: BTreeSet<_> = self.workers.iter().map(name).collect();
        let silent = self.silent.values().flatten().flat_map(|beat| &beat.workers);
        silent.filter(|worker| !owned.contains(worker.as_str())).cloned().collect()
    }

    /// Their rows. The broker takes the ownership away from a gate whose connection has ended, and from one that it has not heard for
    /// two and a half heartbeats; until then the edge of a silent gate may be open, and only that gate could tell.
    pub(super) fn without_gate(&self, now: Timestamp) -> Vec<Map<String, Value>> {
        let left = self.left();
        let mut rows = Vec::new();
        for (gate, beat) in &self.silent {
            let Some(beat) = beat else { continue };
            let age = age(now, beat);
            let detail = format!("its gate {gate} has been silent for {:.0} s", age.as_secs_f64());
            let remedy = format!("start worker-gate on {gate} again, or see why it does not reach the broker");
            for worker in beat.workers.iter().filter(|worker| left.contains(*worker)) {
                let edge = self.unowned.contains(worker).then_some("shut");
                let row = json!({
                    "worker_name": worker, "admission": "held", "edge": edge, "gate": gate,
                    "gate_silent_s": age.as_secs_f64(),
                    "reason": { "code": "gate_silent", "detail": detail, "remedy": remedy },
                });
                rows.extend(row.as_object().cloned());
            }
        }
        rows
    }
}

/// How long ago a gate said something; by its clock and ours.
pub(super) fn age(now: Timestamp, beat: &Beat) -> Duration {
    Duration::try_from(now.duration_since(beat.at)).unwrap_or_default()
}

/// The worker that a record is about.
pub(super) fn name(record: &Map<String, Value>) -> &str {
    record.get("worker_name").and_then(Value::as_str).unwrap_or_default()
}
