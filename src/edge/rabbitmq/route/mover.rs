//! Moves messages: publish, wait for the confirm, then ack. A crash in between doubles a message and never loses one (G5).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::try_join_all, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    letter::{Destination, PROBE_HEADER, give_back, header, stray_key, take_back},
    names::Names,
    topology,
};
use crate::edge::{
    fault::{Fault, within},
    rabbitmq::{census::Consuming, links::Links},
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
    mouth: Mouth,
    consumer: Consumer,
    /// Whoever asks is answered when everything has come that the broker had sent by then.
    sweeps: mpsc::Receiver<oneshot::Sender<()>>,
    tally: Arc<Tally>,
    /// Rung when everything in hand is done, when something came past the edge, and at the end.
    bell: Arc<Notify>,
    /// For `doctor`, which else could not tell this consumer from one that is no gate.
    _consuming: Consuming,
}

impl Mover {
    /// Begins to consume `queue`, on a channel of its own that it closes when it ends.
    pub(super) async fn start(
        way: Way,
        queue: ShortString,
        names: Names,
        links: Arc<Links>,
        sweeps: mpsc::Receiver<oneshot::Sender<()>>,
        tally: Arc<Tally>,
        bell: Arc<Notify>,
    ) -> Result<Self, Fault> {
        let mouth = Mouth::open(Arc::clone(&links));
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
            within("consume", consume.basic_consume(queue.clone(), tag, BasicConsumeOptions::default(), arguments))
                .await?;
        let consuming = links.consumed.begin(queue.as_str());
        let mark = AMQPValue::LongString(uuid::Uuid::new_v4().to_string().into());
        Ok(Self { way, names, mark, links, consume, mouth, consumer, sweeps, tally, bell, _consuming: consuming })
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
                Some(first) = in_flight.next(), if !in_flight.is_empty() => {
                    if let Err(fault) = self.finish(first, &mut in_flight).await {
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
                    let consume = self.consume.clone();
                    sweeping.push(async move {
                        let answer = consume.basic_qos(INTERCEPT_WINDOW, BasicQosOptions::default());
                        (within("sweep", answer).await, asked)
                    });
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
                        let channel = self.mouth.channel().await?;
                        in_flight.extend(self.publish(&channel, delivery).await?);
                    }
                    Ok(())
                } => published,
            };
            if let Err(fault) = published {
                break Err(fault);
            }
        };
        if outcome.is_ok() {
            let finish = async {
                while let Some(first) = in_flight.next().await {
                    self.finish(first, &mut in_flight).await?;
                }
                Ok::<_, Fault>(())
            };
            let _ = tokio::time::timeout(STOP_LIMIT, finish).await;
        }
        self.links.rush.over().await;
        // Closing the channel puts back what was delivered and not acked, each message in its place.
        let _ = within("stop consuming", self.consume.close(200, "done".into())).await;
        drop(self.consumer);
        self.mouth.close();
        self.tally.ended.store(true, Relaxed);
        self.bell.notify_one();
        outcome
    }

    /// Acks what has been confirmed: `first`, and everything else that has been by now.
    ///
    /// lapin hands a returned message to the first publish that is confirmed after it came, whichever that was; its own
    /// publish then looks like one that was taken. So one that was returned puts all of them in doubt, and all of them stay:
    /// twice is better than never.
    ///
    /// # Errors
    /// If one was returned, or the broker says so; then nothing more may be acked.
    async fn finish(
        &self,
        first: Published,
        in_flight: &mut FuturesUnordered<impl Future<Output = Published>>,
    ) -> Result<(), Fault> {
        let mut taken = Vec::new();
        let mut next = Some(first);
        while let Some(Published { delivery, exchange, confirm }) = next {
            match confirm.map_err(|error| Fault::command("publish a moved message", error))? {
                Confirmation::Ack(None) => taken.push(delivery),
                Confirmation::Ack(Some(_)) => return Err(Fault::Nowhere { exchange: exchange.to_string() }),
                Confirmation::Nack(_) | Confirmation::NotRequested => {
                    return Err(Fault::Silent {
                        doing: "publish a moved message: the broker could not take it".to_owned(),
                    });
                }
            }
            next = in_flight.next().now_or_never().flatten();
        }
        // Side by side, because each waits until lapin has written it.
        let acks = taken.iter().map(|delivery| within("ack a moved message", delivery.ack(BasicAckOptions::default())));
        let acked = try_join_all(acks).await?.len();
        self.tally.moved.fetch_add(acked as u64, Relaxed);
        if self.tally.idle() {
            self.bell.notify_one();
        }
        Ok(())
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

    /// Publishes one message; the future resolves when the broker has said what became of it.
    async fn publish(
        &self,
        channel: &Channel,
        delivery: Delivery,
    ) -> Result<Option<impl Future<Output = Published> + use<>>, Fault> {
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
        let publish = channel.basic_publish(exchange.clone(), key, options, &delivery.data, properties);
        let confirm = publish.await.map_err(|error| Fault::command("publish a moved message", error))?;
        Ok(Some(async move { Published { delivery, exchange, confirm: confirm.await } }))
    }
}

/// Where a mover publishes: a channel of its own, since lapin hands a message that nobody took to whichever publish of the same
/// channel is confirmed next. It is opened beside all else, because under an alarm that takes as long as the alarm, and what
/// waits is to be consumed all the same.
#[derive(Debug)]
pub(super) struct Mouth {
    links: Arc<Links>,
    opening: JoinHandle<Result<Channel, Fault>>,
    channel: Option<Channel>,
}

impl Mouth {
    pub(super) fn open(links: Arc<Links>) -> Self {
        let opening = Self::begin(&links);
        Self { links, opening, channel: None }
    }

    fn begin(links: &Arc<Links>) -> JoinHandle<Result<Channel, Fault>> {
        let links = Arc::clone(links);
        tokio::spawn(async move { topology::publishing(&links.publish).await })
    }

    /// Cancel-safe.
    pub(super) async fn channel(&mut self) -> Result<Channel, Fault> {
        loop {
            if let Some(channel) = &self.channel {
                return Ok(channel.clone());
            }
            let opened = (&mut self.opening).await;
            match opened.unwrap_or_else(|panic| Err(Fault::Silent { doing: format!("open a channel ({panic})") })) {
                Ok(channel) => self.channel = Some(channel),
                Err(Fault::Blocked) => self.opening = Self::begin(&self.links),
                Err(fault) => return Err(fault),
            }
        }
    }

    /// In its own time: nothing waits for it.
    pub(super) fn close(mut self) {
        tokio::spawn(async move {
            let opened = match self.channel.take() {
                Some(channel) => Some(channel),
                None => (&mut self.opening).await.ok().and_then(Result::ok),
            };
            if let Some(channel) = opened {
                let _ = within("stop publishing", channel.close(200, "done".into())).await;
            }
        });
    }
}

/// A message that was published where it belongs, and what the broker says of it.
struct Published {
    delivery: Delivery,
    exchange: ShortString,
    confirm: lapin::Result<Confirmation>,
}

fn tell(swept: oneshot::Sender<()>) {
    // Whoever asked may have turned to something else.
    let _ = swept.send(());
}
