//! The movers of one ownership, and what the worker is told meanwhile.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use lapin::types::ShortString;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinError,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{LOOK, Serving};
use crate::{
    edge::{
        celery::Command,
        fault::{Fault, is_refusal},
        rabbitmq::{
            consumed::Others,
            remote::{self, Sent},
            route::{
                Deaf,
                ears::INTERCEPT_WINDOW,
                feeding::Feeding,
                mover::{ASKS, Ask, Mover, Tally, Way},
                topology,
            },
        },
    },
    failpoint::{self, Point},
    settings::{Feed, IntakeType},
};

/// After an open, until it is looked again whether the worker consumes.
const HEAR: Duration = Duration::from_secs(1);
/// The same while the gate's own consumers end.
const HEAR_SOON: Duration = Duration::from_millis(50);

/// A mover at work.
pub(super) struct Moving {
    pub(super) tally: Arc<Tally>,
    pub(super) stop: CancellationToken,
    asks: mpsc::Sender<Ask>,
    task: AbortOnDropHandle<Result<(), Fault>>,
}

impl Moving {
    /// The task itself ends a moment after it has said so, and rings no second time.
    fn has_ended(&self) -> bool {
        self.tally.ended.load(Relaxed) || self.task.is_finished()
    }
}

/// Ends when everything has come that the broker had sent to these movers when this was called.
pub(super) fn sweep(movers: &[&Moving]) -> AbortOnDropHandle<()> {
    let all: Vec<_> = movers.iter().map(|moving| moving.asks.clone()).collect();
    AbortOnDropHandle::new(tokio::spawn(async move {
        for asks in all {
            let (swept, done) = oneshot::channel();
            // A mover that has ended says so itself.
            if asks.send(Ask::Sweep(swept)).await.is_ok() {
                let _ = done.await;
            }
        }
    }))
}

impl Serving<'_> {
    /// Begins to give back, and says how many messages wait for it.
    pub(super) async fn give_back(&mut self) -> Result<u64, Fault> {
        if let Some((feed, shared)) = self.route.feed.as_ref().zip(self.names.shared.clone()) {
            self.start_feeding(feed.clone(), shared).await?;
            return Ok(0);
        }
        let mut before = 0;
        for queue in self.holding_queues() {
            before += topology::waiting(&self.control, &queue).await?;
            failpoint::hit(Point::OpenCounted);
            self.start(Way::GiveBack, &queue).await?;
        }
        Ok(before)
    }

    /// Sees to it that the worker consumes its lane, if it may have been told to stop. One that is away does not hear it, and needs
    /// not: it consumes when it comes, unless it had stopped and only its link was lost. So it is looked again: less and less often
    /// until it has stopped, as it was told to, and now and then until it goes on.
    pub(super) async fn wake(&mut self) -> Result<(), Fault> {
        if *self.deaf == Deaf::No {
            return Ok(());
        }
        let others = self.others().await?;
        match others {
            Some(others) if others.at_most == 0 => {
                *self.deaf = Deaf::Perhaps;
                self.command(Command::AddConsumer);
            }
            Some(others) if others.consumers > 0 && *self.deaf == Deaf::Perhaps => *self.deaf = Deaf::No,
            // Whoever declares a lane again that is gone consumes it, too.
            Some(_) | None => {}
        }
        let is_unsure = others.is_some_and(|others| others.consumers == 0 && others.at_most > 0);
        self.hear_at = Instant::now()
            + match (self.opened.elapsed(), *self.deaf) {
                // The gate itself ends to consume.
                _ if is_unsure => HEAR_SOON,
                (since, Deaf::Soon) => since.clamp(HEAR, LOOK),
                (since, _) if since < HEAR => HEAR,
                // It may be away for long, and each look has its price.
                _ => LOOK,
            };
        Ok(())
    }

    /// Who consumes the lane besides the gate; `None` if somebody has deleted it.
    async fn others(&self) -> Result<Option<Others>, Fault> {
        // A channel of its own, because a lane that is not there ends it.
        let channel = topology::open(&self.links.control).await?;
        match self.links.consumed.others(&channel, &self.names.lane).await {
            Err(Fault::Command { error, .. }) if is_refusal(&error, 404) => Ok(None),
            others => {
                let _ = channel.close(200, "done".into()).await;
                others.map(Some)
            }
        }
    }

    /// Tells the worker to consume its lane no more. It is no part of a shut: Celery consumes nothing after its next reconnect until
    /// it is told to again (`wake`), and who has remote control turned off does not hear it.
    pub(super) fn silence(&mut self) {
        *self.deaf = Deaf::Soon;
        self.command(Command::CancelConsumer);
    }

    /// Tells the worker's Celery something, apart from the edge's own work: a worker that is away or deaf is no fault of the
    /// edge's, and a broker in alarm must not hold up a shut.
    fn command(&self, command: Command) {
        let (links, name, lane) = (Arc::clone(self.links), self.route.worker.name.clone(), self.names.lane.clone());
        tokio::spawn(async move {
            match (remote::send(&links, &name, lane.as_str(), command).await, command) {
                (Ok(Sent::Delivered), _) | (_, Command::AddConsumer) => {}
                (Ok(Sent::NoMailbox), Command::CancelConsumer | Command::Shutdown) => {
                    tracing::info!(worker = %name, ?command, "the worker has no mailbox: it is away, or has its remote control turned off");
                }
                (Err(fault), Command::CancelConsumer | Command::Shutdown) => {
                    tracing::warn!(worker = %name, ?command, "failed to {fault}");
                }
            }
        });
    }

    pub(super) fn holding_queues(&self) -> Vec<ShortString> {
        if self.names.shared.is_some() {
            // What waits there is everybody's, and nothing that an open gives back.
            return Vec::new();
        }
        match self.route.intake.kind {
            IntakeType::Direct | IntakeType::Topic => vec![self.names.holding.clone()],
            IntakeType::ConsistentHash => vec![self.names.lane_held.clone(), self.names.holding.clone()],
        }
    }

    /// Begins to empty the lane, and says how many messages wait there.
    pub(super) async fn take_back(&mut self) -> Result<u64, Fault> {
        let lane = self.names.lane.clone();
        let before = topology::waiting(&self.control, &lane).await?;
        failpoint::hit(Point::ShutCounted);
        if before > u64::from(INTERCEPT_WINDOW) {
            // More than the intercept can hold in hand: the worker would get the rest.
            self.silence();
        }
        // The give-back goes on with what it has in flight while the intercept begins.
        self.start(Way::TakeBack, &lane).await?;
        Ok(before)
    }

    /// The lane of a shut edge is empty: what comes to it now comes past the edge, perhaps many at once.
    pub(super) fn expect_bursts(&self) {
        for moving in self.movers.iter().filter(|moving| !moving.stop.is_cancelled()) {
            // One that does not take it has ended, and says so itself.
            let _ = moving.asks.try_send(Ask::Spares);
        }
    }

    async fn start(&mut self, way: Way, queue: &ShortString) -> Result<(), Fault> {
        let tally = Arc::<Tally>::default();
        let (links, names) = (Arc::clone(self.links), self.names.clone());
        let (asks, asked) = mpsc::channel(ASKS);
        // A task of its own, because whoever waits for it may turn to something else: lapin forgets a consumer whose making
        // is given up half way, and the broker would give it messages for ever. A mover that nobody wants any more ends.
        let starting = tokio::spawn(Mover::start(
            way,
            queue.clone(),
            names,
            links,
            asked,
            Arc::clone(&tally),
            Arc::clone(&self.bell),
        ));
        let mover =
            self.topology.permit(starting.await.unwrap_or_else(|panic| Err(panicked(&panic))), queue.as_str())?;
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(mover.run(stop.clone())));
        self.movers.push(Moving { tally, stop, asks, task });
        Ok(())
    }

    async fn start_feeding(&mut self, feed: Feed, shared: ShortString) -> Result<(), Fault> {
        let (links, names, worker) = (Arc::clone(self.links), self.names.clone(), self.route.worker.name.clone());
        // A task of its own, for the same reason.
        let starting = tokio::spawn(Feeding::start(worker, names, shared.clone(), feed, links, Arc::clone(&self.bell)));
        let feeding =
            self.topology.permit(starting.await.unwrap_or_else(|panic| Err(panicked(&panic))), shared.as_str())?;
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(feeding.run(stop.clone())));
        self.feedings.push((stop, task));
        Ok(())
    }

    /// From here on no mover publishes any more; what each has in flight it finishes.
    pub(super) fn stop_moving(&self) {
        for moving in &self.movers {
            moving.stop.cancel();
        }
        for (stop, _) in &self.feedings {
            stop.cancel();
        }
    }

    /// Stops every mover and waits for its end.
    pub(super) async fn stop_movers(&mut self) -> Result<(), Fault> {
        self.stop_moving();
        for moving in self.movers.drain(..) {
            join(moving.task).await?;
        }
        for (_, task) in self.feedings.drain(..) {
            join(task).await?;
        }
        Ok(())
    }

    /// A mover that ended by itself met a fault; one that was stopped has nothing more to say.
    pub(super) async fn check_movers(&mut self) -> Result<(), Fault> {
        let (ended, going): (Vec<_>, Vec<_>) = self.movers.drain(..).partition(Moving::has_ended);
        self.movers = going;
        for moving in ended {
            self.untold.extend(moving.tally.take_bypass());
            join(moving.task).await?;
        }
        let (ended, going): (Vec<_>, Vec<_>) = self.feedings.drain(..).partition(|(_, task)| task.is_finished());
        self.feedings = going;
        for (_, task) in ended {
            let fed = join(task).await;
            self.topology.permit(fed, self.names.holding.as_str())?;
        }
        Ok(())
    }
}

async fn join(task: AbortOnDropHandle<Result<(), Fault>>) -> Result<(), Fault> {
    // A panic in a mover has lost nothing: its channel closes, and the broker has its messages back.
    task.await.unwrap_or_else(|panic| Err(panicked(&panic)))
}

fn panicked(panic: &JoinError) -> Fault {
    Fault::Silent { doing: format!("move messages ({panic})") }
}
