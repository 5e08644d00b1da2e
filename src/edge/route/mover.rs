//! Moves messages: publish, wait for the confirm, then ack. A crash in between doubles a message and never loses one (G5).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    letter::{Destination, PROBE_HEADER, give_back, header, stray_key, take_back},
    names::Names,
    topology,
};
use crate::edge::{
    fault::{Fault, within},
    links::Links,
};

/// Published and not yet confirmed. Enough to hide a round trip of 0.5 ms at 50,000 messages a second; also the number of
/// messages that may change places when a give-back is cut short by a shut.
const IN_FLIGHT: usize = 32;
/// What a give-back has in hand at the most.
const GIVE_BACK_WINDOW: u16 = 256;
/// What the intercept has in hand at the most: one that is used up lets the worker have the rest (FACTS.md, lane
/// intercept), and one without limit would hold a whole backlog in memory. At Celery's usual 1 KiB a message this is 10 MiB.
pub(super) const INTERCEPT_WINDOW: u16 = 10_000;
/// Celery's consumers have priority 0.
const INTERCEPT_PRIORITY: i32 = 100;
/// For what is in flight when a mover is told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Which way messages are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Edge shut: out of the lane, before the worker gets them.
    TakeBack,
    /// Edge open: out of a holding queue, to the worker.
    GiveBack,
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
    /// Messages that came so, and how; taken out by whoever reports them.
    pub(super) bypass: Mutex<Bypass>,
}

/// Messages that came past the shut edge.
#[derive(Debug, Default)]
pub(super) struct Bypass {
    pub(super) messages: u64,
    /// Exchange and key, each pair once; at most [`MOST_WAYS`].
    pub(super) ways: Vec<(ShortString, ShortString)>,
}

/// Keys can be as many as messages; a report with more than this helps nobody.
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
        self.late.load(Relaxed) || self.bypass.lock().unwrap_or_else(PoisonError::into_inner).messages > 0
    }

    pub(super) fn take_bypass(&self) -> Bypass {
        std::mem::take(&mut *self.bypass.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note_bypass(&self, delivery: &Delivery) {
        let mut bypass = self.bypass.lock().unwrap_or_else(PoisonError::into_inner);
        bypass.messages += 1;
        let way = (delivery.exchange.clone(), delivery.routing_key.clone());
        if bypass.ways.len() < MOST_WAYS && !bypass.ways.contains(&way) {
            bypass.ways.push(way);
        }
    }
}

/// One queue being emptied.
#[derive(Debug)]
pub(super) struct Mover {
    way: Way,
    names: Names,
    /// The value of the mark on moved messages that this mover sets, different for each.
    mark: AMQPValue,
    links: Arc<Links>,
    consume: Channel,
    publish: Channel,
    consumer: Consumer,
    /// Whoever asks is answered when everything has come that the broker had sent by then.
    sweeps: mpsc::Receiver<oneshot::Sender<()>>,
    tally: Arc<Tally>,
    /// Rung when everything in hand is done, when something came past the edge, and at the end.
    bell: Arc<Notify>,
}

impl Mover {
    /// Begins to consume `queue` on a channel of its own, which the mover closes when it ends.
    pub(super) async fn start(
        way: Way,
        queue: ShortString,
        names: Names,
        links: Arc<Links>,
        publish: Channel,
        sweeps: mpsc::Receiver<oneshot::Sender<()>>,
        tally: Arc<Tally>,
        bell: Arc<Notify>,
    ) -> Result<Self, Fault> {
        let consume = topology::open(&links.moves).await?;
        let (window, arguments) = match way {
            Way::TakeBack => {
                let mut arguments = FieldTable::default();
                arguments.insert("x-priority".into(), AMQPValue::LongInt(INTERCEPT_PRIORITY));
                (INTERCEPT_WINDOW, arguments)
            }
            Way::GiveBack => (GIVE_BACK_WINDOW, FieldTable::default()),
        };
        within("consume", consume.basic_qos(window, BasicQosOptions::default())).await?;
        let tag = ShortString::default();
        let consumer =
            within("consume", consume.basic_consume(queue, tag, BasicConsumeOptions::default(), arguments)).await?;
        let mark = AMQPValue::LongString(uuid::Uuid::new_v4().to_string().into());
        Ok(Self { way, names, mark, links, consume, publish, consumer, sweeps, tally, bell })
    }

    /// Moves until told to stop. What is in hand and not yet published then goes back to its place in the queue.
    ///
    /// # Errors
    /// The broker's, with everything in hand back in the queue as soon as the channel is gone.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), Fault> {
        let mut in_flight = FuturesUnordered::new();
        // What has come is counted before its turn: what the broker has sent is no longer in its queue's count.
        let mut in_hand = VecDeque::new();
        let (mut sweeping, mut swept) = (FuturesUnordered::new(), Vec::new());
        let outcome = loop {
            // Cancel-safe: a stream's `next` and a token keep what they have when they are not the branch that ran.
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                Some(done) = in_flight.next(), if !in_flight.is_empty() => {
                    if let Err(fault) = done {
                        break Err(fault);
                    }
                }
                delivery = self.consumer.next() => match delivery {
                    Some(Ok(delivery)) => {
                        self.note(&delivery);
                        in_hand.push_back(delivery);
                    }
                    Some(Err(error)) => break Err(Fault::command("consume", error)),
                    None => break Err(Fault::command("consume", lapin::ErrorKind::InvalidChannel(0).into())),
                },
                // What the broker had sent before its answer is here since then, and what is here has come.
                () = std::future::ready(()), if !swept.is_empty() => swept.drain(..).for_each(tell),
                Some((answer, asked)) = sweeping.next(), if !sweeping.is_empty() => match answer {
                    Ok(()) => swept.push(asked),
                    Err(fault) => break Err(fault),
                },
                Some(asked) = self.sweeps.recv() => {
                    // Changes nothing; what counts is that the answer comes behind the messages.
                    let answer = self.consume.basic_qos(INTERCEPT_WINDOW, BasicQosOptions::default());
                    sweeping.push(async move { (within("sweep", answer).await, asked) });
                }
            }
            // Without a limit in time, because an alarm stops publishing for as long as it lasts. A link that is dead ends
            // this by its heartbeats, and a message whose publishing is given up goes back to its queue.
            let published = tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                published = async {
                    while in_flight.len() < IN_FLIGHT
                        && let Some(delivery) = in_hand.pop_front()
                    {
                        in_flight.extend(self.publish(delivery).await?);
                    }
                    Ok(())
                } => published,
            };
            if let Err(fault) = published {
                break Err(fault);
            }
        };
        let finish = async { while in_flight.next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_LIMIT, finish).await;
        self.links.rush.over().await;
        // Closing the channel puts back what was delivered and not acked, each message in its place.
        let _ = within("stop consuming", self.consume.close(200, "done".into())).await;
        drop(self.consumer);
        self.tally.ended.store(true, Relaxed);
        self.bell.notify_one();
        outcome
    }

    /// Counts what has come, and sees whether it came as it should not.
    fn note(&self, delivery: &Delivery) {
        let number = self.tally.received.fetch_add(1, Relaxed) + 1;
        let is_probe = header(&delivery.properties, PROBE_HEADER).is_some();
        if is_probe || delivery.redelivered || number <= self.tally.waited.load(Relaxed) {
            return;
        }
        match self.way {
            Way::TakeBack => self.tally.note_bypass(delivery),
            Way::GiveBack => self.tally.late.store(true, Relaxed),
        }
        self.bell.notify_one();
    }

    /// Publishes one message; the future resolves when it has been confirmed and acked.
    async fn publish(
        &self,
        delivery: Delivery,
    ) -> Result<Option<impl Future<Output = Result<(), Fault>> + use<>>, Fault> {
        if header(&delivery.properties, PROBE_HEADER).is_some() {
            within("drop a probe", delivery.ack(BasicAckOptions::default())).await?;
            self.tally.probes.fetch_add(1, Relaxed);
            return Ok(None);
        }
        let Destination { exchange, key, properties } = match self.way {
            Way::TakeBack => take_back(&delivery, &self.names, &self.mark),
            Way::GiveBack => give_back(&delivery, &self.names),
        };
        if let Some(key) = stray_key(self.way, &delivery, &self.names) {
            // It lies here because of a binding that earlier settings made. Left there, that would bring it back for ever, and
            // hold a second copy of what is now another worker's.
            let (queue, held) = (self.names.lane_held.clone(), self.names.intake_held.clone());
            let unbind = self.consume.queue_unbind(queue, held, key.clone(), FieldTable::default());
            within("unbind a key that is no longer this worker's", unbind).await?;
        }
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish = self.publish.basic_publish(exchange.clone(), key, options, &delivery.data, properties);
        let confirm = publish.await.map_err(|error| Fault::command("publish a moved message", error))?;
        let (tally, bell) = (Arc::clone(&self.tally), Arc::clone(&self.bell));
        Ok(Some(async move {
            match confirm.await.map_err(|error| Fault::command("publish a moved message", error))? {
                Confirmation::Ack(None) => {
                    within("ack a moved message", delivery.ack(BasicAckOptions::default())).await?;
                    tally.moved.fetch_add(1, Relaxed);
                    if tally.idle() {
                        bell.notify_one();
                    }
                    Ok(())
                }
                Confirmation::Ack(Some(_)) => {
                    within(
                        "put a message back",
                        delivery.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }),
                    )
                    .await?;
                    Err(Fault::Nowhere { exchange: exchange.to_string() })
                }
                Confirmation::Nack(_) | Confirmation::NotRequested => {
                    Err(Fault::Silent { doing: "publish a moved message: the broker could not take it".to_owned() })
                }
            }
        }))
    }
}

fn tell(swept: oneshot::Sender<()>) {
    // Whoever asked may have turned to something else.
    let _ = swept.send(());
}
