//! Owns the way from the intake to the lane, and reconciles it with what is wanted.
//!
//! An edge is not commanded: its task takes the newest [`Wanted`], compares it with what it last made of the broker, acts,
//! and tells what it saw as an [`EdgeReport`]. What is *absent*: no edge looks at checks or profiles, and none decides whether
//! a worker is fit.
//!
//! [`run`] is the same for all of them: wait for a link, serve the worker on it until a fault, say what the fault is, try
//! again when that can help. What one ownership is like on which broker is in [`rabbitmq`] and [`redis`].

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

mod bypass;
pub(crate) mod celery;
mod exposed;
pub mod fault;
pub mod links;
pub mod rabbitmq;
pub(crate) mod recycle;
pub mod redis;
pub mod rehome;
mod task_events;

use fault::Fault;
use links::{Connect, LinkState};

use crate::{
    amqp::Retry,
    chain::chain,
    model::{EdgeReport, Wanted, WorkerName},
};

/// Between two attempts at what another gate or a ghost of this one still holds.
const SOON: Duration = Duration::from_millis(500);
/// Between two later attempts at what another gate seems to own for good.
const STANDING_BY: Duration = Duration::from_secs(2);
/// Between two attempts at what needs a person, once the edge has worked before.
const LATE: Duration = Duration::from_secs(30);

/// Where messages wait: the holding queue of a lane, or the holding exchange of an intake.
pub(crate) fn held(name: &str) -> String {
    format!("{name}.held")
}

/// One worker's way, on one kind of broker.
pub trait Edge: Send {
    /// What it works on.
    type Links: Connect;

    /// Whose way it is.
    fn worker(&self) -> &WorkerName;

    /// One ownership: takes the worker, tells [`EdgeReport::Owned`], and does what is wanted until the first fault, or until
    /// `stop`; then lets the worker go.
    ///
    /// # Errors
    /// Why this gate does not own the worker, or no longer does; the edge is shut then, or will be by the broker.
    fn serve(
        &mut self,
        links: &Arc<Self::Links>,
        ends: &mut Ends<Self::Links>,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// The ends of an edge's channels.
#[derive(Debug)]
pub struct Ends<L> {
    /// The gate's connections.
    pub links: watch::Receiver<LinkState<L>>,
    /// What the verdict wants.
    pub wanted: watch::Receiver<Wanted>,
    /// The only way back.
    pub reports: mpsc::Sender<(WorkerName, EdgeReport)>,
}

impl<L> Ends<L> {
    async fn tell(&self, worker: &WorkerName, report: EdgeReport) {
        // The daemon drains this channel for as long as it lives.
        let _ = self.reports.send((worker.clone(), report)).await;
    }
}

/// What outlives one ownership.
#[derive(Debug, Default)]
pub struct Memory {
    /// Whether the edge has worked, or the gate runs on in spite of it.
    worked: bool,
    /// How often in a row another gate was found to own the worker.
    owned_by_others: u32,
    /// Makes the worker start anew, and tells what becomes of it.
    recycling: Option<AbortOnDropHandle<()>>,
}

impl Memory {
    /// For an edge that is added to a gate that works: what this worker may be refused must not end the other workers' gate.
    pub fn beside_others() -> Self {
        Self { worked: true, ..Self::default() }
    }
}

/// Keeps one worker's edge as wanted until `stop`; the link's end then takes the owner queue away.
///
/// # Errors
/// What needs a person, if the edge has never worked.
pub async fn run<E: Edge>(
    mut edge: E,
    mut ends: Ends<E::Links>,
    mut memory: Memory,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let worker = edge.worker().clone();
    let (mut said, mut lost) = (String::new(), false);
    loop {
        let state = ends.links.borrow_and_update().clone();
        let wait = match state {
            LinkState::Down(reason) => {
                lost = false;
                if let Some(reason) = reason {
                    ends.tell(&worker, EdgeReport::Down(reason)).await;
                }
                None
            }
            LinkState::Up(links) => {
                if std::mem::take(&mut lost) {
                    // Lost and replaced before anybody looked: what was proven before does not count all the same.
                    ends.tell(&worker, EdgeReport::Down(Fault::LinkDown.reason())).await;
                }
                let Err(fault) = edge.serve(&links, &mut ends, &mut memory, &stop).await else {
                    return Ok(());
                };
                if matches!(fault, Fault::LinkDown) {
                    lost = true;
                    continue;
                }
                if matches!(fault, Fault::Owned { .. }) {
                    // From here on the gate runs beside another one. What this worker may be refused once the other has gone
                    // must not end the other workers' gate.
                    memory.worked = true;
                    memory.owned_by_others += 1;
                } else {
                    memory.owned_by_others = 0;
                }
                let again = fault.retry();
                if again == Retry::NeedsPerson && !memory.worked {
                    return Err(fault);
                }
                let text = chain(&fault);
                if text != said {
                    tracing::warn!(worker = %worker, remedy = fault.remedy(), "failed to {text}");
                    said = text;
                }
                ends.tell(&worker, EdgeReport::Down(fault.reason())).await;
                match again {
                    Retry::Soon => Some(match memory.owned_by_others {
                        0..=3 => SOON,
                        // A gate that stands by for many workers would otherwise keep the broker busy.
                        _ => STANDING_BY.mul_f64(rand::random_range(0.8..1.2)),
                    }),
                    Retry::NeedsPerson => Some(LATE),
                    Retry::AfterReconnect => {
                        // Whatever is broken about it, the way must not stay open on a link that does not answer.
                        links.cut();
                        None
                    }
                }
            }
        };
        let pause = async { sleep(wait.unwrap_or(Duration::MAX)).await };
        tokio::select! {
            () = pause, if wait.is_some() => {}
            changed = ends.links.changed() => if changed.is_err() { return Ok(()) },
            () = stop.cancelled() => return Ok(()),
        }
    }
}
