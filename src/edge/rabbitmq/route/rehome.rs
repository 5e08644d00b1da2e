//! Gives what waits for a worker that is gone to another one's intake, or to the queue that the other shares.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{StreamExt, future::try_join_all};
use lapin::{
    Channel, Consumer,
    types::{FieldTable, ShortString},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Route,
    mover::{ASKS, Ask, Mover, Tally, Way},
    names::Names,
    owner,
    topology::{self, Topology},
};
use crate::{
    amqp::Link,
    edge::{
        fault::{Fault, within},
        links::Connect,
        rabbitmq::{links::Links, wire},
        rehome::{Outcome, Plan, RehomeError},
    },
    settings::{Broker, EdgeKind, FeedIntake, RouteIntake, Worker, broker_url::AmqpUrl},
};

/// Between two looks at a queue that is being emptied; each is one command.
const LOOK: Duration = Duration::from_millis(100);

/// See [`crate::edge::rehome::run`].
pub(crate) async fn run(
    plan: &Plan,
    broker: &Broker,
    url: &AmqpUrl,
    name: &str,
    stop: &CancellationToken,
    mut tell: impl FnMut(u64, u64) + Send,
) -> Result<Outcome, RehomeError> {
    let links = Arc::new(Links::connect(broker, name).await?);
    let moved = tokio::select! {
        moved = rehome(plan, &links, (url, name), stop, &mut tell) => moved,
        // The lock may have gone with one connection while the others still move.
        cause = links.lost() => {
            tracing::warn!(cause, "lost the connection to RabbitMQ; what was not confirmed is where it was");
            links.cut();
            Err(Fault::LinkDown.into())
        }
    };
    links.goodbye().await;
    moved
}

async fn rehome(
    plan: &Plan,
    links: &Arc<Links>,
    (url, name): (&AmqpUrl, &str),
    stop: &CancellationToken,
    tell: &mut (impl FnMut(u64, u64) + Send),
) -> Result<Outcome, RehomeError> {
    let (vhost, user) = (url.vhost.as_str(), url.user.as_str());
    let (intake, shared) = way(&plan.gone);
    let names = Names::new(&plan.gone, &intake, shared);
    let gone = Topology { names: &names, worker: &plan.gone, intake: &intake, vhost, user };
    let control = topology::open(&links.control).await?;
    let mailbox = owner::own(links, &control, &gone, false).await?;
    let _answering = answer(mailbox, Arc::clone(links), name.to_owned());
    gone.clear_edge(&control).await?;
    let sources = sources(plan, &links.control).await?;

    let (intake, shared) = way(&plan.to);
    let into = Names::new(&plan.to, &intake, shared);
    let target = Topology { names: &into, worker: &plan.to, intake: &intake, vhost, user };
    // The other's gate may never have run. What is there already stays as it is.
    target.declare(&links.control).await?;

    if sources.iter().any(|source| source.queue.as_str() == plan.held()) {
        // Who has taken over a key of the one that is gone would else be given its messages for ever: each would come back here
        // as well.
        target.permit(unbind(&control, plan, &into).await, &plan.held())?;
    }
    let before: u64 = sources.iter().map(|source| source.waiting).sum();
    let (mut moved, mut probes) = (0, 0);
    for source in &sources {
        let emptied = Emptying { source, into: &into, links, moved, before };
        let (more, dropped) = target.permit(emptied.run(stop, tell).await, source.queue.as_str())?;
        (moved, probes) = (moved + more, probes + dropped);
    }
    let channel = topology::open(&links.control).await?;
    let counts = try_join_all(sources.iter().map(|source| topology::waiting(&channel, &source.queue))).await?;
    gone.disown(&control).await?;
    Ok(Outcome { before: before.saturating_sub(probes), moved, waiting: counts.iter().sum() })
}

/// The exchange by which messages come to a worker, and the queue that it shares with others, if it does.
pub(crate) fn way(worker: &Worker) -> (RouteIntake, Option<&str>) {
    match &worker.edge {
        EdgeKind::Route(intake) => (intake.clone(), None),
        EdgeKind::Feed(feed) => match &feed.intake {
            FeedIntake::Queue(queue) => (Route::fed_by(worker, queue), Some(queue)),
            // Settings with such an edge are refused where the broker is RabbitMQ.
            FeedIntake::Exchange { exchange, kind, keys } => {
                (RouteIntake { exchange: exchange.clone(), kind: *kind, keys: keys.clone() }, None)
            }
        },
    }
}

/// Answers a gate that wants the worker meanwhile.
fn answer(mut mailbox: Consumer, links: Arc<Links>, name: String) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(Ok(question)) = mailbox.next().await {
            owner::answer(Arc::clone(&links), question, name.clone()).await;
        }
    }))
}

/// A queue that is to be emptied.
struct Source {
    queue: ShortString,
    waiting: u64,
}

/// Where messages wait for the worker that is gone, the oldest first: what its lane had when its edge went, then what was held
/// since.
async fn sources(plan: &Plan, control: &Link) -> Result<Vec<Source>, RehomeError> {
    let (worker, lane) = (plan.gone.name.to_string(), plan.gone.lane.clone());
    let mut sources = Vec::new();
    for queue in [lane.clone(), plan.held()] {
        let queue = ShortString::from(queue);
        let Some(count) = wire::count_if_there(control, &queue).await? else { continue };
        if queue.as_str() == lane && count.consumer_count() > 0 {
            return Err(RehomeError::Consumed { worker, lane, consumers: count.consumer_count() });
        }
        sources.push(Source { queue, waiting: u64::from(count.message_count()) });
    }
    if sources.is_empty() && !plan.listed {
        return Err(RehomeError::NoQueues { worker, lane });
    }
    Ok(sources)
}

/// Takes the other's keys from the holding queue of the one that is gone; a binding that is not there is no error.
async fn unbind(control: &Channel, plan: &Plan, into: &Names) -> Result<(), Fault> {
    let keys = into.keys.as_ref().filter(|_| into.shared.is_none());
    for key in keys.into_iter().flat_map(|(_, keys)| keys) {
        let held = plan.held();
        let unbind =
            control.queue_unbind(held.into(), into.intake_held.clone(), key.as_str().into(), FieldTable::default());
        within("unbind the other's keys from the holding queue", unbind).await?;
    }
    Ok(())
}

/// One queue being emptied.
struct Emptying<'a> {
    source: &'a Source,
    into: &'a Names,
    links: &'a Arc<Links>,
    /// Of all queues, until now.
    moved: u64,
    before: u64,
}

impl Emptying<'_> {
    /// Says how many were moved, and how many were no messages but a gate's probes.
    ///
    /// It ends when as many have gone as waited at the beginning, even if there are more by then: who still publishes, or a
    /// binding that brings back what goes out, must not keep it going for ever.
    async fn run(
        &self,
        stop: &CancellationToken,
        tell: &mut (impl FnMut(u64, u64) + Send),
    ) -> Result<(u64, u64), Fault> {
        if self.source.waiting == 0 || stop.is_cancelled() {
            return Ok((0, 0));
        }
        let (tally, bell) = (Arc::<Tally>::default(), Arc::<Notify>::default());
        let (asks, asked) = mpsc::channel(ASKS);
        let (queue, into, links) = (self.source.queue.clone(), self.into.clone(), Arc::clone(self.links));
        let mover = Mover::start(Way::Rehome, queue, into, links, asked, Arc::clone(&tally), Arc::clone(&bell)).await?;
        let enough = stop.child_token();
        let mut moving = AbortOnDropHandle::new(tokio::spawn(mover.run(enough.clone())));
        let channel = topology::open(&self.links.control).await?;
        let (mut swept, mut ended) = (false, None);
        while ended.is_none() && !enough.is_cancelled() {
            // Cancel-safe: the handle, the bell and the token keep what is not taken; the timer is made anew.
            tokio::select! {
                over = &mut moving => {
                    ended = Some(over);
                    continue;
                }
                () = bell.notified() => {}
                () = stop.cancelled() => continue,
                () = sleep(LOOK) => {}
            }
            let gone = tally.moved.load(Relaxed) + tally.probes.load(Relaxed);
            tell(self.moved + tally.moved.load(Relaxed), self.before);
            let is_empty = tally.idle() && topology::waiting(&channel, &self.source.queue).await? == 0 && tally.idle();
            if gone >= self.source.waiting || (is_empty && swept) {
                enough.cancel();
            } else if is_empty {
                // What the broker has sent and has not come yet is in no count.
                let (answer, come) = oneshot::channel();
                let _ = asks.send(Ask::Sweep(answer)).await;
                // A mover that ends meanwhile answers by letting go of the question, and is heard above.
                swept = come.await.is_ok();
            }
        }
        // It ends well only if it was told to.
        let over = match ended {
            Some(over) => over,
            None => moving.await,
        };
        over.unwrap_or_else(|panic| Err(Fault::Silent { doing: format!("move messages ({panic})") }))?;
        let _ = channel.close(200, "done".into()).await;
        Ok((tally.moved.load(Relaxed), tally.probes.load(Relaxed)))
    }
}
