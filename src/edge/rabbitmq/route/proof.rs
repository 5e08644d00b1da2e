//! Proves with a message that what the intake cannot deliver reaches the holding queue, before an edge is first opened.
//!
//! The probe carries the worker's own key, so it also finds a binding of somebody else's on that key: with one, the broker
//! would see no need for the alternate exchange, and what came while the edge is shut would be lost to the worker.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::timeout;

use super::{
    letter::{PROBE_HEADER, header},
    mouth::Mouth,
    topology::{Topology, open},
};
use crate::{
    edge::{
        fault::{COMMAND_TIMEOUT, Fault, within},
        rabbitmq::links::Links,
    },
    failpoint::{self, Point},
    settings::IntakeType,
};

/// For the probe to come out at the other end. It takes a millisecond or two; a broker that is busy, a few hundred.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(3);

impl Topology<'_> {
    /// Sends one probe a key. For a hash intake, whose messages go to any fit worker, the probe enters behind the intake: the
    /// broker has compared the argument that leads there.
    ///
    /// It also shows what the moving of messages needs and no declaration asks for: leave to read the holding queue, and to
    /// publish to the intake and to the anonymous exchange, by which go those that came another way.
    ///
    /// The mouth is nobody else's, because lapin hands a message that nobody took to any publish of the same channel.
    ///
    /// # Errors
    /// [`Fault::Blocked`] in an alarm; the mouth has a channel again once that is over.
    pub(super) async fn prove(&self, links: &Arc<Links>, mouth: &mut Mouth) -> Result<(), Fault> {
        let names = self.names;
        let needed = format!("{}, {}, {}, amq.gen-* and amq.default", names.intake, names.intake_held, names.holding);
        let publish = timeout(COMMAND_TIMEOUT, mouth.channel()).await.unwrap_or(Err(Fault::Blocked))?;
        let proven = self.permit(self.send_probes(links, &publish).await, &needed);
        if matches!(proven, Err(Fault::Blocked)) {
            // The probe may still come back, and would to the next one on its channel.
            *mouth = Mouth::open(Arc::clone(links));
        }
        proven
    }

    async fn send_probes(&self, links: &Links, publish: &Channel) -> Result<(), Fault> {
        let names = self.names;
        if names.shared.is_some() {
            return self.may_feed(links).await;
        }
        let ears = open(&links.moves).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue =
            within("prove the holding way", ears.queue_declare(ShortString::default(), options, FieldTable::default()))
                .await?
                .name()
                .clone();
        for key in &self.intake.keys {
            let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
            let bind =
                ears.queue_bind(queue.clone(), names.intake_held.clone(), key.as_str().into(), options, arguments);
            within("prove the holding way", bind).await?;
        }
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let listen = ears.basic_consume(queue.clone(), ShortString::default(), options, FieldTable::default());
        let mut arrivals = within("prove the holding way", listen).await?;
        self.send(publish, &ShortString::default(), queue.as_str(), "").await?;
        for key in &self.intake.keys {
            let id = uuid::Uuid::new_v4().to_string();
            let entry = match self.intake.kind {
                IntakeType::Direct | IntakeType::Topic => &names.intake,
                IntakeType::ConsistentHash => &names.intake_held,
            };
            self.send(publish, entry, &sample(self.intake.kind, key), &id).await?;
            let arrived = async {
                while let Some(Ok(delivery)) = arrivals.next().await {
                    if header(&delivery.properties, PROBE_HEADER).as_deref() == Some(&id) {
                        return true;
                    }
                }
                false
            };
            if !tokio::time::timeout(ARRIVAL_LIMIT, arrived).await.unwrap_or(false) {
                return Err(self.not_held(key, "a message with this key did not reach it"));
            }
            failpoint::hit(Point::OwnProbed);
            self.clean(links).await?;
        }
        let _ = ears.close(200, "done".into()).await;
        Ok(())
    }

    /// For a feed the broker has compared the argument that leads back to the shared queue, and a probe would come to whoever
    /// consumes it. What is left to show is leave to read the shared queue, and to publish to the edge's entry and, for what is
    /// taken back, to the anonymous exchange: RabbitMQ lets only those name a dead letter exchange who may write to it.
    async fn may_feed(&self, links: &Links) -> Result<(), Fault> {
        let channel = open(&links.moves).await?;
        for entry in [&self.names.intake, &ShortString::default()] {
            let mut arguments = FieldTable::default();
            arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(entry.as_str().into()));
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let declare = channel.queue_declare(ShortString::default(), options, arguments);
            within("get leave to publish what is fed", declare).await?;
        }
        let _ = channel.close(200, "done".into()).await;
        Ok(())
    }

    pub(super) async fn send(&self, publish: &Channel, entry: &ShortString, key: &str, id: &str) -> Result<(), Fault> {
        let mut headers = FieldTable::default();
        headers.insert(PROBE_HEADER.into(), AMQPValue::LongString(id.into()));
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let doing = "publish the probe message";
        let publish = publish.basic_publish(entry.clone(), key.into(), options, b"worker-gate probe", properties);
        let confirm = async { within(doing, within(doing, publish).await?).await };
        let confirm = match confirm.await {
            // Only publishing is stopped by an alarm; the other connections are sound.
            Err(Fault::Silent { .. }) => return Err(Fault::Blocked),
            confirm => confirm?,
        };
        match confirm {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => {
                Err(self.not_held(key, "the broker had nowhere to put a message with this key"))
            }
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(Fault::Silent { doing: doing.to_owned() }),
        }
    }

    /// The holding queue got its copy as well. It is taken out if it is the first there; behind held messages it is left to
    /// the give-back, which drops it.
    async fn clean(&self, links: &Links) -> Result<(), Fault> {
        let channel = open(&links.moves).await?;
        let get = channel.basic_get(self.names.holding.clone(), BasicGetOptions::default());
        if let Some(first) = within("take the probe out", get).await? {
            if header(&first.properties, PROBE_HEADER).is_some() {
                within("take the probe out", first.ack(BasicAckOptions::default())).await?;
            } else {
                let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                within("put a message back", first.nack(options)).await?;
            }
        }
        let _ = channel.close(200, "done".into()).await;
        Ok(())
    }

    pub(super) fn not_held(&self, key: &str, what: &str) -> Fault {
        let (intake, held, vhost) = (&self.names.intake, &self.names.intake_held, self.vhost);
        Fault::Topology {
            doing: format!("hold messages for the key {key} of the intake {intake} in {held}"),
            detail: format!(
                "{what}: the exchange has no alternate exchange {held}, or another queue is bound to this key"
            ),
            remedy: format!(
                "run: rabbitmqctl set_policy -p {vhost} worker-gate-{intake} '^{}$' '{{\"alternate-exchange\":\"{held}\"}}' \
                 --apply-to exchanges; and remove other bindings of {intake} that match {key}: rabbitmqctl list_bindings -p {vhost}",
                intake.as_str().replace('.', "\\.")
            ),
        }
    }
}

/// A key that a message could have: a topic's wildcards are filled in.
fn sample(kind: IntakeType, key: &str) -> String {
    match kind {
        IntakeType::Topic => {
            let words: Vec<&str> =
                key.split('.').map(|word| if matches!(word, "*" | "#") { "probe" } else { word }).collect();
            words.join(".")
        }
        IntakeType::Direct | IntakeType::ConsistentHash => key.to_owned(),
    }
}
