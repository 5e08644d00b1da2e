//! Looks whether an intake is as a route needs it, for whoever is no gate: nothing is declared that is not there, and what is
//! there stays as it is.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions},
    types::{FieldTable, ShortString},
};
use tokio::time::timeout;

use super::{
    letter::{PROBE_HEADER, header},
    names::Names,
    topology::Topology,
};
use crate::{
    amqp::Link,
    edge::{
        fault::{Fault, is_refusal, within},
        rabbitmq::wire,
    },
    settings::{IntakeType, RouteIntake, Worker},
};

/// For a probe to come out at the other end, as where a gate proves the same.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(3);

/// What is wrong with the intake of this worker's route, with what to do; `None` if nothing is, or if the first gate is yet to
/// make it. A missing plugin ends the connection, so this wants one of its own.
pub(crate) async fn intake(
    link: &Link,
    worker: &Worker,
    intake: &RouteIntake,
    (vhost, user): (&str, &str),
) -> Result<Option<Fault>, Fault> {
    let names = Names::new(worker, intake, None);
    let topology = Topology { names: &names, worker, intake, vhost, user };
    if !wire::has_exchange(link, names.intake.as_str()).await? {
        return if intake.kind == IntakeType::ConsistentHash { plugin(link).await } else { Ok(None) };
    }
    let is_plain = match topology.intake(link).await {
        Ok(is_plain) => is_plain,
        Err(fault @ (Fault::Topology { .. } | Fault::Permission { .. })) => return Ok(Some(fault)),
        Err(fault) => return Err(fault),
    };
    let key = intake.keys.first().map_or("", String::as_str);
    if !wire::has_exchange(link, names.intake_held.as_str()).await? {
        return Ok(Some(topology.not_held(key, "there is no such exchange")));
    }
    if is_plain {
        return Ok(None);
    }
    // The argument is not there, and a policy may stand for it.
    match intake.kind {
        IntakeType::Direct => topology.prove_policy(link).await,
        // Somebody's pattern may match any key, and a probe would come to that worker. The gate proves it before it opens.
        IntakeType::Topic | IntakeType::ConsistentHash => Ok(None),
    }
}

/// Whether the broker knows the hash exchange's type: RabbitMQ looks that up before it refuses to declare the anonymous
/// exchange, which it does to everybody.
async fn plugin(link: &Link) -> Result<Option<Fault>, Fault> {
    let doing = "use an exchange of the type x-consistent-hash as the intake";
    let channel = wire::open(link).await?;
    let kind = ExchangeKind::Custom(IntakeType::ConsistentHash.as_str().to_owned());
    let (name, options) = (ShortString::default(), ExchangeDeclareOptions::default());
    match within(doing, channel.exchange_declare(name, kind, options, FieldTable::default())).await {
        Err(Fault::Command { error, .. }) if is_refusal(&error, 503) => Ok(Some(Fault::Topology {
            doing: doing.to_owned(),
            detail: "RabbitMQ does not know this type".to_owned(),
            remedy: "run: rabbitmq-plugins enable rabbitmq_consistent_hash_exchange".to_owned(),
        })),
        Err(Fault::Command { .. }) | Ok(()) => Ok(None),
        Err(fault) => Err(fault),
    }
}

impl Topology<'_> {
    /// Sends a probe with a key that nobody has, which comes to a queue of our own if the policy is there, and to nobody else.
    async fn prove_policy(&self, link: &Link) -> Result<Option<Fault>, Fault> {
        let (doing, key) = ("prove the holding way", format!("worker-gate.doctor.{}", uuid::Uuid::new_v4()));
        let (ears, mouth) = (wire::open(link).await?, wire::publishing(link).await?);
        let (queue, mut arrivals) = wire::listen(&ears, doing).await?;
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        let bind = ears.queue_bind(queue, self.names.intake_held.clone(), key.as_str().into(), options, none);
        within(doing, bind).await?;
        match self.send(&mouth, &self.names.intake, &key, &key).await {
            Ok(()) => {}
            Err(Fault::Topology { .. }) => return Ok(Some(self.not_held(&key, "the broker had nowhere to put it"))),
            // An alarm: what cannot be published cannot be proven.
            Err(Fault::Blocked) => return Ok(None),
            Err(fault) => return Err(fault),
        }
        let arrived = async {
            while let Some(Ok(delivery)) = arrivals.next().await {
                if header(&delivery.properties, PROBE_HEADER).as_deref() == Some(&key) {
                    return true;
                }
            }
            false
        };
        let arrived = timeout(ARRIVAL_LIMIT, arrived).await.unwrap_or(false);
        let _ = tokio::join!(ears.close(200, "done".into()), mouth.close(200, "done".into()));
        Ok((!arrived).then(|| self.not_held(&key, "a message with this key did not reach it")))
    }
}
