//! Moves messages: publish, wait for the confirm, then ack. A crash in between doubles a message and never loses one (G5).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, OptionFuture, try_join_all},
    stream::{FuturesOrdered, FuturesUnordered},
};
use lapin::{
    Channel,
    message::Delivery,
    options::{BasicAckOptions, BasicPublishOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    ears::{Ears, Origin, Spares},
    letter::{Destination, PROBE_HEADER, give_back, header, rehome, stray_key, take_back},
    mouth::{Confirmed, InFlight, Mouth, STOP_LIMIT, TOGETHER, in_flight, taken},
    names::Names,
};
use crate::{
    edge::{
        fault::{Fault, within},
        rabbitmq::links::Links,
    },
    failpoint::{self, Point},
};

/// Published and not yet confirmed. Enough to hide a confirm that takes 5 ms at 25,000 messages a second; also the number of
/// messages that may change places when a give-back is cut short by a shut, and that may be there twice after a kill.
const IN_FLIGHT: usize = 128;

/// Which way messages are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Edge shut: out of the lane, before the worker gets them.
    TakeBack,
    /// Edge open: out of a holding queue, to the worker.
    GiveBack,
    /// Out of the queues of a worker that is gone, to the one whose names these are.
    Rehome,
}

impl Way {
    const fn point(self, taking_back: Point, giving_back: Point) -> Point {
        match self {
            Self::TakeBack => taking_back,
            // Rehoming is no gate's, and gives back as well.
            Self::GiveBack | Self::Rehome => giving_back,
        }
    }
}

/// What a mover has done so far; shared with the edge.
#[derive(Debug)]
pub(super) struct Tally {
    /// Come from the broker, moved or not.
    pub(super) received: AtomicU64,
    /// Confirmed and acked.
    pub(super) moved: AtomicU64,
    /// Probe messages, which were dropped.
    pub(super) probes: AtomicU64,
    /// So many waited when the queue settled, or had come by then. What comes to the lane after them comes past the shut
    /// edge, and what is held after them is held although the edge is open.
    pub(super) waited: AtomicU64,
    /// The mover has ended.
    pub(super) ended: AtomicBool,
    /// Something was held although the edge is open.
    pub(super) late: AtomicBool,
    /// By which exchange and key messages came past the shut edge, and how many by each; taken out by whoever reports them.
    pub(super) bypass: Mutex<Vec<(ShortString, ShortString, u64)>>,
}

/// Keys can be as many as messages. What comes by more ways than this between two reports is counted with the last of them.
const MOST_WAYS: usize = 16;

impl Default for Tally {
    fn default() -> Self {
        Self {
            received: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            // Nothing is news before the queue has settled.
            waited: AtomicU64::new(u64::MAX),
            ended: AtomicBool::new(false),
            late: AtomicBool::new(false),
            bypass: Mutex::default(),
        }
    }
}

impl Tally {
    /// Whether everything that was received has been dealt with.
    pub(super) fn idle(&self) -> bool {
        self.received.load(Relaxed) == self.moved.load(Relaxed) + self.probes.load(Relaxed)
    }

    /// What has been received and not yet dealt with.
    pub(super) fn in_hand(&self) -> u64 {
        self.received.load(Relaxed).saturating_sub(self.moved.load(Relaxed) + self.probes.load(Relaxed))
    }

    /// Whether there is something to report or to mend.
    pub(super) fn has_news(&self) -> bool {
        self.late.load(Relaxed) || !self.bypass.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn take_bypass(&self) -> Vec<(ShortString, ShortString, u64)> {
        std::mem::take(&mut *self.bypass.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note_bypass(&self, delivery: &Delivery) {
        let mut bypass = self.bypass.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            bypass.iter().position(|(exchange, key, _)| *exchange == delivery.exchange && *key == delivery.routing_key);
        match known.or_else(|| bypass.len().checked_sub(1).filter(|last| *last + 1 >= MOST_WAYS)) {
            Some(at) => bypass[at].2 += 1,
            None => bypass.push((delivery.exchange.clone(), delivery.routing_key.clone(), 1)),
        }
    }
}

/// What a mover is asked while it moves.
#[derive(Debug)]
pub(super) enum Ask {
    /// To answer when everything has come that the broker had sent by then.
    Sweep(oneshot::Sender<()>),
    /// To consume by more than one channel: nothing waits any more whose order they could disturb, and what comes now comes
    /// past the shut edge.
    Spares,
}

/// What is asked of one mover at the same time at the most.
pub(super) const ASKS: usize = 2;

/// One queue being emptied.
pub(super) struct Mover {
    desk: Arc<Desk>,
    links: Arc<Links>,
    /// `None` while somebody publishes by it.
    mouth: Option<Mouth>,
    ears: Ears,
    asks: mpsc::Receiver<Ask>,
    /// Rung when everything in hand is done, when something came past the edge, and at the end.
    bell: Arc<Notify>,
}

impl Mover {
    /// Begins to consume `queue`, on channels of its own that it closes when it ends.
    pub(super) async fn start(
        way: Way,
        queue: ShortString,
        names: Names,
        links: Arc<Links>,
        asks: mpsc::Receiver<Ask>,
        tally: Arc<Tally>,
        bell: Arc<Notify>,
    ) -> Result<Self, Fault> {
        let mouth = Some(Mouth::open(Arc::clone(&links)));
        let ears = Ears::open(&links, queue, way).await?;
        failpoint::hit(way.point(Point::TakeBackConsuming, Point::GiveBackConsuming));
        let mark = AMQPValue::LongString(uuid::Uuid::new_v4().to_string().into());
        let desk = Arc::new(Desk { way, names, mark, unbind: ears.channel(), tally });
        Ok(Self { desk, links, mouth, ears, asks, bell })
    }

    /// Moves until told to stop. What is in hand and not yet published then goes back to its place in the queue.
    ///
    /// # Errors
    /// The broker's, with everything in hand back in the queue as soon as the channel is gone.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), Fault> {
        let mut publishing = None::<Publishing>;
        let mut in_flight = FuturesOrdered::<InFlight<Origin>>::new();
        // What has come is counted before its turn: what the broker has sent is no longer in its queue's count.
        let mut in_hand = VecDeque::new();
        let (mut sweeping, mut swept) = (FuturesUnordered::new(), Vec::new());
        let mut spares = None::<Spares>;
        let outcome = 'moving: loop {
            let room = IN_FLIGHT.saturating_sub(in_flight.len()).min(TOGETHER).min(in_hand.len());
            if room > 0
                && let Some(mouth) = self.mouth.take()
            {
                publishing = Some(publish(Arc::clone(&self.desk), mouth, in_hand.drain(..room).collect()).boxed());
            }
            // Cancel-safe: a stream's `next`, a token and a future that is kept have what they had when they are not the branch
            // that ran.
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                Some(first) = in_flight.next(), if !in_flight.is_empty() => {
                    if let Err(fault) = self.desk.finish(first, &mut in_flight, &mut self.ears).await {
                        break Err(fault);
                    }
                    self.ring_if_idle();
                }
                // Without a limit in time, because an alarm stops publishing for as long as it lasts. A link that is dead ends
                // this by its heartbeats.
                Some((back, published)) = OptionFuture::from(publishing.as_mut()) => {
                    (self.mouth, publishing) = (Some(back), None);
                    match published {
                        Ok(published) => in_flight.extend(published),
                        Err(fault) => break Err(fault),
                    }
                }
                heard = self.ears.next() => {
                    let mut heard = Some(heard);
                    while let Some(one) = heard {
                        let (origin, delivery) = match one {
                            Ok(one) => one,
                            Err(fault) => break 'moving Err(fault),
                        };
                        self.note(&delivery);
                        in_hand.push_back((origin, delivery));
                        // What has come with it is published with it.
                        heard = if in_hand.len() < TOGETHER { self.ears.next_now() } else { None };
                    }
                    failpoint::hit(self.desk.way.point(Point::TakeBackReceived, Point::GiveBackReceived));
                }
                // What the broker had sent before its answer is here since then, and what is here has come.
                () = std::future::ready(()), if !swept.is_empty() => swept.drain(..).for_each(tell),
                Some((answer, asked)) = sweeping.next(), if !sweeping.is_empty() => match answer {
                    Ok(()) => swept.push(asked),
                    Err(fault) => break Err(fault),
                },
                Some(opened) = OptionFuture::from(spares.as_mut()) => {
                    spares = None;
                    self.ears.add(opened.unwrap_or_default());
                    failpoint::hit(Point::TakeBackSpared);
                }
                Some(ask) = self.asks.recv() => match ask {
                    Ask::Sweep(asked) => {
                        let sweep = self.ears.sweep();
                        sweeping.push(async move { (sweep.await, asked) });
                    }
                    Ask::Spares => spares = Some(self.ears.spares(&self.links)),
                }
            }
        };
        failpoint::hit(self.desk.way.point(Point::TakeBackStopped, Point::GiveBackStopped));
        if outcome.is_ok() {
            // What is half published may be with the broker already: unless it is seen through, it would be there twice.
            let finish = async {
                if let Some(publishing) = publishing {
                    let (back, published) = publishing.await;
                    // Its channel closes with it, and confirms are still to come.
                    self.mouth = Some(back);
                    in_flight.extend(published?);
                }
                while let Some(first) = in_flight.next().await {
                    self.desk.finish(first, &mut in_flight, &mut self.ears).await?;
                }
                Ok::<_, Fault>(())
            };
            let _ = tokio::time::timeout(STOP_LIMIT, finish).await;
        }
        failpoint::hit(self.desk.way.point(Point::TakeBackFinished, Point::GiveBackFinished));
        if let Some(opening) = spares {
            // They are not to come when everybody has gone.
            self.ears.add(opening.await.unwrap_or_default());
        }
        self.links.rush.over().await;
        self.ears.close().await;
        failpoint::hit(self.desk.way.point(Point::TakeBackEnded, Point::GiveBackEnded));
        self.desk.tally.ended.store(true, Relaxed);
        self.bell.notify_one();
        outcome
    }

    /// Counts what has come, and sees whether it came as it should not.
    fn note(&self, delivery: &Delivery) {
        let tally = &self.desk.tally;
        let number = tally.received.fetch_add(1, Relaxed) + 1;
        let is_probe = header(&delivery.properties, PROBE_HEADER).is_some();
        if is_probe || delivery.redelivered || number <= tally.waited.load(Relaxed) {
            return;
        }
        match self.desk.way {
            Way::TakeBack => tally.note_bypass(delivery),
            Way::GiveBack | Way::Rehome => tally.late.store(true, Relaxed),
        }
        self.bell.notify_one();
    }

    fn ring_if_idle(&self) {
        if self.desk.tally.idle() {
            self.bell.notify_one();
        }
    }
}

/// What one mover knows of where its messages go.
#[derive(Debug)]
struct Desk {
    way: Way,
    names: Names,
    /// The value of the mark on moved messages that this mover sets, different for each.
    mark: AMQPValue,
    unbind: Channel,
    tally: Arc<Tally>,
}

impl Desk {
    /// Acks what has been confirmed: `first`, and everything behind it that has been by now.
    ///
    /// # Errors
    /// If one was returned, or the broker says so; then nothing more may be acked.
    async fn finish(
        &self,
        first: Confirmed<Origin>,
        in_flight: &mut FuturesOrdered<InFlight<Origin>>,
        ears: &mut Ears,
    ) -> Result<(), Fault> {
        let taken = taken("publish a moved message", first, in_flight)?;
        failpoint::hit(self.way.point(Point::TakeBackConfirmed, Point::GiveBackConfirmed));
        // They were published in the order in which they came, so everything up to the last one is confirmed.
        ears.ack(&taken).await?;
        failpoint::hit(self.way.point(Point::TakeBackAcked, Point::GiveBackAcked));
        self.tally.moved.fetch_add(taken.len() as u64, Relaxed);
        Ok(())
    }

    /// Publishes one message; the future resolves when the broker has said what became of it.
    async fn publish(
        &self,
        channel: &Channel,
        (origin, delivery): (Origin, Delivery),
    ) -> Result<Option<InFlight<Origin>>, Fault> {
        if header(&delivery.properties, PROBE_HEADER).is_some() {
            within("drop a probe", delivery.ack(BasicAckOptions::default())).await?;
            failpoint::hit(Point::GiveBackProbeDropped);
            self.tally.probes.fetch_add(1, Relaxed);
            return Ok(None);
        }
        let Destination { exchange, key, properties } = match self.way {
            Way::TakeBack => take_back(&delivery, &self.names, &self.mark),
            Way::GiveBack => give_back(&delivery, &self.names),
            Way::Rehome => rehome(&delivery, &self.names),
        };
        if let Some(key) = stray_key(self.way, &delivery, &self.names) {
            // It lies here because of a binding that earlier settings made. Left there, that would bring it back for ever, and
            // hold a second copy of what is now another worker's.
            let (queue, held) = (self.names.lane_held.clone(), self.names.intake_held.clone());
            let unbind = self.unbind.queue_unbind(queue, held, key.clone(), FieldTable::default());
            within("unbind a key that is no longer this worker's", unbind).await?;
            failpoint::hit(Point::GiveBackStrayUnbound);
        }
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish = channel.basic_publish(exchange, key, options, &delivery.data, properties);
        let confirm = publish.await.map_err(|error| Fault::command("publish a moved message", error))?;
        failpoint::hit(self.way.point(Point::TakeBackPublished, Point::GiveBackPublished));
        Ok(Some(in_flight(origin, confirm)))
    }
}

/// Some messages that are being published, and the mouth for the next ones.
type Publishing = BoxFuture<'static, (Mouth, Result<Vec<InFlight<Origin>>, Fault>)>;

/// Publishes in order. All in one go, because each publish by itself would wake lapin's thread, and write to the socket.
async fn publish(
    desk: Arc<Desk>,
    mut mouth: Mouth,
    batch: Vec<(Origin, Delivery)>,
) -> (Mouth, Result<Vec<InFlight<Origin>>, Fault>) {
    let published = match mouth.channel().await {
        Ok(channel) => try_join_all(batch.into_iter().map(|heard| desk.publish(&channel, heard))).await,
        Err(fault) => Err(fault),
    };
    (mouth, published.map(|published| published.into_iter().flatten().collect()))
}

fn tell(swept: oneshot::Sender<()>) {
    // Whoever asked may have turned to something else.
    let _ = swept.send(());
}
