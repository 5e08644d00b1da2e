//! The route edge: the broker routes, the gate only owns the way (DESIGN.md 4.1).
//!
//! ```text
//! producer ─▶ intake ─(key)─▶ edge exchange ─(alternate)─▶ lane exchange ─▶ lane ─▶ worker
//!               │ alternate        └ bound to the owner queue, which is exclusive to the gate's control connection
//!               ▼
//!          intake.held ─(key)─▶ lane.held
//! ```
//!
//! The edge exchange deletes itself with its last own binding, and that binding ends with the owner queue, and that ends
//! with the connection: a gate that dies shuts the way by dying (G4), and no message is touched for it. A living gate opens
//! and shuts by the binding from the intake alone; why is said at `Topology::shut_edge`.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

mod letter;
mod mover;
pub(crate) mod names;
mod owner;
mod proof;
mod serving;
mod settling;
mod topology;

use names::Names;
use serving::serve;

use super::{fault::Fault, links::LinkState};
use crate::{
    amqp::Retry,
    chain::chain,
    model::{EdgeReport, Wanted, WorkerName},
    settings::{RouteIntake, Worker},
};

/// Between two attempts at what another gate or a ghost of this one still holds.
const SOON: Duration = Duration::from_millis(500);
/// Between two later attempts at what another gate seems to own for good.
const STANDING_BY: Duration = Duration::from_secs(2);
/// Between two attempts at what needs a person, once the edge has worked before.
const LATE: Duration = Duration::from_secs(30);

/// What one route edge needs to know.
#[derive(Debug)]
pub struct Route {
    /// The worker.
    pub worker: Worker,
    /// Its intake.
    pub intake: RouteIntake,
    /// The gate's name, for whoever asks the owner.
    pub gate: String,
    /// For the commands in remedies.
    pub vhost: String,
    /// Likewise.
    pub user: String,
}

/// The ends of an edge's channels.
#[derive(Debug)]
pub struct Ends {
    /// The gate's connections.
    pub links: watch::Receiver<LinkState>,
    /// What the verdict wants.
    pub wanted: watch::Receiver<Wanted>,
    /// The only way back.
    pub reports: mpsc::Sender<(WorkerName, EdgeReport)>,
}

impl Ends {
    async fn tell(&self, worker: &WorkerName, report: EdgeReport) {
        // The daemon drains this channel for as long as it lives.
        let _ = self.reports.send((worker.clone(), report)).await;
    }
}

/// What outlives one ownership.
#[derive(Debug)]
struct Memory {
    /// Whether the edge has worked, or the gate runs on in spite of it.
    worked: bool,
    /// How often in a row another gate was found to own the worker.
    owned_by_others: u32,
    /// Whether the worker may have been told to stop consuming its lane, by this gate or by one before it that did not live
    /// to undo it.
    maybe_deaf: bool,
}

/// Keeps one worker's edge as wanted until `stop`; the link's end then takes the owner queue away.
///
/// # Errors
/// What needs a person, if the edge has never worked.
pub async fn run(route: Route, mut ends: Ends, stop: CancellationToken) -> Result<(), Fault> {
    let names = Names::new(&route.worker, &route.intake);
    let mut memory = Memory { worked: false, owned_by_others: 0, maybe_deaf: true };
    let (mut said, mut lost) = (String::new(), false);
    loop {
        let state = ends.links.borrow_and_update().clone();
        let wait = match state {
            LinkState::Down(reason) => {
                lost = false;
                if let Some(reason) = reason {
                    ends.tell(&route.worker.name, EdgeReport::Down(reason)).await;
                }
                None
            }
            LinkState::Up(links) => {
                if std::mem::take(&mut lost) {
                    // Lost and replaced before anybody looked: what was proven before does not count all the same.
                    ends.tell(&route.worker.name, EdgeReport::Down(Fault::LinkDown.reason())).await;
                }
                let Err(fault) = serve(&route, &names, &links, &mut ends, &mut memory, &stop).await else {
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
                    tracing::warn!(worker = %route.worker.name, remedy = fault.remedy(), "failed to {text}");
                    said = text;
                }
                ends.tell(&route.worker.name, EdgeReport::Down(fault.reason())).await;
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
