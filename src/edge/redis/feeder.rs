//! Moves for all workers of a gate, in one script a round.
//!
//! A round begins when Redis says that a list has changed which the last one read, when an edge has opened, and when time
//! makes a difference. While a lane has room and its intake has more, one round follows the other at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::redis::{Cmd, PushInfo, PushKind, Script, ScriptInvocation, aio::MultiplexedConnection, cmd};
use tokio::{
    sync::{Notify, mpsc},
    time::sleep_until,
};

use super::{fault, keys::Keys, presence::Presence, remote::Remote};
use crate::{
    edge::fault::Fault,
    failpoint::{self, Point},
    model::WorkerName,
    redis::Pushes,
};

/// The most moves of one round, all workers together. Redis does nothing else meanwhile: at about a microsecond a move this is
/// less than a millisecond of it.
const BUDGET: u64 = 512;
/// How often a round looks by itself where Redis does not track for this user.
const UNTRACKED: Duration = Duration::from_millis(20);
/// At the latest, a round looks by itself, so that a lost push is no lost work.
const RAREST: Duration = Duration::from_secs(5);

/// What the feeder tells the edge of a worker.
#[derive(Debug)]
pub(super) enum News {
    /// This gate does not own the worker any more.
    Lost,
    /// Messages came to the shut lane, and were put back to the intake.
    Bypass {
        /// How many.
        messages: u64,
        /// The exchange by which the oldest one came.
        exchange: String,
        /// And its key.
        key: String,
    },
}

/// A worker, while the gate owns it.
#[derive(Debug)]
struct Slot {
    keys: Arc<Keys>,
    /// What the owner's key says of this ownership.
    value: String,
    depth: u32,
    lane: String,
    open: bool,
    /// The intake had something when it was last looked at.
    has_work: bool,
    presence: Presence,
    news: mpsc::UnboundedSender<News>,
    /// When it was last fed.
    fed: Option<Instant>,
    /// The process that its events name.
    process: Option<u32>,
}

/// Everybody who is to be fed.
#[derive(Debug)]
pub(super) struct Feeder {
    time_to_live: Duration,
    steps: usize,
    slots: Mutex<BTreeMap<WorkerName, Slot>>,
    /// Other keys than the lists, and who is to be told when one of them changes.
    watched: Mutex<Vec<(String, mpsc::Sender<()>)>>,
    /// Rung when a slot has changed.
    bell: Notify,
    script: Script,
}

/// What one round is about, as it was when the round began.
#[derive(Clone)]
struct Plan {
    name: WorkerName,
    value: String,
    keys: Arc<Keys>,
    depth: u32,
}

impl Feeder {
    pub(super) fn new(time_to_live: Duration, steps: usize) -> Self {
        let script = Script::new(include_str!("scripts/round.lua"));
        Self { time_to_live, steps, slots: Mutex::default(), watched: Mutex::default(), bell: Notify::new(), script }
    }

    /// Takes a worker in, shut.
    pub(super) fn add(
        &self,
        name: &WorkerName,
        keys: Arc<Keys>,
        value: &str,
        lane: &str,
        (depth, offline_after): (u32, Duration),
    ) -> mpsc::UnboundedReceiver<News> {
        let (news, heard) = mpsc::unbounded_channel();
        let now = Instant::now();
        let slot = Slot {
            keys,
            value: value.to_owned(),
            depth,
            lane: lane.to_owned(),
            open: false,
            has_work: false,
            presence: Presence::new(now, offline_after),
            news,
            fed: None,
            process: None,
        };
        self.slots().insert(name.clone(), slot);
        self.bell.notify_one();
        heard
    }

    /// Lets a worker go.
    pub(super) fn remove(&self, name: &WorkerName) {
        self.slots().remove(name);
    }

    /// Lets all of them go.
    pub(super) fn end(&self) {
        self.slots().clear();
    }

    /// From now on its worker is fed, or not fed.
    pub(super) fn set_open(&self, name: &WorkerName, open: bool) {
        self.change(name, |slot| slot.open = open);
    }

    /// The process that the worker's events name, as long as it is there.
    pub(super) fn process(&self, name: &WorkerName) -> Option<u32> {
        self.slots().get(name)?.process
    }

    /// Whether the worker has been heard of lately; `None` if it had no time yet to be heard here.
    pub(super) fn is_heard(&self, name: &WorkerName) -> Option<bool> {
        let (now, slots) = (Instant::now(), self.slots());
        let presence = &slots.get(name)?.presence;
        presence.is_known(now).then(|| presence.is_heard(now))
    }

    /// The worker with this Celery node name has said, as this process, that it is there; or, without one, that it goes.
    pub(super) fn beat(&self, node: &str, is_there: bool, process: Option<u32>) {
        let mut slots = self.slots();
        let found = slots.iter_mut().find(|(name, _)| crate::edge::celery::node(name) == node);
        let Some((_, slot)) = found else { return };
        let now = Instant::now();
        slot.process = process.filter(|_| is_there);
        if !is_there {
            slot.presence.leave();
            return;
        }
        let was_fed = slot.presence.may_be_fed(now);
        slot.presence.beat(now);
        if slot.open && !was_fed {
            drop(slots);
            self.bell.notify_one();
        }
    }

    /// Tells when this key may have changed: whoever hears it reads the key again, which renews the tracking. Without a key,
    /// never.
    pub(super) fn watch(&self, key: Option<String>) -> mpsc::Receiver<()> {
        let (tell, told) = mpsc::channel(1);
        if let Some(key) = key {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|(_, tell)| !tell.is_closed());
            watched.push((key, tell));
        }
        told
    }

    /// Passes on what was pushed about other keys than the lists.
    fn heard(&self, push: &PushInfo) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.is_empty() || push.kind != PushKind::Invalidate {
            return;
        }
        // Nil stands for all keys.
        let names: Option<Vec<String>> = push.data.first().and_then(|names| ::redis::from_redis_value_ref(names).ok());
        for (key, tell) in watched.iter() {
            if names.as_ref().is_none_or(|names| names.contains(key)) {
                // One that waits there already says the same.
                let _ = tell.try_send(());
            }
        }
    }

    /// The lists of a worker have been written to.
    pub(super) fn ring(&self) {
        self.bell.notify_one();
    }

    fn change(&self, name: &WorkerName, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots().get_mut(name) {
            change(slot);
        }
        self.bell.notify_one();
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<WorkerName, Slot>> {
        // Nothing that is done under the lock leaves a slot half changed.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds until a fault.
    pub(super) async fn run(
        self: &Arc<Self>,
        mut connection: MultiplexedConnection,
        mut pushes: Pushes,
        remote: Arc<Remote>,
    ) -> Result<(), Fault> {
        // Our own moves are no news to us.
        let track: Cmd = cmd("CLIENT").arg("TRACKING").arg("ON").arg("NOLOOP").take();
        let tracked = track.query_async::<()>(&mut connection).await;
        if let Err(error) = &tracked {
            let why = crate::redis::text(error);
            tracing::warn!(why, "Redis does not track keys for this user: the gate looks for work every 20 ms");
        }
        let rest = if tracked.is_ok() { RAREST } else { UNTRACKED };
        let mut renewed: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let renew_at = renewed.map_or(now, |at| at + self.time_to_live / 5);
            let plans = self.plan(now);
            if plans.is_empty() {
                renewed = None;
                tokio::select! {
                    () = self.bell.notified() => {}
                    push = pushes.recv() => match push {
                        Some(push) => self.heard(&push),
                        None => return Ok(()),
                    },
                }
                continue;
            }
            let renews = now >= renew_at;
            let time_to_live = if renews { self.time_to_live.as_millis() } else { 0 };
            let said: Vec<(i64, u64, u64)> = self
                .invocation(&plans, time_to_live)
                .invoke_async(&mut connection)
                .await
                .map_err(|error| fault("feed", error))?;
            if renews {
                renewed = Some(now);
            }
            failpoint::hit(Point::RedisRound);
            let moved: u64 = said.iter().map(|(moved, _, _)| u64::try_from(*moved).unwrap_or_default()).sum();
            let after = self.after(&plans, &said, &remote);
            let has_put_back = !after.put_back.is_empty();
            for (plan, bypass) in after.put_back {
                self.put_back(&mut connection, &plan, bypass).await?;
            }
            // What the gate has written itself is not tracked before it is read again. And a worker that was waiting at the lane
            // is served right behind the script, of which tracking tells nothing (Redis 7.0, t_list.c): only looking does.
            if moved > 0 || has_put_back {
                failpoint::hit(Point::RedisMoved);
                continue;
            }
            let now = Instant::now();
            let until = (now + rest).min(renewed.map_or(now, |at| at + self.time_to_live / 5));
            let until = after.wake_at.map_or(until, |at| until.min(at));
            tokio::select! {
                () = self.bell.notified() => {}
                push = pushes.recv() => match push {
                    Some(push) => self.heard(&push),
                    None => return Ok(()),
                },
                () = sleep_until(until.into()) => {}
            }
            // One round answers all of them.
            while let Ok(push) = pushes.try_recv() {
                self.heard(&push);
            }
        }
    }

    /// Who is to be fed what. Whoever was fed last comes last: a worker takes the next message into its hands while it works on
    /// the one before, and that one is for whoever is idle.
    fn plan(&self, now: Instant) -> Vec<Plan> {
        let slots = self.slots();
        let mut turns: Vec<_> = slots.iter().collect();
        turns.sort_by_key(|(_, slot)| slot.fed);
        let plan = |(name, slot): (&WorkerName, &Slot)| Plan {
            name: name.clone(),
            value: slot.value.clone(),
            keys: Arc::clone(&slot.keys),
            depth: if slot.open { slot.presence.depth(now, slot.depth) } else { 0 },
        };
        turns.into_iter().map(plan).collect()
    }

    fn invocation(&self, plans: &[Plan], time_to_live: u128) -> ScriptInvocation<'_> {
        let mut invocation = self.script.prepare_invoke();
        invocation.arg(self.steps).arg(BUDGET).arg(u64::try_from(time_to_live).unwrap_or(u64::MAX));
        for plan in plans {
            for key in plan.keys.for_scripts() {
                invocation.key(key);
            }
            invocation.arg(&plan.value).arg(plan.depth);
        }
        invocation
    }

    /// Takes in what a round has said, and says what follows from it.
    fn after(self: &Arc<Self>, plans: &[Plan], said: &[(i64, u64, u64)], remote: &Arc<Remote>) -> After {
        let (now, mut after) = (Instant::now(), After::default());
        let mut slots = self.slots();
        for (plan, (moved, lane, intake)) in plans.iter().zip(said) {
            let Some(slot) = slots.get_mut(&plan.name).filter(|slot| slot.value == plan.value) else { continue };
            let Ok(moved) = u64::try_from(*moved) else {
                let _ = slot.news.send(News::Lost);
                slots.remove(&plan.name);
                continue;
            };
            slot.has_work = *intake > 0 || *lane > 0;
            if moved > 0 {
                slot.fed = Some(now);
            }
            if slot.open {
                slot.presence.saw(now, moved, *lane);
                if slot.presence.is_gone(now) {
                    tracing::info!(worker = %plan.name, messages = *lane, "the worker is away: what waits in its lane goes back to the intake");
                    slot.presence.emptied(now);
                    after.put_back.push((plan.clone(), false));
                }
            } else if *lane > 0 {
                after.put_back.push((plan.clone(), true));
            }
            let has_work = slot.open && slot.has_work;
            if slot.presence.is_to_be_asked(now, has_work) {
                self.ask(&plan.name, &slot.lane, remote);
            }
            if slot.open
                && let Some(at) = slot.presence.wake_at(now, has_work)
            {
                after.wake(at);
            }
        }
        after
    }

    /// Asks a worker, apart, whether it consumes its lane.
    fn ask(self: &Arc<Self>, name: &WorkerName, lane: &str, remote: &Arc<Remote>) {
        let (feeder, remote, name, lane) = (Arc::clone(self), Arc::clone(remote), name.clone(), lane.to_owned());
        tokio::spawn(async move {
            let consumes = remote.consumes(&name, &lane).await;
            feeder.change(&name, |slot| slot.presence.answer(Instant::now(), consumes));
        });
    }

    async fn put_back(&self, connection: &mut MultiplexedConnection, plan: &Plan, bypass: bool) -> Result<(), Fault> {
        failpoint::hit(Point::RedisPutBackBegun);
        let (moved, oldest) = put_back(connection, &plan.keys, &plan.value, PutBack::Lane).await?;
        failpoint::hit(Point::RedisPutBack);
        if bypass
            && moved > 0
            && let Some(slot) = self.slots().get(&plan.name)
        {
            let messages = u64::try_from(moved).unwrap_or_default();
            let (exchange, key) = way(oldest.as_deref());
            let _ = slot.news.send(News::Bypass { messages, exchange, key });
        }
        Ok(())
    }
}

/// What follows from a round.
#[derive(Default)]
struct After {
    /// Whose lane is to be put back, and whether what is in it came past the shut edge.
    put_back: Vec<(Plan, bool)>,
    wake_at: Option<Instant>,
}

impl After {
    fn wake(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// What else a put-back does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PutBack {
    /// Nothing.
    Lane,
    /// It shuts the edge.
    Shut,
    /// It shuts the edge and lets the worker go.
    Release,
}

/// Puts the lane back to the head of the intake. Says how many that were (-1: somebody else has the worker), and shows the
/// oldest of them.
pub(super) async fn put_back(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    value: &str,
    what: PutBack,
) -> Result<(i64, Option<Vec<u8>>), Fault> {
    static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/put_back.lua")));

    let mut invocation = SCRIPT.prepare_invoke();
    for key in keys.for_scripts() {
        invocation.key(key);
    }
    let word = match what {
        PutBack::Lane => "lane",
        PutBack::Shut => "shut",
        PutBack::Release => "release",
    };
    let said: Vec<::redis::Value> = invocation
        .arg(value)
        .arg(word)
        .invoke_async(connection)
        .await
        .map_err(|error| fault("shut the edge", error))?;
    let moved = said.first().and_then(|moved| ::redis::from_redis_value_ref(moved).ok()).unwrap_or(-1);
    let oldest = said.get(1).and_then(|oldest| ::redis::from_redis_value_ref(oldest).ok());
    Ok((moved, oldest))
}

/// By which exchange and key a message came, as far as it says so itself; what is not Celery's was written to the list.
fn way(message: Option<&[u8]>) -> (String, String) {
    let message = message.and_then(crate::redis::envelope::unwrap);
    message.map(|message| (message.exchange, message.routing_key)).unwrap_or_default()
}
