//! The gate's connections to RabbitMQ, rebuilt as one whenever one of them is lost.
//!
//! Three, because a connection that publishes can be blocked by the broker for as long as a memory or disk alarm lasts, and
//! because a command's answer waits behind every message that was delivered before it:
//!
//! - `control` owns the workers, opens and shuts. It never publishes and carries no messages, so nothing delays a shut.
//! - `moves` consumes what is to be moved. It never publishes, so a lane can be emptied during an alarm.
//! - `publish` publishes what was moved, and the events.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::select_all};
use tokio::sync::{Mutex, Semaphore};

use super::{consumed::Consumed, remote::Remote};
use crate::{
    amqp::{self, Link},
    edge::{fault::Fault, links::Connect},
    rush::Rush,
    settings::Broker,
};

/// So many edges are made ready at once. Each takes up to three channels on `control` meanwhile, and a connection has 2,047.
const MADE_READY: usize = 32;

/// By so much longer is the heartbeat of the two connections that own nothing: heartbeats are a good part of what an idle gate does.
/// A broker that is gone is missed by `control`; of a host that is gone, the broker has back what was in hand after some
/// 2.5 of these.
const QUIET: u32 = 3;
/// What one gate spends on bursts past its shut edges: RabbitMQ has three processes for each channel.
const SPARE_CHANNELS: usize = 64;

/// The connections of one link-up.
#[derive(Debug)]
pub struct Links {
    /// Owns, opens, shuts; never publishes.
    pub control: Link,
    /// Consumes; never publishes.
    pub moves: Link,
    /// Publishes.
    pub publish: Link,
    /// What goes before everything else on these connections.
    pub rush: Rush,
    /// What this gate consumes of what it shares with others.
    pub(crate) consumed: Arc<Consumed>,
    /// A permit for each edge that is made ready.
    pub(crate) ready: Semaphore,
    /// A permit for each channel that waits for a burst past a shut edge.
    pub(crate) spares: Arc<Semaphore>,
    /// The way to Celery's workers, made when it is first needed.
    remote: Mutex<Option<Arc<Remote>>>,
}

impl Connect for Links {
    const BROKER: &'static str = "RabbitMQ";

    async fn connect(broker: &Broker, gate: &str) -> Result<Self, Fault> {
        let name = |purpose: &str| format!("worker-gate {gate} {purpose}");
        let quiet = Broker { heartbeat: broker.heartbeat * QUIET, ..broker.clone() };
        Ok(Self {
            control: amqp::connect(broker, &name("control")).await?,
            moves: amqp::connect(&quiet, &name("moves")).await?,
            publish: amqp::connect(&quiet, &name("publish")).await?,
            rush: Rush::default(),
            consumed: Arc::default(),
            ready: Semaphore::new(MADE_READY),
            spares: Arc::new(Semaphore::new(SPARE_CHANNELS)),
            remote: Mutex::default(),
        })
    }

    fn cut(&self) {
        self.control.cut();
        self.moves.cut();
        self.publish.cut();
    }

    async fn lost(&self) -> String {
        select_all([self.control.lost(), self.moves.lost(), self.publish.lost()].map(FutureExt::boxed)).await.0
    }

    async fn goodbye(&self) {
        let limit = Duration::from_secs(1);
        tokio::join!(self.control.close(limit), self.moves.close(limit), self.publish.close(limit));
    }
}

impl Links {
    /// Whether the broker has said that it takes no messages, as in a memory or disk alarm. It says so to whoever publishes.
    pub(crate) fn is_blocked(&self) -> bool {
        self.publish.connection().status().blocked()
    }

    /// The way to Celery's workers.
    pub(crate) async fn remote(&self) -> Result<Arc<Remote>, Fault> {
        let mut remote = self.remote.lock().await;
        if let Some(remote) = remote.as_ref().filter(|remote| remote.works()) {
            return Ok(Arc::clone(remote));
        }
        let made = Arc::new(Remote::open(&self.moves, &self.publish).await?);
        *remote = Some(Arc::clone(&made));
        Ok(made)
    }
}
