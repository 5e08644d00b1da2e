//! How a queue is consumed that is to be emptied: by one channel, and the lane of a shut edge by some more.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{
    FutureExt, StreamExt,
    future::{join_all, ready, try_join_all},
    stream::{BoxStream, SelectAll, once},
};
use lapin::{
    Channel, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, DeliveryTag, FieldTable, ShortString},
};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use super::{mover::Way, topology};
use crate::edge::{
    fault::{Fault, is_refusal, within},
    rabbitmq::{consumed::Consuming, links::Links, wire},
};

/// What a give-back has in hand at the most.
const GIVE_BACK_WINDOW: u16 = 512;
/// What the intercept has in hand at the most: one that is used up lets the worker have the rest (FACTS.md, lane
/// intercept), and one without limit would hold a whole backlog in memory. At Celery's usual 1 KiB a message this is 10 MiB.
pub(super) const INTERCEPT_WINDOW: u16 = 10_000;
/// Celery's consumers have priority 0.
const INTERCEPT_PRIORITY: i32 = 100;
/// Before the worker, and after the intercept, so that what comes one by one keeps its order.
const SPARE_PRIORITY: i32 = 99;
/// A classic queue sends at most so many messages to a channel ahead of what has left its node for there, and gives the next
/// ones to whoever else consumes it, whatever the priorities say (RabbitMQ's `rabbit_queue_consumers.erl`,
/// `UNSENT_MESSAGE_LIMIT`).
const AHEAD: u16 = 200;
/// With the first one they have room for 1,000 messages that come past a shut edge at once and are not even under way to the
/// gate, because it takes none at the moment. More of them would take longer to close than it takes to open an edge.
const SPARES: usize = 4;

/// Where a message came in: by which channel, and under which number.
pub(super) type Origin = (usize, DeliveryTag);

/// The channels by which one queue is consumed.
pub(super) struct Ears {
    queue: ShortString,
    all: Vec<Ear>,
    heard: SelectAll<BoxStream<'static, (usize, Option<lapin::Result<Delivery>>)>>,
}

/// One of them. Whatever it has not acked goes back to the queue when it closes, each message in its place.
pub(super) struct Ear {
    channel: Channel,
    window: u16,
    /// So that this consumer can be told from a worker, and from one that is no gate.
    consuming: Consuming,
    /// The gate's, for a spare one.
    _permit: Option<OwnedSemaphorePermit>,
}

/// Spare ones that are being opened, with what each of them hears.
pub(super) type Spares = JoinHandle<Vec<(Ear, Consumer)>>;

impl Ear {
    async fn open(
        links: &Links,
        queue: &ShortString,
        (window, priority): (u16, Option<i32>),
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(Self, Consumer), Fault> {
        let channel = topology::open(&links.moves).await?;
        within("consume", channel.basic_qos(window, BasicQosOptions::default())).await?;
        let mut arguments = FieldTable::default();
        if let Some(priority) = priority {
            arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
        }
        // Before the broker counts it: a gate's own consumer must never look like a worker.
        let mut consuming = links.consumed.begin(queue.as_str());
        let options = BasicConsumeOptions::default();
        let consumer = wire::consume(&channel, queue.clone(), options, arguments, "consume").await?;
        consuming.has_begun();
        Ok((Self { channel, window, consuming, _permit: permit }, consumer))
    }
}

impl Ears {
    /// Begins to consume.
    pub(super) async fn open(links: &Links, queue: ShortString, way: Way) -> Result<Self, Fault> {
        let how = match way {
            Way::TakeBack => (INTERCEPT_WINDOW, Some(INTERCEPT_PRIORITY)),
            Way::GiveBack | Way::Rehome => (GIVE_BACK_WINDOW, None),
        };
        let first = Ear::open(links, &queue, how, None).await?;
        let mut ears = Self { queue, all: Vec::new(), heard: SelectAll::new() };
        ears.add(vec![first]);
        Ok(ears)
    }

    /// Begins to open spare ones: as many as are wanted, or half of what the gate has left. What fails is not there.
    pub(super) fn spares(&self, links: &Arc<Links>) -> Spares {
        let (links, queue) = (Arc::clone(links), self.queue.clone());
        // A task of its own, which nobody gives up half way: lapin would forget the consumer, and the broker would not.
        tokio::spawn(async move {
            let many = SPARES.min(links.spares.available_permits().div_ceil(2));
            let permits = (0..many).map_while(|_| Arc::clone(&links.spares).try_acquire_owned().ok());
            let opening = permits.map(|permit| Ear::open(&links, &queue, (AHEAD, Some(SPARE_PRIORITY)), Some(permit)));
            join_all(opening.collect::<Vec<_>>()).await.into_iter().filter_map(Result::ok).collect()
        })
    }

    pub(super) fn add(&mut self, ears: Vec<(Ear, Consumer)>) {
        for (ear, consumer) in ears {
            let number = self.all.len();
            self.all.push(ear);
            let until_its_end = consumer.map(Some).chain(once(ready(None)));
            self.heard.push(until_its_end.map(move |heard| (number, heard)).boxed());
        }
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// If one of the channels is gone.
    pub(super) async fn next(&mut self) -> Result<(Origin, Delivery), Fault> {
        match self.heard.next().await {
            Some((ear, Some(Ok(delivery)))) => Ok(((ear, delivery.delivery_tag), delivery)),
            // What was not acked for half an hour RabbitMQ takes back (`consumer_timeout`), and that happens only in an alarm.
            Some((_, Some(Err(error)))) if is_refusal(&error, 406) => Err(Fault::Blocked),
            Some((_, Some(Err(error)))) => Err(Fault::command("consume", error)),
            Some((_, None)) | None => Err(Fault::command("consume", lapin::ErrorKind::InvalidChannel(0).into())),
        }
    }

    /// The next message, if it is here already.
    ///
    /// # Errors
    /// If one of the channels is gone.
    pub(super) fn next_now(&mut self) -> Option<Result<(Origin, Delivery), Fault>> {
        self.next().now_or_never()
    }

    /// Ends when everything has come that the broker had sent when this was called.
    pub(super) fn sweep(&self) -> impl Future<Output = Result<(), Fault>> + Send + use<> {
        let ears: Vec<_> = self.all.iter().map(|ear| (ear.channel.clone(), ear.window)).collect();
        async move {
            // Changes nothing; what counts is that the answer comes behind the messages.
            let asking = ears.into_iter().map(async |(channel, window)| {
                within("sweep", channel.basic_qos(window, BasicQosOptions::default())).await
            });
            try_join_all(asking).await.map(drop)
        }
    }

    /// Acks these, and on each channel everything that came before them.
    pub(super) async fn ack(&mut self, taken: &[Origin]) -> Result<(), Fault> {
        for (ear, last) in taken.iter().copied().collect::<BTreeMap<_, _>>() {
            let ack = self.all[ear].channel.basic_ack(last, BasicAckOptions { multiple: true });
            within("ack moved messages", ack).await?;
        }
        Ok(())
    }

    /// Any of the channels, for what is no consuming.
    pub(super) fn channel(&self) -> Channel {
        self.all[0].channel.clone()
    }

    /// Consumes no more, and puts back what was not acked.
    pub(super) async fn close(mut self) {
        self.all.iter_mut().for_each(|ear| ear.consuming.ends());
        join_all(self.all.iter().map(|ear| within("stop consuming", ear.channel.close(200, "done".into())))).await;
    }
}
