//! Feeds a lane from a queue that many workers share: consume, publish to the open edge, wait for the confirm, then ack.
//!
//! A message leaves the shared queue only when the lane has room for it, so that whoever is free gets it; and an ack lets the
//! broker send the next one, so nothing is acked before there is room for what may come then. While a lane is full nobody
//! consumes for it, and nothing is handed back in order to wait: a quorum queue counts that, and drops what came back too
//! often.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::try_join_all, stream::FuturesOrdered};
use lapin::{
    Channel, Consumer,
    message::Delivery,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions,
        BasicQosOptions,
    },
    types::{FieldTable, ShortString},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    letter::{self, Destination, PROBE_HEADER, header},
    mouth::{Confirmed, InFlight, Mouth, TOGETHER, given_up, in_flight, taken},
    mover::{ASKS, Mover, Tally, Way},
    names::Names,
    topology,
};
use crate::{
    edge::{
        fault::{Fault, within},
        rabbitmq::{consumed::Others, links::Links, wire},
    },
    failpoint::{self, Point},
    model::WorkerName,
    settings::Feed,
};

/// In hand at the most, whatever the lane has room for: more than the broker confirms together.
const WINDOW: u64 = 1024;
/// The first and the longest pause between two looks at a full lane: a worker that runs one short task after the other is not
/// kept waiting, and one with a long task costs twenty looks a second.
const FULL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Between two looks for a worker that does not consume its lane: the first while there is work for it, else the longer it is
/// away, the rarer.
const ABSENT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// What was seen of the lane longer ago than this is looked at again before anything is fed.
const FRESH: Duration = Duration::from_secs(1);

/// Feeds one lane while its edge is open.
#[derive(Debug)]
pub(super) struct Feeding {
    worker: WorkerName,
    names: Names,
    shared: ShortString,
    feed: Feed,
    links: Arc<Links>,
    /// Consumes and acks.
    consume: Channel,
    /// Counts the lane.
    look: Channel,
    mouth: Mouth,
    bell: Arc<Notify>,
    /// Since when the worker does not consume.
    absent_since: Option<Instant>,
}

/// What was seen of the lane.
#[derive(Debug, Clone, Copy)]
struct Lane {
    waiting: u64,
    /// The worker's.
    consumers: u32,
    /// Whether the gate consumed it as well: what was taken back while the edge was shut has not ended yet.
    and_we: bool,
    seen: Instant,
}

impl Lane {
    /// How many more it may have; none while nobody consumes it.
    fn room(self, depth: u32) -> u64 {
        if self.consumers == 0 { 0 } else { u64::from(depth).saturating_sub(self.waiting) }
    }
}

/// Why nobody consumes for the lane any more.
enum Ended {
    Stopped,
    /// There is no room, or nobody to feed.
    Full(Lane),
}

impl Feeding {
    pub(super) async fn start(
        worker: WorkerName,
        names: Names,
        shared: ShortString,
        feed: Feed,
        links: Arc<Links>,
        bell: Arc<Notify>,
    ) -> Result<Self, Fault> {
        let mouth = Mouth::open(Arc::clone(&links));
        let (consume, look) = tokio::try_join!(topology::open(&links.moves), topology::open(&links.moves))?;
        failpoint::hit(Point::FeedStarted);
        Ok(Self { worker, names, shared, feed, links, consume, look, mouth, bell, absent_since: None })
    }

    /// Feeds until told to stop. What is in hand and not yet published then goes back to its place in the queue.
    ///
    /// # Errors
    /// The broker's, with everything in hand back in the queue as soon as the channel is gone.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), Fault> {
        let outcome = self.feed(&stop).await;
        failpoint::hit(Point::FeedStopped);
        self.links.rush.over().await;
        // Closing the channel puts back what was delivered and not acked, each message in its place.
        let _ = within("stop feeding", self.consume.close(200, "done".into())).await;
        let _ = within("stop feeding", self.look.close(200, "done".into())).await;
        failpoint::hit(Point::FeedEnded);
        self.bell.notify_one();
        outcome
    }

    async fn feed(&mut self, stop: &CancellationToken) -> Result<(), Fault> {
        let (mut lane, mut pause) = (self.lane().await?, FULL.0);
        loop {
            let room = lane.room(self.feed.depth);
            if room > 0 {
                self.absent_since = None;
                pause = FULL.0;
                match self.consume(room, stop).await? {
                    Ended::Stopped => return Ok(()),
                    Ended::Full(seen) => lane = seen,
                }
                continue;
            }
            if lane.consumers == 0 && !lane.and_we {
                let since = *self.absent_since.get_or_insert(lane.seen);
                let has_work = topology::waiting(&self.look, &self.shared).await? > 0;
                pause = if has_work { ABSENT.0 } else { (since.elapsed() / 4).clamp(ABSENT.0, ABSENT.1) };
                if lane.waiting > 0 && since.elapsed() >= self.feed.offline_after {
                    self.take_back(stop).await?;
                }
            } else {
                self.absent_since = None;
                pause = pause.min(FULL.1);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = sleep(pause) => {}
            }
            pause *= 2;
            lane = self.lane().await?;
        }
    }

    /// Consumes for the lane for as long as it has room.
    async fn consume(&mut self, mut room: u64, stop: &CancellationToken) -> Result<Ended, Fault> {
        let window = room.min(WINDOW);
        let qos = u16::try_from(window).unwrap_or(u16::MAX);
        within("consume the intake", self.consume.basic_qos(qos, BasicQosOptions::default())).await?;
        let _consuming = self.links.consumed.begin(self.shared.as_str());
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consuming = wire::consume(&self.consume, self.shared.clone(), options, arguments, "consume the intake");
        let mut consumer = consuming.await?;
        failpoint::hit(Point::FeedConsuming);
        let mut lane = Lane { waiting: 0, consumers: 1, and_we: false, seen: Instant::now() };
        let mut hand = Hand::default();
        // A worker that goes while nothing comes is to be missed all the same.
        let idle = (self.feed.offline_after / 2).clamp(ABSENT.0, Duration::from_secs(5));
        loop {
            // Cancel-safe: a stream's `next` and a token keep what they have when they are not the branch that ran.
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.finish(&mut hand, stop).await?;
                    return Ok(Ended::Stopped);
                }
                Some(confirmed) = hand.in_flight.next(), if !hand.in_flight.is_empty() => {
                    hand.take(confirmed)?;
                    failpoint::hit(Point::FeedConfirmed);
                    // An ack opens the window for as many more. Nothing else is in the way of it but room.
                    let potential = window - hand.published + hand.unacked();
                    if room < potential {
                        lane = self.lane().await?;
                        failpoint::hit(Point::FeedLooked);
                        // What is in flight may be in the lane's count or not be there yet.
                        room = lane.room(self.feed.depth).saturating_sub(hand.in_flight.len() as u64);
                    }
                    if room >= potential {
                        self.ack(&mut hand).await?;
                    } else if hand.in_flight.is_empty() || lane.consumers == 0 {
                        return self.pause(consumer, hand, lane, stop).await;
                    }
                }
                delivery = consumer.next() => {
                    let delivery = match delivery {
                        Some(Ok(delivery)) => delivery,
                        Some(Err(error)) => return Err(Fault::command("consume the intake", error)),
                        None => return Err(Fault::command("consume the intake", lapin::ErrorKind::InvalidChannel(0).into())),
                    };
                    failpoint::hit(Point::FeedReceived);
                    if lane.seen.elapsed() > FRESH {
                        lane = self.lane().await?;
                        room = lane.room(self.feed.depth).saturating_sub(hand.in_flight.len() as u64);
                        if room == 0 {
                            self.hand_back(&delivery).await?;
                            return self.pause(consumer, hand, lane, stop).await;
                        }
                    }
                    let mut together = vec![delivery];
                    while together.len() < TOGETHER
                        && let Some(Some(Ok(delivery))) = consumer.next().now_or_never()
                    {
                        together.push(delivery);
                    }
                    room = room.saturating_sub(together.len() as u64);
                    self.publish_or_stop(together, &mut hand, stop).await?;
                }
                () = sleep(idle), if hand.published == 0 => {
                    lane = self.lane().await?;
                    room = lane.room(self.feed.depth);
                    if room < window {
                        return self.pause(consumer, hand, lane, stop).await;
                    }
                }
            }
        }
    }

    /// Stops consuming, and only then acks: nothing more comes in the place of what is acked.
    async fn pause(
        &mut self,
        mut consumer: Consumer,
        mut hand: Hand,
        lane: Lane,
        stop: &CancellationToken,
    ) -> Result<Ended, Fault> {
        let cancel = self.consume.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        within("consume the intake no more", cancel).await?;
        failpoint::hit(Point::FeedCancelled);
        // What was sent before the answer was sent into the window that there was room for.
        while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
            if lane.consumers == 0 {
                self.hand_back(&delivery).await?;
                continue;
            }
            if stop.is_cancelled() {
                // It goes back to its place with the channel.
                break;
            }
            self.publish_or_stop(vec![delivery], &mut hand, stop).await?;
        }
        self.finish(&mut hand, stop).await?;
        failpoint::hit(Point::FeedPaused);
        if stop.is_cancelled() { Ok(Ended::Stopped) } else { Ok(Ended::Full(self.lane().await?)) }
    }

    /// Waits for every confirm, and acks. In an alarm a confirm takes as long as that, so one who is told to stop does not wait
    /// for all of them; what is not acked goes back to the queue.
    async fn finish(&self, hand: &mut Hand, stop: &CancellationToken) -> Result<(), Fault> {
        let given_up = given_up(stop);
        tokio::pin!(given_up);
        while !hand.in_flight.is_empty() {
            tokio::select! {
                biased;
                Some(confirmed) = hand.in_flight.next() => hand.take(confirmed)?,
                () = &mut given_up => break,
            }
        }
        self.ack(hand).await
    }

    async fn ack(&self, hand: &mut Hand) -> Result<(), Fault> {
        let Some(tag) = hand.confirmed.back().copied() else { return Ok(()) };
        hand.published -= hand.confirmed.len() as u64;
        hand.confirmed.clear();
        let acked = within("ack what was fed", self.consume.basic_ack(tag, BasicAckOptions { multiple: true })).await;
        acked.inspect(|()| failpoint::hit(Point::FeedAcked))
    }

    async fn hand_back(&self, delivery: &Delivery) -> Result<(), Fault> {
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        within("put a message back", delivery.nack(options)).await.map(|_| failpoint::hit(Point::FeedHandedBack))
    }

    /// Publishes, but not for as long as an alarm lasts when told to stop. What is half published then is mostly with the broker
    /// already, so it is given the time to be seen through: it would be there twice.
    async fn publish_or_stop(
        &mut self,
        deliveries: Vec<Delivery>,
        hand: &mut Hand,
        stop: &CancellationToken,
    ) -> Result<(), Fault> {
        tokio::select! {
            biased;
            published = self.publish(deliveries, hand) => published,
            () = given_up(stop) => Ok(()),
        }
    }

    /// Publishes in order. All in one go, because each publish by itself would wake lapin's thread, and write to the socket.
    async fn publish(&mut self, deliveries: Vec<Delivery>, hand: &mut Hand) -> Result<(), Fault> {
        let channel = self.mouth.channel().await?;
        let names = &self.names;
        let publishing = deliveries.into_iter().map(|delivery| {
            let channel = channel.clone();
            async move {
                if header(&delivery.properties, PROBE_HEADER).is_some() {
                    within("drop a probe", delivery.ack(BasicAckOptions::default())).await?;
                    return Ok::<_, Fault>(None);
                }
                let Destination { exchange, key, properties } = letter::feed(&delivery, names);
                let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let publish = channel.basic_publish(exchange, key, options, &delivery.data, properties);
                let confirm = publish.await.map_err(|error| Fault::command("feed a message", error))?;
                Ok(Some((delivery.delivery_tag, confirm)))
            }
        });
        for (tag, confirm) in try_join_all(publishing).await?.into_iter().flatten() {
            hand.published += 1;
            hand.in_flight.push_back(in_flight(tag, confirm));
        }
        failpoint::hit(Point::FeedPublished);
        Ok(())
    }

    async fn lane(&self) -> Result<Lane, Fault> {
        let Others { waiting, consumers, and_we, .. } =
            self.links.consumed.others(&self.look, &self.names.lane).await?;
        Ok(Lane { waiting, consumers, and_we, seen: Instant::now() })
    }

    /// Puts what waits in the lane of a worker that is away back to the shared queue, unless it comes meanwhile.
    async fn take_back(&mut self, stop: &CancellationToken) -> Result<(), Fault> {
        let waiting = self.lane().await?.waiting;
        tracing::info!(worker = %self.worker, messages = waiting, "the worker is away: what waits in its lane goes back to the intake");
        failpoint::hit(Point::FeedAway);
        let (tally, (_asks, asked)) = (Arc::<Tally>::default(), mpsc::channel(ASKS));
        let (lane, names, links) = (self.names.lane.clone(), self.names.clone(), Arc::clone(&self.links));
        let bell = Arc::default();
        let mover = Mover::start(Way::TakeBack, lane, names, links, asked, Arc::clone(&tally), bell).await?;
        let done = CancellationToken::new();
        let mut task = AbortOnDropHandle::new(tokio::spawn(mover.run(done.clone())));
        loop {
            let lane = self.lane().await?;
            if lane.consumers > 0 || (lane.waiting == 0 && tally.idle()) {
                break;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                ended = &mut task => return ended.unwrap_or(Ok(())),
                () = sleep(FULL.1) => {}
            }
        }
        done.cancel();
        failpoint::hit(Point::FeedEmptied);
        task.await.unwrap_or(Ok(()))
    }
}

/// What was consumed and is not acked.
#[derive(Default)]
struct Hand {
    in_flight: FuturesOrdered<InFlight<u64>>,
    /// Delivery tags, ascending: the lane has them.
    confirmed: VecDeque<u64>,
    /// How many are published and not acked.
    published: u64,
}

impl Hand {
    fn unacked(&self) -> u64 {
        self.confirmed.len() as u64
    }

    /// Takes one confirm in, and every other that has come by now.
    fn take(&mut self, first: Confirmed<u64>) -> Result<(), Fault> {
        self.confirmed.extend(taken("feed a message", first, &mut self.in_flight)?);
        Ok(())
    }
}
