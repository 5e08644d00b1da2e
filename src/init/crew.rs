//! Asks the broker and its workers.

use super::Crew;
use crate::{
    amqp,
    control::redis::place,
    doctor::{self, DoctorError, Finding, told},
    edge::rabbitmq::wire,
    redis,
    settings::{Broker, BrokerUrl, Settings},
};

/// A worker whose main process is busy passes over a question that has become too old; hardly twice.
const ROUNDS: u32 = 2;
/// For the goodbye to RabbitMQ.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// Asks.
///
/// # Errors
/// The broker cannot be asked.
pub async fn ask(broker: &Broker) -> Result<Crew, DoctorError> {
    let mut crew = Crew::default();
    if let Some(BrokerUrl::Amqp(_)) = broker.urls.first() {
        let link = amqp::connect(broker, "worker-gate init").await?;
        for _ in 0..ROUNDS {
            doctor::rabbitmq::ask(&link, told::anybody_until, &mut crew.workers).await?;
            if !crew.workers.is_empty() {
                break;
            }
        }
        // Whoever asks for another's exclusive queue is refused.
        let lasting =
            crew.workers.values().flat_map(|told| told.queues.iter().flatten()).filter(|queue| !queue.is_fleeting);
        for queue in lasting {
            if let Some(counted) = wire::count_if_there(&link, &queue.name.as_str().into()).await? {
                crew.consumers.insert(queue.name.clone(), counted.consumer_count());
            }
        }
        link.close(PATIENCE).await;
    } else {
        let (link, _) = redis::connect(broker, "worker-gate init").await?;
        for _ in 0..ROUNDS {
            let (mut connection, place) = (link.connection(), place(broker));
            doctor::redis::ask(&mut connection, place, told::anybody_until, &mut crew.workers).await?;
            if !crew.workers.is_empty() {
                break;
            }
        }
    }
    Ok(crew)
}

/// What a gate with these settings would find wrong with the exchanges that it takes messages from.
///
/// # Errors
/// The broker cannot be asked.
pub async fn intakes(settings: &Settings) -> Result<Vec<Finding>, DoctorError> {
    match settings.broker.urls.first() {
        Some(BrokerUrl::Amqp(url)) => doctor::rabbitmq::intake::look(settings, url).await,
        Some(BrokerUrl::Redis(_)) | None => Ok(Vec::new()),
    }
}
