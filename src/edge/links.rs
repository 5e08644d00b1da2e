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
use tokio::{
    sync::{Mutex, Semaphore, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{celery::Remote, fault::Fault};
use crate::{
    amqp::{self, ConnectError, Link, Retry},
    model::Reason,
    rush::Rush,
    settings::Broker,
};

/// The first wait before connecting again; doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// RabbitMQ takes 6 to 12 s to restart; a gate that looks every 5 s is back soon after it and does not crowd it.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long a gate that has never been connected looks for its broker: the two may be started together.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How often a refusal that time seldom mends is asked for again, once the gate has been connected: while a broker restarts
/// and imports its definitions, users and virtual hosts are missing for a moment.
const REFUSALS: u32 = 5;

/// So many edges are made ready at once. Each takes up to three channels on `control` meanwhile, and a connection has 2,047.
const MADE_READY: usize = 32;

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
    /// A permit for each edge that is made ready.
    pub(super) ready: Semaphore,
    /// The way to Celery's workers, made when it is first needed.
    remote: Mutex<Option<Arc<Remote>>>,
}

impl Links {
    async fn connect(broker: &Broker, gate: &str) -> Result<Self, ConnectError> {
        let name = |purpose: &str| format!("worker-gate {gate} {purpose}");
        Ok(Self {
            control: amqp::connect(broker, &name("control")).await?,
            moves: amqp::connect(broker, &name("moves")).await?,
            publish: amqp::connect(broker, &name("publish")).await?,
            rush: Rush::default(),
            ready: Semaphore::new(MADE_READY),
            remote: Mutex::default(),
        })
    }

    /// The way to Celery's workers.
    pub(super) async fn remote(&self) -> Result<Arc<Remote>, Fault> {
        let mut remote = self.remote.lock().await;
        if let Some(remote) = remote.as_ref().filter(|remote| remote.works()) {
            return Ok(Arc::clone(remote));
        }
        let made = Arc::new(Remote::open(&self.moves, &self.publish).await?);
        *remote = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Ends all of them at once; the broker shuts every edge that this gate held open.
    pub fn cut(&self) {
        self.control.cut();
        self.moves.cut();
        self.publish.cut();
    }

    async fn lost(&self) -> String {
        select_all([self.control.lost(), self.moves.lost(), self.publish.lost()].map(FutureExt::boxed)).await.0
    }
}

/// What the edges and the publisher see of the connections.
#[derive(Debug, Clone)]
pub enum LinkState {
    /// No connection yet, or none any more; why.
    Down(Option<Reason>),
    /// Connected.
    Up(Arc<Links>),
}

/// Keeps the links up until `stop`, then says goodbye.
///
/// # Errors
/// A refusal that needs a person; or no connection within 30 s of the start.
pub async fn keep(
    broker: &Broker,
    gate: &str,
    state: &watch::Sender<LinkState>,
    stop: &CancellationToken,
) -> Result<(), Fault> {
    let started = Instant::now();
    let (mut wait, mut refusals, mut connected_once) = (FIRST_WAIT, 0, false);
    loop {
        let connecting = Links::connect(broker, gate);
        let outcome = tokio::select! {
            outcome = connecting => outcome,
            () = stop.cancelled() => return Ok(()),
        };
        match outcome {
            Ok(links) => {
                tracing::info!("connected to RabbitMQ");
                (refusals, connected_once) = (0, true);
                let connected_at = Instant::now();
                let links = Arc::new(links);
                state.send_replace(LinkState::Up(Arc::clone(&links)));
                let cause = tokio::select! {
                    cause = links.lost() => cause,
                    () = stop.cancelled() => return goodbye(&links).await,
                };
                links.cut();
                if connected_at.elapsed() > LONGEST_WAIT {
                    // A link that lasted is worth being fetched back at once; one that flaps would be nothing but work.
                    wait = FIRST_WAIT;
                }
                tracing::warn!(cause, "lost the connection to RabbitMQ, which shuts every edge of this gate");
                let reason = lost(&cause);
                state.send_replace(LinkState::Down(Some(reason)));
            }
            Err(error) => {
                let refused = error.retry() == Retry::NeedsPerson;
                refusals += u32::from(refused);
                let hopeless =
                    if connected_once { refusals > REFUSALS } else { refused || started.elapsed() > START_PATIENCE };
                let fault = Fault::Connect(error);
                if hopeless {
                    return Err(fault);
                }
                let text = crate::chain::chain(&fault);
                tracing::warn!(again_in_ms = wait.as_millis(), "failed to {text}");
                state.send_replace(LinkState::Down(Some(fault.reason())));
            }
        }
        tokio::select! {
            () = sleep(wait.mul_f64(rand::random_range(0.8..1.2))) => {}
            () = stop.cancelled() => return Ok(()),
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

fn lost(cause: &str) -> Reason {
    Reason::new(
        crate::model::Code::BrokerUnreachable,
        format!("the connection to RabbitMQ was lost ({cause}); the broker keeps the edge shut"),
        "none: the gate connects again by itself",
    )
}

async fn goodbye(links: &Links) -> Result<(), Fault> {
    let limit = Duration::from_secs(1);
    tokio::join!(links.control.close(limit), links.moves.close(limit), links.publish.close(limit));
    Ok(())
}
