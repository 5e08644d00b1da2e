//! One ownership: from the moment this gate owns the worker to the first fault.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{Channel, Consumer, types::ShortString};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Deaf, Route,
    mouth::Mouth,
    mover::Tally,
    names::Names,
    owner,
    settling::{Progress, Settling, balance},
    topology::{self, Topology},
};
use crate::{
    clock,
    edge::{
        Ends, Memory,
        fault::Fault,
        links::Connect,
        rabbitmq::{kept::Keeping, links::Links, remote},
    },
    failpoint::{self, Point},
    model::{Account, Edge, EdgeReport, Exposed, Wanted},
    settings::OnQuarantine,
};

mod moving;
mod upkeep;

use moving::Moving;

/// How often a queue is counted while it settles and no confirm comes in.
const SETTLE_LOOK: Duration = Duration::from_millis(10);
/// How often it is looked whether the way is still whole. Some ten commands, so a hundred workers make ten a second.
const LOOK: Duration = Duration::from_secs(120);
/// Reports of bypasses, and repairs of a way that somebody took apart, come at most this often.
const FOLD: Duration = Duration::from_secs(1);

/// One ownership: from the moment this gate owns the worker to the first fault, or to `stop`.
pub(super) async fn serve(
    route: &Route,
    names: &Names,
    links: &Arc<Links>,
    ends: &mut Ends<Links>,
    memory: &mut Memory,
    deaf: &mut Deaf,
    stop: &CancellationToken,
) -> Result<(), Fault> {
    let ready = links.ready.acquire().await;
    let control = topology::open(&links.control).await?;
    let topology =
        Topology { names, worker: &route.worker, intake: &route.intake, vhost: &route.vhost, user: &route.user };
    let mailbox = owner::own(links, &control, &topology, memory.owned_by_others > 0).await?;
    failpoint::hit(Point::OwnOwned);
    // Start shut: whatever an earlier owner left is taken away before anything else.
    topology.clear_edge(&control).await?;
    failpoint::hit(Point::OwnCleared);
    let is_plain = topology.declare(&links.control).await?;
    failpoint::hit(Point::OwnDeclared);
    topology.declare_edge(&control).await?;
    failpoint::hit(Point::OwnEdgeDeclared);
    let bell = Arc::default();
    let mut serving = Serving {
        route,
        names,
        links,
        topology,
        control,
        bell,
        is_plain,
        open: false,
        silenced: false,
        movers: Vec::new(),
        untold: Vec::new(),
        feedings: Vec::new(),
        settling: None,
        progress: None,
        recycling: &mut memory.recycling,
        keeping: route.worker.task_events.then(|| Keeping::begin(links, &route.worker.name)),
        deaf,
        opened: Instant::now(),
        hear_at: Instant::now(),
    };
    serving.begin_shut().await?;
    failpoint::hit(Point::OwnTakingBack);
    let mut mouth = Mouth::open(Arc::clone(links));
    let mut proven = serving.topology.prove(links, &mut mouth).await;
    drop(ready);
    if matches!(proven, Err(Fault::Blocked)) {
        tracing::warn!(worker = %route.worker.name, remedy = Fault::Blocked.remedy(), "failed to {}", Fault::Blocked);
        ends.tell(&route.worker.name, EdgeReport::Down(Fault::Blocked.reason())).await;
    }
    // Without letting go of the lane, or the worker would have what was taken back of it for as long as the alarm lasts.
    while matches!(proven, Err(Fault::Blocked)) {
        // Cancel-safe, all of them.
        let is_over = tokio::select! {
            () = stop.cancelled() => return serving.let_go(ends).await,
            _ = ends.links.changed() => return Err(Fault::LinkDown),
            opened = mouth.channel() => opened.map(|_| true)?,
            () = serving.bell.notified() => false,
        };
        match serving.check_movers().await {
            Err(Fault::Blocked) => serving.begin_shut().await?,
            checked => checked?,
        }
        if is_over {
            let _ready = links.ready.acquire().await;
            proven = serving.topology.prove(links, &mut mouth).await;
        }
    }
    proven?;
    drop(mouth);
    failpoint::hit(Point::OwnProven);
    memory.worked = true;
    let outcome = serving.reconcile(mailbox, ends, stop).await;
    if outcome.is_ok() {
        return serving.let_go(ends).await;
    }
    // A fault of one channel leaves the others, and so the way, as they were.
    if serving.open {
        let shut = async { serving.topology.shut_edge(&topology::open(&links.control).await?).await };
        if shut.await.is_err() {
            links.cut();
        }
        failpoint::hit(Point::FaultShut);
    }
    outcome
}

struct Serving<'a> {
    route: &'a Route,
    names: &'a Names,
    links: &'a Arc<Links>,
    topology: Topology<'a>,
    control: Channel,
    /// Rung by every mover.
    bell: Arc<Notify>,
    /// Whether the intake has its alternate exchange as an argument, so that declaring it again shows whether it still has.
    is_plain: bool,
    open: bool,
    /// Whether the worker was told to consume no more, since something came past the edge that is shut now.
    silenced: bool,
    movers: Vec<Moving>,
    /// What came past the shut edge, of movers that have ended since.
    untold: Vec<(ShortString, ShortString, u64)>,
    /// What feeds the lane, and what fed it until a moment ago.
    feedings: Vec<(CancellationToken, AbortOnDropHandle<Result<(), Fault>>)>,
    settling: Option<Settling>,
    /// What is still being moved after its account was told.
    progress: Option<Progress>,
    /// Makes the worker start anew.
    recycling: &'a mut Option<AbortOnDropHandle<()>>,
    /// Keeps its task events, where that is wanted.
    keeping: Option<Keeping>,
    deaf: &'a mut Deaf,
    opened: Instant,
    /// When it is looked again whether the worker consumes.
    hear_at: Instant,
}

impl Serving<'_> {
    /// Empties the lane of a worker that is owned and not proven yet. What waits there came before this gate did, so it is no bypass.
    /// Nobody waits for this account.
    async fn begin_shut(&mut self) -> Result<(), Fault> {
        let before = self.take_back().await?;
        self.settling = Some(Settling::new(Wanted::shut(), before, None));
        Ok(())
    }

    /// Says that the gate owns the worker, then follows what is wanted and watches what moves.
    async fn reconcile(
        &mut self,
        mut mailbox: Consumer,
        ends: &mut Ends<Links>,
        stop: &CancellationToken,
    ) -> Result<(), Fault> {
        // A wish to open that is older than the ownership rests on evidence that is older, too: neither one that is there
        // already counts, nor one that is under way to here while the verdict has not heard of this ownership yet.
        let mut done = ends.wanted.borrow_and_update().change;
        let owned = clock::now().mono;
        ends.tell(&self.route.worker.name, EdgeReport::Owned(owned)).await;
        let mut fold_until = Instant::now();
        let mut look_at = Instant::now() + LOOK.mul_f64(rand::random_range(0.8..1.2));
        loop {
            let wanted = *ends.wanted.borrow_and_update();
            let is_outdated = wanted.edge == Edge::Open && wanted.owned != Some(owned);
            if wanted.change != done && !is_outdated {
                self.become_(wanted, ends).await?;
                done = wanted.change;
            }
            let settling = self.settling.is_some();
            let progress_at = self.progress.as_ref().map_or_else(Instant::now, Progress::look_at);
            let folded = !self.untold.is_empty() || self.movers.iter().any(|moving| moving.tally.has_news());
            // Cancel-safe: watch, notify, token and stream keep what is not taken; the timer is made anew.
            tokio::select! {
                biased;
                // Before anything else is looked after.
                changed = ends.wanted.changed() => if changed.is_err() { return Ok(()) } else { continue },
                // Whatever the news is, these links are gone: they may have been lost and replaced at once.
                _ = ends.links.changed() => return Err(Fault::LinkDown),
                () = stop.cancelled() => return Ok(()),
                question = mailbox.next() => match question {
                    // Apart: under an alarm nothing is published, and no answer may hold up a shut.
                    Some(Ok(question)) => drop(tokio::spawn(owner::answer(Arc::clone(self.links), question, self.route.gate.clone()))),
                    Some(Err(error)) => return Err(Fault::command("hear the owner queue", error)),
                    None => return Err(Fault::command("hear the owner queue", lapin::ErrorKind::InvalidChannel(0).into())),
                },
                () = self.bell.notified() => {}
                () = sleep(SETTLE_LOOK), if settling => {}
                () = sleep_until(progress_at), if self.progress.is_some() => {}
                () = sleep_until(fold_until), if folded => {}
                () = sleep_until(self.hear_at), if self.open && *self.deaf != Deaf::No => {
                    let mut newer = ends.wanted.clone();
                    tokio::select! {
                        biased;
                        _ = newer.changed() => continue,
                        woken = self.wake() => woken?,
                    }
                }
                () = sleep_until(look_at) => {
                    let mut newer = ends.wanted.clone();
                    tokio::select! {
                        biased;
                        // Nothing but the edge itself may hold up a shut; it is looked again after it.
                        _ = newer.changed() => continue,
                        looked = self.look() => looked?,
                    }
                    self.open_again().await?;
                    look_at = Instant::now() + LOOK;
                }
            }
            self.check_movers().await?;
            self.settle(ends).await?;
            self.tell_progress(ends).await?;
            if Instant::now() >= fold_until && (self.tell_bypass(ends).await? | self.mend().await?) {
                fold_until = Instant::now() + FOLD;
            }
        }
    }

    /// Shuts, takes back what waits in the lane, and gives the worker up, so that the next owner need not wait for the
    /// connection to end. Whatever goes wrong meanwhile, the worker is given up.
    async fn let_go(&mut self, ends: &Ends<Links>) -> Result<(), Fault> {
        let emptied = self.empty(ends).await;
        let mut disowned = self.topology.disown(&self.control).await;
        if disowned.is_err() {
            // The channel may be the one that something went wrong with.
            disowned = async { self.topology.disown(&topology::open(&self.links.control).await?).await }.await;
        }
        if disowned.is_err() {
            self.links.cut();
        }
        failpoint::hit(Point::LetGoDisowned);
        emptied.and(disowned)
    }

    /// Shuts, takes back what waits in the lane, and moves no more.
    async fn empty(&mut self, ends: &Ends<Links>) -> Result<(), Fault> {
        if self.open {
            self.shut(Wanted::shut(), ends).await?;
            failpoint::hit(Point::LetGoShut);
            while self.settling.is_some() {
                self.settle(ends).await?;
                sleep(SETTLE_LOOK).await;
            }
        }
        self.stop_movers().await?;
        failpoint::hit(Point::LetGoStopped);
        Ok(())
    }

    async fn become_(&mut self, wanted: Wanted, ends: &Ends<Links>) -> Result<(), Fault> {
        let (is_open, name) = (self.open, &self.route.worker.name);
        match (wanted.edge, is_open) {
            (Edge::Shut, true) => self.shut(wanted, ends).await,
            (Edge::Open, false) => self.open(wanted, ends).await,
            (Edge::Shut, false) | (Edge::Open, true) => {
                ends.tell(name, EdgeReport::Is(wanted, clock::now().mono)).await;
                if let Some(settling) = self.settling.as_mut().filter(|settling| settling.wanted.change > 0) {
                    // Wanted otherwise and then this again, before anybody looked: it is under way.
                    settling.wanted = wanted;
                    return Ok(());
                }
                let (change, account) = (wanted.change, Account::default());
                let blocked = self.links.is_blocked();
                ends.tell(name, EdgeReport::Settled { change, account, exposed: None, blocked }).await;
                Ok(())
            }
        }
    }

    async fn shut(&mut self, wanted: Wanted, ends: &Ends<Links>) -> Result<(), Fault> {
        let urgent = self.links.rush.begin();
        self.stop_moving();
        failpoint::hit(Point::ShutBegun);
        if let Err(fault) = self.topology.shut_edge(&self.control).await {
            // The last resort, and a sure one: the broker shuts the edge when the connection ends.
            self.links.cut();
            return Err(fault);
        }
        self.open = false;
        failpoint::hit(Point::ShutUnbound);
        if !self.control.status().connected() {
            // Somebody has deleted the edge exchange, and its bindings with it.
            self.control = topology::open(&self.links.control).await?;
        }
        drop(urgent);
        ends.tell(&self.route.worker.name, EdgeReport::Is(wanted, clock::now().mono)).await;
        failpoint::hit(Point::ShutTold);
        self.links.rush.over().await;
        let before = self.take_back().await?;
        failpoint::hit(Point::ShutTakingBack);
        let (links, worker) = (Arc::clone(self.links), self.route.worker.name.clone());
        let events = self.keeping.as_ref().map(|keeping| keeping.problem().map_or(Ok(()), Err));
        let (asked, answered) = oneshot::channel();
        let ask = tokio::spawn(async move {
            let exposed = remote::exposed(&links, &worker, events).await;
            // Whether anybody waits for it is no matter.
            let _ = asked.send(());
            exposed
        });
        let exposed = Some(AbortOnDropHandle::new(ask));
        if wanted.quarantine && self.route.worker.on_quarantine == OnQuarantine::Recycle {
            self.recycle(ends, answered);
        }
        self.settling = Some(Settling::new(wanted, before, exposed));
        Ok(())
    }

    async fn open(&mut self, wanted: Wanted, ends: &Ends<Links>) -> Result<(), Fault> {
        let urgent = self.links.rush.begin();
        self.stop_moving();
        (self.settling, self.silenced) = (None, false);
        // From the first command on, a fault has something to take away again.
        self.open = true;
        failpoint::hit(Point::OpenBegun);
        self.topology.open_edge(&self.control).await?;
        failpoint::hit(Point::OpenBound);
        drop(urgent);
        ends.tell(&self.route.worker.name, EdgeReport::Is(wanted, clock::now().mono)).await;
        failpoint::hit(Point::OpenTold);
        let mut newer = ends.wanted.clone();
        let before = tokio::select! {
            biased;
            // Nothing but the edge itself may hold up a shut. What has begun ends by itself.
            _ = newer.wait_for(|wanted| wanted.edge == Edge::Shut) => return Ok(()),
            before = async {
                self.links.rush.over().await;
                self.give_back().await
            } => before?,
        };
        failpoint::hit(Point::OpenMoving);
        self.settling = Some(Settling::new(wanted, before, None));
        self.opened = Instant::now();
        self.wake().await
    }

    /// Tells the account once everything that waited has been moved, or its time is up.
    async fn settle(&mut self, ends: &Ends<Links>) -> Result<(), Fault> {
        let Some(mut settling) = self.settling.take() else { return Ok(()) };
        let (stopping, moving): (Vec<_>, Vec<_>) = self.movers.iter().partition(|moving| moving.stop.is_cancelled());
        let sum = |count: fn(&Tally) -> &AtomicU64| moving.iter().map(|m| count(&m.tally).load(Relaxed)).sum::<u64>();
        let time_up = Instant::now() >= settling.until;
        let unanswered = settling.exposed.as_ref().is_some_and(|asked| !asked.is_finished());
        let fed = self.feedings.iter().any(|(stop, _)| stop.is_cancelled());
        let idle = !fed && stopping.is_empty() && moving.iter().all(|moving| moving.tally.idle());
        if !time_up && (!idle || unanswered) {
            self.settling = Some(settling);
            return Ok(());
        }
        let queues = match settling.wanted.edge {
            Edge::Shut => vec![self.names.lane.clone()],
            Edge::Open => self.holding_queues(),
        };
        let mut waiting = 0;
        for queue in queues {
            waiting += topology::waiting(&self.control, &queue).await?;
        }
        failpoint::hit(Point::SettleCounted);
        let has_come = waiting == 0 && settling.has_come(sum(|tally| &tally.received));
        let in_hand = moving.iter().map(|moving| moving.tally.in_hand()).sum::<u64>();
        if !time_up && (!has_come || in_hand > 0) {
            if waiting == 0 && settling.swept.is_none() {
                settling.swept = Some(moving::sweep(&moving));
            }
            self.settling = Some(settling);
            return Ok(());
        }
        let (moved, probes) = (sum(|tally| &tally.moved), sum(|tally| &tally.probes));
        let before = settling.before.saturating_sub(probes);
        // While it still comes, what is missing is on its way here: the broker counts it no more, and we not yet.
        let missing = if has_come { 0 } else { before.saturating_sub(moved) };
        let account = balance(before, moved, missing.max(waiting + in_hand));
        for moving in &moving {
            let received = moving.tally.received.load(Relaxed);
            // What the worker took before the mover had it comes no more.
            let waited = if has_come { received } else { settling.before.max(received + waiting) };
            moving.tally.waited.store(waited, Relaxed);
        }
        let change = settling.wanted.change;
        let exposed = match settling.exposed.take() {
            Some(asked) if asked.is_finished() => asked.await.ok(),
            Some(_) => {
                Some(Exposed { unknown: Some("the worker did not answer in time".to_owned()), ..Exposed::default() })
            }
            None => None,
        };
        let blocked = self.links.is_blocked();
        ends.tell(&self.route.worker.name, EdgeReport::Settled { change, account, exposed, blocked }).await;
        failpoint::hit(Point::SettleTold);
        if account.left > 0 {
            self.progress = Some(Progress::new(account));
        } else if !self.open {
            self.expect_bursts();
        }
        Ok(())
    }
}
