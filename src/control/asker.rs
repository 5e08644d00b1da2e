//! The other end: asks all gates, and hears their answers, the broker's own about gates that are gone, and Celery's workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    Answer, Ask, Request,
    key::{Key, KeyError},
    roll::Beat,
};
use crate::{
    edge::{celery, fault::Fault},
    model::WorkerName,
    settings::{self, BrokerUrl, Control},
};

mod rabbitmq;
mod redis;

/// For the goodbye to the broker.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Requests cannot be signed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The broker cannot be reached, or refuses.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// One thing that was heard.
#[derive(Debug)]
pub enum Heard {
    /// A gate has answered.
    Answer(Answer),
    /// There is, or was, a gate of this name.
    Known(String),
    /// A worker of Celery's lives, by its node name.
    Seen(String),
    /// A gate has told that a worker's admission has changed, or that it goes.
    Fact(Map<String, Value>),
}

/// RabbitMQ: a topic behind the events' fanout, which cannot sort. Whoever binds to it hears what he asks for.
pub(crate) const SORTED: &str = "worker-gate.sorted";

/// What [`Asker::hear_facts`] is about: the routing keys of these events.
const FACTS: [&str; 4] = ["worker.admitted", "worker.held", "worker.quarantined", "gate.offline"];

/// A worker of Celery's, by what it says of itself.
fn seen(event: &Value) -> Option<Heard> {
    let (node, is_alive) = celery::beat(event)?;
    is_alive.then(|| Heard::Seen(node.to_owned()))
}

/// A connection to ask on.
#[derive(Debug)]
pub struct Asker {
    broker: Broker,
    key: Option<Key>,
    by: String,
}

#[derive(Debug)]
enum Broker {
    RabbitMq(Box<rabbitmq::Asker>),
    Redis(Box<redis::Asker>),
}

impl Asker {
    /// Connects to this broker, and signs with the operators' key, if there is one. `by` is who asks.
    ///
    /// # Errors
    /// When the key cannot be used, or the broker not be reached.
    pub async fn connect(broker: &settings::Broker, control: &Control, by: String) -> Result<Self, AskError> {
        let key = control.key_file.as_deref().map(Key::read).transpose()?;
        let broker = match broker.urls.first() {
            Some(BrokerUrl::Redis(_)) => Broker::Redis(Box::new(redis::Asker::connect(broker).await?)),
            Some(BrokerUrl::Amqp(_)) | None => Broker::RabbitMq(Box::new(rabbitmq::Asker::connect(broker).await?)),
        };
        Ok(Self { broker, key, by })
    }

    /// Asks all gates. Hands back the id that the answers have.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub async fn ask(&mut self, ask: Ask) -> Result<String, Fault> {
        let id = uuid::Uuid::new_v4().to_string();
        let request = Request { id: id.clone(), at: Timestamp::now(), by: self.by.clone(), ask };
        // What is derived for text, times and lists cannot fail to be written.
        let body = serde_json::to_vec(&request).unwrap_or_default();
        let signature = self.key.as_ref().map(|key| key.sign(&body));
        match &mut self.broker {
            Broker::RabbitMq(asker) => asker.ask(&body, signature).await?,
            Broker::Redis(asker) => asker.ask(&body, signature).await?,
        }
        Ok(id)
    }

    /// Asks the broker which gates it knows. Where that is not allowed, silent gates are not known.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn call_roll(&mut self) -> Result<(), Fault> {
        match &mut self.broker {
            Broker::RabbitMq(asker) => asker.call_roll().await,
            Broker::Redis(asker) => asker.call_roll().await,
        }
    }

    /// Asks Celery's workers whether they live, and listens to their heartbeats. `false` where that is not allowed.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn ping(&mut self) -> Result<bool, Fault> {
        match &mut self.broker {
            Broker::RabbitMq(asker) => asker.ping().await,
            Broker::Redis(asker) => asker.ping().await,
        }
    }

    /// Has facts heard, too: changes of admission, and gates that go. Heartbeats and checks, which are most of what gates tell,
    /// do not come: the broker sorts them out.
    ///
    /// # Errors
    /// When the broker does not answer, or refuses.
    pub async fn hear_facts(&mut self, exchange: &str) -> Result<(), Fault> {
        match &mut self.broker {
            Broker::RabbitMq(asker) => asker.hear_facts(exchange).await,
            Broker::Redis(asker) => asker.hear_facts(exchange).await,
        }
    }

    /// What is heard next; `None` when the time is up. Cancel-safe.
    ///
    /// # Errors
    /// When the broker has ended the connection.
    pub async fn next(&mut self, until: Instant) -> Result<Option<Heard>, Fault> {
        match &mut self.broker {
            Broker::RabbitMq(asker) => asker.next(until).await,
            Broker::Redis(asker) => asker.next(until).await,
        }
    }

    /// What these gates said last, as far as the broker remembers it.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn beats(&mut self, gates: &BTreeSet<String>) -> Result<BTreeMap<String, Beat>, Fault> {
        match &mut self.broker {
            Broker::RabbitMq(asker) => asker.beats(gates).await,
            Broker::Redis(asker) => Ok(asker.beats(gates)),
        }
    }

    /// Which of these workers nobody owns, so that their ways are shut. One of whom the broker does not tell is not among them.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn unowned(&self, workers: &BTreeSet<WorkerName>) -> Result<BTreeSet<WorkerName>, Fault> {
        match &self.broker {
            Broker::RabbitMq(asker) => asker.unowned(workers).await,
            Broker::Redis(asker) => asker.unowned(workers).await,
        }
    }

    /// Says goodbye.
    pub async fn close(self) {
        match self.broker {
            Broker::RabbitMq(asker) => asker.close(GOODBYE).await,
            Broker::Redis(asker) => asker.close().await,
        }
    }
}
