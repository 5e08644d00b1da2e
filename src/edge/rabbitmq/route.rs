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

use std::sync::Arc;

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

use super::links::Links;
use crate::{
    edge::{Edge, Ends, Memory, fault::Fault},
    model::WorkerName,
    settings::{RouteIntake, Worker},
};

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
    /// Whether the worker may have been told to stop consuming its lane, by this gate or by one before it that did not live
    /// to undo it.
    pub maybe_deaf: bool,
}

impl Edge for Route {
    type Links = Links;

    fn worker(&self) -> &WorkerName {
        &self.worker.name
    }

    async fn serve(
        &mut self,
        links: &Arc<Links>,
        ends: &mut Ends<Links>,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<(), Fault> {
        let names = Names::new(&self.worker, &self.intake);
        let mut maybe_deaf = self.maybe_deaf;
        let served = serving::serve(self, &names, links, ends, memory, &mut maybe_deaf, stop).await;
        self.maybe_deaf = maybe_deaf;
        served
    }
}
