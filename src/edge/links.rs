//! Keeps the gate connected to its broker, whichever it is, and tells the edges.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::fault::Fault;
use crate::{
    amqp::Retry,
    model::{Code, Reason},
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

/// The connections to one kind of broker, which live and end together.
pub trait Connect: Sized + Send + Sync + 'static {
    /// What people call the broker.
    const BROKER: &'static str;

    /// Makes all of them.
    fn connect(broker: &Broker, gate: &str) -> impl Future<Output = Result<Self, Fault>> + Send;

    /// Resolves with the cause when one of them is gone.
    fn lost(&self) -> impl Future<Output = String> + Send;

    /// Ends all of them at once; the broker shuts every edge that this gate held open.
    fn cut(&self);

    /// Ends them in good order, but not for long.
    fn goodbye(&self) -> impl Future<Output = ()> + Send;
}

/// What the edges and the publisher see of the connections.
#[derive(Debug)]
pub enum LinkState<L> {
    /// No connection yet, or none any more; why.
    Down(Option<Reason>),
    /// Connected.
    Up(Arc<L>),
}

impl<L> Clone for LinkState<L> {
    fn clone(&self) -> Self {
        match self {
            Self::Down(reason) => Self::Down(reason.clone()),
            Self::Up(links) => Self::Up(Arc::clone(links)),
        }
    }
}

/// Waits until there are links.
///
/// # Errors
/// There will be none any more.
pub(super) async fn up<L>(state: &watch::Receiver<LinkState<L>>) -> Result<Arc<L>, Fault> {
    let mut state = state.clone();
    let is_up = state.wait_for(|state| matches!(state, LinkState::Up(_))).await;
    match &*is_up.map_err(|_| Fault::LinkDown)? {
        LinkState::Up(links) => Ok(Arc::clone(links)),
        LinkState::Down(_) => Err(Fault::LinkDown),
    }
}

/// Keeps the links up until `stop`, then says goodbye.
///
/// # Errors
/// A refusal that needs a person; or no connection within 30 s of the start.
pub async fn keep<L: Connect>(
    broker: &Broker,
    gate: &str,
    state: &watch::Sender<LinkState<L>>,
    stop: &CancellationToken,
) -> Result<(), Fault> {
    let started = Instant::now();
    let (mut wait, mut refusals, mut connected_once) = (FIRST_WAIT, 0, false);
    loop {
        let connecting = L::connect(broker, gate);
        let outcome = tokio::select! {
            outcome = connecting => outcome,
            () = stop.cancelled() => return Ok(()),
        };
        match outcome {
            Ok(links) => {
                tracing::info!("connected to {}", L::BROKER);
                (refusals, connected_once) = (0, true);
                let connected_at = Instant::now();
                let links = Arc::new(links);
                state.send_replace(LinkState::Up(Arc::clone(&links)));
                let cause = tokio::select! {
                    cause = links.lost() => cause,
                    () = stop.cancelled() => {
                        links.goodbye().await;
                        return Ok(());
                    }
                };
                links.cut();
                if connected_at.elapsed() > LONGEST_WAIT {
                    // A link that lasted is worth being fetched back at once; one that flaps would be nothing but work.
                    wait = FIRST_WAIT;
                }
                tracing::warn!(cause, "lost the connection to {}, which shuts every edge of this gate", L::BROKER);
                let reason = lost::<L>(&cause);
                state.send_replace(LinkState::Down(Some(reason)));
            }
            Err(fault) => {
                let refused = fault.retry() == Retry::NeedsPerson;
                refusals += u32::from(refused);
                let hopeless =
                    if connected_once { refusals > REFUSALS } else { refused || started.elapsed() > START_PATIENCE };
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

/// Calls `tell` each time that there are other links than before, until there will be no more.
pub(crate) async fn reconnects<L>(mut links: watch::Receiver<LinkState<L>>, tell: impl Fn()) {
    // Held weakly: whoever keeps the links ends them by letting go of them.
    let mut last: Option<Weak<L>> = None;
    loop {
        if let LinkState::Up(links) = &*links.borrow_and_update() {
            let these = Arc::downgrade(links);
            if last.replace(these.clone()).is_some_and(|last| !last.ptr_eq(&these)) {
                tell();
            }
        }
        if links.changed().await.is_err() {
            return;
        }
    }
}

fn lost<L: Connect>(cause: &str) -> Reason {
    Reason::new(
        Code::BrokerUnreachable,
        format!("the connection to {} was lost ({cause}); the broker keeps the edge shut", L::BROKER),
        "none: the gate connects again by itself",
    )
}
