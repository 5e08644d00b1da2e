//! The desk on RabbitMQ: a queue of the gate's own, bound to the fanout to all gates.
//!
//! Whoever may publish on the broker may flood it. So the queue is short and its messages live for seconds, the broker hands out
//! a few at a time, and the gate takes them at a walking pace: it has edges to look after.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Consumer, ExchangeKind,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::watch,
    time::{Instant, interval, interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    EXCHANGE, LONGEST, SIGNATURE,
    desk::{Desk, Letter},
    roll,
};
use crate::{
    amqp::Link,
    edge::{
        fault::{Fault, within},
        links::LinkState,
        rabbitmq::{links::Links, wire::open},
    },
};

/// After each request, so that a hundred are taken in a second, and edges have the rest of it.
const PACE: Duration = Duration::from_millis(10);
/// So many at once.
const WINDOW: u16 = 4;
/// So many may wait; the oldest go first.
const QUEUE: i64 = 100;
/// An asker waits for less.
const TIME_TO_LIVE: i64 = 5_000;
/// For an answer to be handed to the broker; while it takes no messages, it takes no answers.
const REPLY_LIMIT: Duration = Duration::from_secs(1);
/// After a refusal, before it is tried again: somebody may have given the right.
const RETRY: Duration = Duration::from_secs(30);
/// Refused requests are told at least this often.
const LOOK: Duration = Duration::from_secs(10);

/// Answers until `stop`, on whichever links there are. A gate that cannot be asked guards as well as any other.
///
/// # Errors
/// None; what stands in the way is logged.
pub(crate) async fn serve(
    mut links: watch::Receiver<LinkState<Links>>,
    mut desk: Desk,
    stop: CancellationToken,
) -> Result<(), Fault> {
    loop {
        let state = links.borrow_and_update().clone();
        let serving = async {
            let LinkState::Up(links) = state else { return std::future::pending().await };
            loop {
                if let Err(fault) = answer_all(&links, &mut desk).await
                    && links.moves.connection().status().connected()
                {
                    tracing::warn!("failed to {fault}; worker-gate status, hold and doctor do not reach this gate");
                }
                sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = serving => {}
            changed = links.changed() => if changed.is_err() { return Ok(()) },
            () = stop.cancelled() => return Ok(()),
        }
    }
}

async fn answer_all(links: &Links, desk: &mut Desk) -> Result<(), Fault> {
    let ears = open(&links.moves).await?;
    let mut requests = listen(&ears).await?;
    let mut mouth = Mouth { link: &links.publish, channel: None };
    let (mut look, mut renew) = (interval(LOOK), interval_at(Instant::now() + roll::RENEW, roll::RENEW));
    loop {
        // Cancel-safe: intervals and a consumer keep what is not taken.
        let request = tokio::select! {
            request = requests.next() => request,
            _ = look.tick() => {
                desk.look_round();
                continue;
            }
            _ = renew.tick() => {
                enter(&links.moves, desk.gate()).await;
                continue;
            }
        };
        let Some(request) = request else {
            return Err(Fault::Topology {
                doing: "hear requests to all gates".to_owned(),
                detail: "the broker ended the subscription".to_owned(),
                remedy: String::new(),
            });
        };
        let request = request.map_err(|error| Fault::command("hear requests to all gates", error))?;
        let reply_to = request.properties.reply_to().clone();
        let answer = desk.answer(letter(&request), || links.consumed.counts()).await;
        if let (Some(to), Some(answer)) = (reply_to, answer) {
            mouth.say(to, &answer).await;
        }
        within("hear requests to all gates", request.ack(BasicAckOptions::default())).await?;
        sleep(PACE).await;
    }
}

/// Puts the gate on the roll, or keeps it there. One that cannot be put there is not known once it is silent; nothing else depends on it.
pub(crate) async fn enter(link: &Link, gate: &str) {
    let entering = async {
        let channel = open(link).await?;
        within("enter the roll of gates", roll::enter(&channel, gate)).await?;
        let _ = channel.close(200, "done".into()).await;
        Ok::<_, Fault>(())
    };
    if let Err(fault) = entering.await
        && link.connection().status().connected()
    {
        tracing::warn!("failed to {fault}; if this gate dies, worker-gate status does not show it");
    }
}

fn letter(request: &Delivery) -> Letter {
    let properties = &request.properties;
    let signature = properties.headers().as_ref().and_then(|headers| headers.inner().get(SIGNATURE)?.as_long_string());
    Letter {
        // What is too long is refused; its length says so.
        body: request.data[..request.data.len().min(LONGEST + 1)].to_vec(),
        signature: signature.map(ToString::to_string),
        // RabbitMQ refuses a message with the name of another user than the one who sends it.
        user: properties.user_id().as_ref().map(ToString::to_string),
    }
}

/// Where answers go out. A channel dies with a mistake of its user's, and an alarm stops it; both pass.
struct Mouth<'a> {
    link: &'a Link,
    channel: Option<Channel>,
}

impl Mouth<'_> {
    /// Whoever asked has gone if this fails, or the broker takes nothing.
    async fn say(&mut self, to: ShortString, answer: &[u8]) {
        let saying = async {
            let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
                Some(channel) => channel,
                None => open(self.link).await?,
            };
            let properties = BasicProperties::default().with_content_type("application/json".into());
            let (anonymous, options) = (ShortString::default(), BasicPublishOptions::default());
            within("answer", channel.basic_publish(anonymous, to, options, answer, properties)).await?;
            Ok::<_, Fault>(channel)
        };
        if let Ok(Ok(channel)) = timeout(REPLY_LIMIT, saying).await {
            self.channel = Some(channel);
        }
    }
}

/// Makes the exchange, if it is not there.
pub(crate) async fn declare(channel: &Channel) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Fanout, options, FieldTable::default()).await
}

async fn listen(channel: &Channel) -> Result<Consumer, Fault> {
    let doing = "hear requests to all gates";
    within(doing, declare(channel)).await?;
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    let longest = i64::try_from(4 * LONGEST).unwrap_or(i64::MAX);
    for (name, value) in [("x-max-length", QUEUE), ("x-max-length-bytes", longest), ("x-message-ttl", TIME_TO_LIVE)] {
        arguments.insert(name.into(), AMQPValue::LongLongInt(value));
    }
    let declare = channel.queue_declare(ShortString::default(), own, arguments);
    let queue = within(doing, declare).await?.name().clone();
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    within(doing, channel.queue_bind(queue.clone(), EXCHANGE.into(), ShortString::default(), bind, none)).await?;
    within(doing, channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
    let consume =
        channel.basic_consume(queue, ShortString::default(), BasicConsumeOptions::default(), FieldTable::default());
    within(doing, consume).await
}
