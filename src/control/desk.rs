//! One gate's desk: takes what comes over the broker, and says what is to go back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use super::{
    Answer, Ask, Done, Request, Says, Wish,
    guard::{Guard, Refusals},
};
use crate::{
    clock,
    model::{self, By, Order, Reason, WorkerName},
    report::http::Snapshot,
};

/// For the daemon's loop to take an order and for its hold to be on the disk. Askers wait two seconds.
const LOOP_LIMIT: Duration = Duration::from_millis(1500);
/// For the broker to count what waits. A status without it is better than a late one.
const COUNT_LIMIT: Duration = Duration::from_millis(300);
/// Counts are good for so long: several who look at once are one question to the broker.
const COUNT_AGE: Duration = Duration::from_secs(1);

/// A request as it comes, whichever broker has carried it.
#[derive(Debug, Default)]
pub struct Letter {
    /// The request.
    pub body: Vec<u8>,
    /// Its signature.
    pub signature: Option<String>,
    /// Who has sent it, as the broker vouches for.
    pub user: Option<String>,
}

/// What the daemon's loop is asked to do.
#[derive(Debug)]
pub enum Errand {
    /// What an operator wants, and where the answer is to go.
    Orders(Vec<Order>, oneshot::Sender<Vec<Done>>),
    /// That this be told: requests were refused.
    Refused(Reason),
}

/// How many messages wait for each worker.
pub type Waiting = BTreeMap<WorkerName, u64>;

/// Asks the broker how many do.
pub type Count = Arc<dyn Fn() -> BoxFuture<'static, Waiting> + Send + Sync>;

/// The desk's ways to the rest of the gate.
pub struct Desk {
    gate: String,
    guard: Guard,
    snapshot: watch::Receiver<Snapshot>,
    errands: mpsc::Sender<Errand>,
    count: Count,
    refusals: Refusals,
    counted: Option<(Instant, Waiting)>,
}

impl Desk {
    /// A desk that nobody has come to yet: `guard` lets requests in, `snapshot` says how things stand, and `errands` go to the
    /// daemon's loop.
    pub fn new(
        gate: &str,
        guard: Guard,
        snapshot: watch::Receiver<Snapshot>,
        errands: mpsc::Sender<Errand>,
        count: Count,
    ) -> Self {
        let (refusals, counted) = (Refusals::default(), None);
        Self { gate: gate.to_owned(), guard, snapshot, errands, count, refusals, counted }
    }

    /// The gate's name.
    pub fn gate(&self) -> &str {
        &self.gate
    }

    /// Takes a letter in; what it hands back is to go to whoever sent it. `consumes` says how often this gate consumes which
    /// shared queue.
    pub async fn answer(
        &mut self,
        letter: Letter,
        consumes: impl FnOnce() -> BTreeMap<String, usize> + Send,
    ) -> Option<Vec<u8>> {
        let (id, says) = match self.guard.admit(clock::now(), &letter.body, letter.signature.as_deref()) {
            Ok(Request { id, by, ask, .. }) => {
                let by = By { user: letter.user, claims: by };
                let says = match ask {
                    Ask::Status => Says::Status(self.status().await),
                    Ask::Consumes => Says::Consumes(consumes()),
                    Ask::Hold(wish) => {
                        let ask = model::Ask::Hold { until: wish.until };
                        self.orders(wish, &by, ask).await?
                    }
                    Ask::Release(wish) => self.orders(wish, &by, model::Ask::Release).await?,
                    Ask::Recheck(wish) => self.orders(wish, &by, model::Ask::Recheck).await?,
                };
                (id, says)
            }
            Err(refusal) => {
                let text = refusal.to_string();
                let who = letter.user.map_or_else(|| "somebody".to_owned(), |user| format!("the broker's user {user}"));
                if let Some(reason) = self.refusals.take(clock::now().mono, refusal, who) {
                    self.tell(reason);
                }
                // With the id, if there is one, the asker need not wait.
                let id = serde_json::from_slice::<Map<String, Value>>(&letter.body).ok();
                let id = id.and_then(|request| request.get("id")?.as_str().map(str::to_owned))?;
                (id, Says::Refused(text))
            }
        };
        let answer = Answer { id, gate: self.gate.clone(), pid: std::process::id(), says };
        serde_json::to_vec(&answer).ok()
    }

    /// Tells of refusals that were not told at once; to be called now and then.
    pub fn look_round(&mut self) {
        for reason in self.refusals.due(clock::now().mono) {
            self.tell(reason);
        }
    }

    fn tell(&self, reason: Reason) {
        // A loop that is so busy has better things to tell; the next refusal of this kind is counted.
        let _ = self.errands.try_send(Errand::Refused(reason));
    }

    async fn status(&mut self) -> Vec<Map<String, Value>> {
        let fresh = self.counted.as_ref().is_some_and(|(at, _)| at.elapsed() < COUNT_AGE);
        if !fresh {
            let counted = timeout(COUNT_LIMIT, (self.count)()).await.unwrap_or_default();
            self.counted = Some((Instant::now(), counted));
        }
        let waiting = self.counted.as_ref().map(|(_, waiting)| waiting);
        let snapshot = self.snapshot.borrow();
        let record = |worker: &crate::report::http::WorkerView| {
            let Ok(Value::Object(mut record)) = serde_json::to_value(&worker.record) else { return None };
            let count = waiting.and_then(|waiting| waiting.get(&worker.record.worker_name));
            record.insert("waiting".to_owned(), count.map_or(Value::Null, |count| (*count).into()));
            Some(record)
        };
        snapshot.workers.iter().filter_map(record).collect()
    }

    /// `None` if none of the workers is this gate's, so that it is for others to answer, or if the loop is too busy: nobody knows
    /// then what became of the wish.
    async fn orders(&self, wish: Wish, by: &By, ask: model::Ask) -> Option<Says> {
        let is_own = |name: &String| {
            self.snapshot.borrow().workers.iter().any(|worker| worker.record.worker_name.as_str() == name)
        };
        let order =
            |name: String| Order { worker: WorkerName::new(&name), ask, by: by.clone(), reason: wish.reason.clone() };
        let orders: Vec<_> = wish.workers.into_iter().filter(is_own).map(order).collect();
        if orders.is_empty() {
            return None;
        }
        let (reply, done) = oneshot::channel();
        let asking = async {
            self.errands.send(Errand::Orders(orders, reply)).await.ok()?;
            done.await.ok()
        };
        let done = timeout(LOOP_LIMIT, asking).await.ok().flatten()?;
        (!done.is_empty()).then_some(Says::Done(done))
    }
}
