//! One ownership: from the moment this gate owns the worker to the first fault.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{Channel, Consumer, options::ConfirmSelectOptions, types::ShortString};
use tokio::{
    sync::Notify,
    task::JoinError,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Ends, Memory, Route,
    mover::{self, Mover, Tally, Way},
    names::Names,
    owner,
    settling::{Settling, balance},
    topology::{self, Topology},
};
use crate::{
    clock,
    edge::{
        celery::{self, Command},
        fault::{Fault, within},
        links::Links,
    },
    model::{Account, Edge, EdgeReport, Exposed, Wanted},
    settings::{IntakeType, OnQuarantine},
};

/// How often a queue is counted while it settles and no confirm comes in.
const SETTLE_LOOK: Duration = Duration::from_millis(10);
/// How often it is looked whether the way is still whole. Some ten commands, so a hundred workers make 30 a second.
const LOOK: Duration = Duration::from_secs(30);
/// Reports of bypasses, and repairs of a way that somebody took apart, come at most this often.
const FOLD: Duration = Duration::from_secs(1);

/// One ownership: from the moment this gate owns the worker to the first fault, or to `stop`.
pub(super) async fn serve(
    route: &Route,
    names: &Names,
    links: &Arc<Links>,
    ends: &mut Ends,
    memory: &mut Memory,
    stop: &CancellationToken,
) -> Result<(), Fault> {
    let control = topology::open(&links.control).await?;
    let topology =
        Topology { names, worker: &route.worker, intake: &route.intake, vhost: &route.vhost, user: &route.user };
    let mailbox = owner::own(links, &control, &topology, memory.owned_by_others > 0).await?;
    // Start shut: whatever an earlier owner left is taken away before anything else.
    topology.clear_edge(&control).await?;
    let is_plain = topology.declare(&links.control).await?;
    topology.declare_edge(&control).await?;
    let publish = publishing(links).await?;
    let bell = Arc::default();
    let mut serving = Serving {
        route,
        names,
        links,
        topology,
        control,
        publish,
        bell,
        is_plain,
        open: false,
        movers: Vec::new(),
        settling: None,
        maybe_deaf: &mut memory.maybe_deaf,
    };
    let before = serving.take_back().await?;
    // What waits there came before this gate did, so it is no bypass. Nobody waits for this account.
    serving.settling = Some(Settling::new(Wanted::shut(), before, None));
    serving.topology.prove(links, &serving.publish).await?;
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
    }
    outcome
}

/// A channel for messages. An alarm stops everything on the connection that publishes, and that is no reason to end the
/// other workers' connections.
async fn publishing(links: &Links) -> Result<Channel, Fault> {
    let opened = async {
        let channel = topology::open(&links.publish).await?;
        within("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    };
    match opened.await {
        Err(Fault::Silent { .. }) => Err(Fault::Blocked),
        opened => opened,
    }
}

/// A mover at work.
struct Moving {
    tally: Arc<Tally>,
    stop: CancellationToken,
    task: AbortOnDropHandle<Result<(), Fault>>,
}

impl Moving {
    /// The task itself ends a moment after it has said so, and rings no second time.
    fn has_ended(&self) -> bool {
        self.tally.ended.load(Relaxed) || self.task.is_finished()
    }
}

struct Serving<'a> {
    route: &'a Route,
    names: &'a Names,
    links: &'a Arc<Links>,
    topology: Topology<'a>,
    control: Channel,
    publish: Channel,
    /// Rung by every mover.
    bell: Arc<Notify>,
    /// Whether the intake has its alternate exchange as an argument, so that declaring it again shows whether it still has.
    is_plain: bool,
    open: bool,
    movers: Vec<Moving>,
    settling: Option<Settling>,
    maybe_deaf: &'a mut bool,
}

impl Serving<'_> {
    /// Says that the gate owns the worker, then follows what is wanted and watches what moves.
    async fn reconcile(
        &mut self,
        mut mailbox: Consumer,
        ends: &mut Ends,
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
            let folded = self.movers.iter().any(|moving| moving.tally.has_news());
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
                    Some(Ok(question)) => drop(tokio::spawn(owner::answer(self.publish.clone(), question, self.route.gate.clone()))),
                    Some(Err(error)) => return Err(Fault::command("hear the owner queue", error)),
                    None => return Err(Fault::command("hear the owner queue", lapin::ErrorKind::InvalidChannel(0).into())),
                },
                () = self.bell.notified() => {}
                () = sleep(SETTLE_LOOK), if settling => {}
                () = sleep_until(fold_until), if folded => {}
                () = sleep_until(look_at) => {
                    self.look().await?;
                    look_at = Instant::now() + LOOK;
                }
            }
            self.check_movers().await?;
            self.settle(ends).await?;
            if Instant::now() >= fold_until && (self.tell_bypass(ends).await? | self.mend().await?) {
                fold_until = Instant::now() + FOLD;
            }
        }
    }

    /// Shuts, takes back what waits in the lane, and gives the worker up, so that the next owner need not wait for the
    /// connection to end.
    async fn let_go(&mut self, ends: &Ends) -> Result<(), Fault> {
        if self.open {
            self.shut(Wanted::shut(), ends).await?;
            while self.settling.is_some() {
                self.settle(ends).await?;
                sleep(SETTLE_LOOK).await;
            }
        }
        self.stop_movers().await?;
        self.topology.disown(&self.control).await
    }

    async fn become_(&mut self, wanted: Wanted, ends: &Ends) -> Result<(), Fault> {
        let (is_open, name) = (self.open, &self.route.worker.name);
        match (wanted.edge, is_open) {
            (Edge::Shut, true) => self.shut(wanted, ends).await,
            (Edge::Open, false) => self.open(wanted, ends).await,
            (Edge::Shut, false) | (Edge::Open, true) => {
                ends.tell(name, EdgeReport::Is(wanted, clock::now().mono)).await;
                let (change, account) = (wanted.change, Account::default());
                ends.tell(name, EdgeReport::Settled { change, account, exposed: None }).await;
                Ok(())
            }
        }
    }

    async fn shut(&mut self, wanted: Wanted, ends: &Ends) -> Result<(), Fault> {
        // From here on the give-back publishes nothing more; what it has in flight it finishes.
        for moving in &self.movers {
            moving.stop.cancel();
        }
        if let Err(fault) = self.topology.shut_edge(&self.control).await {
            // The last resort, and a sure one: the broker shuts the edge when the connection ends.
            self.links.cut();
            return Err(fault);
        }
        self.open = false;
        if !self.control.status().connected() {
            // Somebody has deleted the edge exchange, and its bindings with it.
            self.control = topology::open(&self.links.control).await?;
        }
        ends.tell(&self.route.worker.name, EdgeReport::Is(wanted, clock::now().mono)).await;
        let before = self.take_back().await?;
        let (links, worker) = (Arc::clone(self.links), self.route.worker.name.clone());
        let ask = tokio::spawn(async move { celery::exposed(&links, worker.as_str()).await });
        let exposed = Some(AbortOnDropHandle::new(ask));
        if wanted.quarantine && self.route.worker.on_quarantine == OnQuarantine::Recycle {
            self.command(Command::Shutdown);
        }
        self.settling = Some(Settling::new(wanted, before, exposed));
        Ok(())
    }

    async fn open(&mut self, wanted: Wanted, ends: &Ends) -> Result<(), Fault> {
        self.stop_movers().await?;
        self.settling = None;
        if ends.wanted.borrow().change != wanted.change {
            // Stopping took its time, and meanwhile the wish has been withdrawn.
            return self.take_back().await.map(drop);
        }
        // From the first command on, a fault has something to take away again.
        self.open = true;
        self.topology.open_edge(&self.control).await?;
        ends.tell(&self.route.worker.name, EdgeReport::Is(wanted, clock::now().mono)).await;
        let mut newer = ends.wanted.clone();
        let before = tokio::select! {
            biased;
            // Nothing but the edge itself may hold up a shut. What has begun ends by itself.
            _ = newer.changed() => return Ok(()),
            before = self.give_back() => before?,
        };
        self.settling = Some(Settling::new(wanted, before, None));
        self.wake().await
    }

    /// Begins to give back, and says how many messages wait for it.
    async fn give_back(&mut self) -> Result<u64, Fault> {
        let mut before = 0;
        for queue in self.holding_queues() {
            before += topology::waiting(&self.control, &queue).await?;
            self.start(Way::GiveBack, &queue).await?;
        }
        Ok(before)
    }

    /// Tells the worker to consume its lane if nobody does, and it may have been told to stop. One that is away does not hear
    /// it, and needs not: it consumes when it comes.
    async fn wake(&self) -> Result<(), Fault> {
        if *self.maybe_deaf && topology::consumers(&self.control, &self.names.lane).await? == 0 {
            self.command(Command::AddConsumer);
        }
        Ok(())
    }

    /// Tells the worker's Celery something, apart from the edge's own work: a worker that is away or deaf is no fault of the
    /// edge's, and a broker in alarm must not hold up a shut.
    fn command(&self, command: Command) {
        let (links, name, lane) = (Arc::clone(self.links), self.route.worker.name.clone(), self.names.lane.clone());
        tokio::spawn(async move {
            match (celery::send(&links, name.as_str(), lane.as_str(), command).await, command) {
                // No worker has declared its mailbox yet, so there is none to be told.
                (Ok(()), _) | (Err(_), Command::AddConsumer) => {}
                (Err(fault), Command::CancelConsumer | Command::Shutdown) => {
                    tracing::warn!(worker = %name, ?command, "failed to {fault}");
                }
            }
        });
    }

    fn holding_queues(&self) -> Vec<ShortString> {
        match self.route.intake.kind {
            IntakeType::Direct | IntakeType::Topic => vec![self.names.holding.clone()],
            IntakeType::ConsistentHash => vec![self.names.lane_held.clone(), self.names.holding.clone()],
        }
    }

    /// Begins to empty the lane, and says how many messages wait there.
    async fn take_back(&mut self) -> Result<u64, Fault> {
        let lane = self.names.lane.clone();
        let before = topology::waiting(&self.control, &lane).await?;
        if before > u64::from(mover::INTERCEPT_WINDOW) {
            // More than the intercept can hold in hand: the worker would get the rest.
            self.command(Command::CancelConsumer);
            *self.maybe_deaf = true;
        }
        // The give-back goes on with what it has in flight while the intercept begins.
        self.start(Way::TakeBack, &lane).await?;
        Ok(before)
    }

    async fn start(&mut self, way: Way, queue: &ShortString) -> Result<(), Fault> {
        let tally = Arc::<Tally>::default();
        let consume = topology::open(&self.links.moves).await?;
        let (names, publish) = (self.names.clone(), self.publish.clone());
        // A task of its own, because whoever waits for it may turn to something else: lapin forgets a consumer whose making
        // is given up half way, and the broker would give it messages for ever. A mover that nobody wants any more ends.
        let starting = tokio::spawn(Mover::start(
            way,
            queue.clone(),
            names,
            consume,
            publish,
            Arc::clone(&tally),
            Arc::clone(&self.bell),
        ));
        let mover =
            self.topology.permit(starting.await.unwrap_or_else(|panic| Err(panicked(&panic))), queue.as_str())?;
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(mover.run(stop.clone())));
        self.movers.push(Moving { tally, stop, task });
        Ok(())
    }

    /// Stops every mover and waits for what it has in flight, so that nothing is moved against the new direction.
    async fn stop_movers(&mut self) -> Result<(), Fault> {
        for moving in self.movers.drain(..) {
            moving.stop.cancel();
            join(moving.task).await?;
        }
        Ok(())
    }

    /// A mover that ended by itself met a fault; one that was stopped has nothing more to say.
    async fn check_movers(&mut self) -> Result<(), Fault> {
        let (ended, going): (Vec<_>, Vec<_>) = self.movers.drain(..).partition(Moving::has_ended);
        self.movers = going;
        for moving in ended {
            join(moving.task).await?;
        }
        Ok(())
    }

    /// Tells the account once everything that waited has been moved, or its time is up.
    async fn settle(&mut self, ends: &Ends) -> Result<(), Fault> {
        let Some(mut settling) = self.settling.take() else { return Ok(()) };
        let moving: Vec<_> = self.movers.iter().filter(|moving| !moving.stop.is_cancelled()).collect();
        let sum = |count: fn(&Tally) -> &AtomicU64| moving.iter().map(|m| count(&m.tally).load(Relaxed)).sum::<u64>();
        let has_come = settling.has_come(sum(|tally| &tally.received));
        let time_up = Instant::now() >= settling.until;
        let unanswered = settling.exposed.as_ref().is_some_and(|asked| !asked.is_finished());
        let idle = moving.iter().all(|moving| moving.tally.idle());
        if !time_up && (!has_come || !idle || unanswered) {
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
        let in_hand = moving.iter().map(|moving| moving.tally.in_hand()).sum::<u64>();
        if waiting + in_hand > 0 && !time_up {
            self.settling = Some(settling);
            return Ok(());
        }
        let (moved, probes) = (sum(|tally| &tally.moved), sum(|tally| &tally.probes));
        let before = settling.before.saturating_sub(probes);
        // While it still comes, what is missing is on its way here: the broker counts it no more, and we not yet.
        let missing = if has_come { 0 } else { before.saturating_sub(moved) };
        let account = balance(before, moved, missing.max(waiting + in_hand));
        for moving in &moving {
            let waited = settling.before.max(moving.tally.received.load(Relaxed) + waiting);
            moving.tally.waited.store(waited, Relaxed);
        }
        let change = settling.wanted.change;
        let exposed = match settling.exposed.take() {
            Some(asked) if asked.is_finished() => asked.await.ok(),
            Some(_) => Some(Exposed::Unknown("the worker did not answer in time".to_owned())),
            None => None,
        };
        ends.tell(&self.route.worker.name, EdgeReport::Settled { change, account, exposed }).await;
        // Once more: commands travel apart, and a late one to stop may have come after the one to go on.
        if self.open {
            self.wake().await?;
            *self.maybe_deaf = false;
        }
        Ok(())
    }

    /// Messages that come to the holding queue while the edge is open say that somebody took the way apart: deleted the edge
    /// exchange, or the lane, which the worker then declared without our binding. True if the way was made again.
    async fn mend(&mut self) -> Result<bool, Fault> {
        let late = self.movers.iter().any(|moving| moving.tally.late.swap(false, Relaxed));
        if late && self.open {
            tracing::warn!(worker = %self.route.worker.name, "messages were held while the edge is open: making the way again");
            // On a channel of its own, because lapin remembers every declaration of a channel for as long as that lives.
            let channel = topology::open(&self.links.control).await?;
            self.topology.lane(&self.links.control).await?;
            self.topology.declare_edge(&channel).await?;
            self.topology.open_edge(&channel).await?;
            let _ = channel.close(200, "done".into()).await;
        }
        Ok(late)
    }

    /// Declares again what somebody may have deleted. Producers see nothing of a missing holding queue, nor of an intake that
    /// one of them made anew without its alternate exchange: their messages are confirmed, and nobody has them.
    async fn look(&self) -> Result<(), Fault> {
        let channel = topology::open(&self.links.control).await?;
        self.topology.declare_holding(&channel).await?;
        if self.is_plain && !self.topology.intake(&self.links.control).await? {
            return Err(Fault::Nowhere { exchange: self.names.intake.to_string() });
        }
        self.topology.declare_edge(&channel).await?;
        if self.open {
            self.topology.open_edge(&channel).await?;
        }
        let _ = channel.close(200, "done".into()).await;
        Ok(())
    }

    /// Reports what came past the shut edge, and takes the binding away that it came by. True if there was something.
    async fn tell_bypass(&mut self, ends: &Ends) -> Result<bool, Fault> {
        let mut told = false;
        for moving in &self.movers {
            let bypass = moving.tally.take_bypass();
            if bypass.messages == 0 {
                continue;
            }
            told = true;
            for (exchange, key) in &bypass.ways {
                if exchange == &self.names.intake {
                    self.topology.unbind_foreign(&self.control, key.as_str()).await?;
                }
            }
            let ways = bypass.ways.iter().map(|(exchange, key)| format!("exchange '{exchange}' key '{key}'")).collect();
            let report = EdgeReport::Bypass { messages: bypass.messages, ways };
            ends.tell(&self.route.worker.name, report).await;
        }
        Ok(told)
    }
}

async fn join(task: AbortOnDropHandle<Result<(), Fault>>) -> Result<(), Fault> {
    // A panic in a mover has lost nothing: its channel closes, and the broker has its messages back.
    task.await.unwrap_or_else(|panic| Err(panicked(&panic)))
}

fn panicked(panic: &JoinError) -> Fault {
    Fault::Silent { doing: format!("move messages ({panic})") }
}
