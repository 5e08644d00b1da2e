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

mod ears;
mod feeding;
mod letter;
pub(crate) mod looking;
mod mouth;
mod mover;
pub(crate) mod names;
mod owner;
mod proof;
pub(crate) mod rehome;
mod serving;
mod settling;
mod topology;

use names::Names;

use super::links::Links;
use crate::{
    edge::{Edge, Ends, Memory, fault::Fault},
    model::WorkerName,
    settings::{Feed, FeedIntake, IntakeType, RouteIntake, Worker},
};

/// What one route edge needs to know.
#[derive(Debug)]
pub struct Route {
    /// The worker.
    pub worker: Worker,
    /// Its intake; for a feed, the exchange by which the gate publishes to the lane.
    pub intake: RouteIntake,
    /// The queue that the gate feeds it from, and how; `None` where producers publish to the intake themselves.
    pub feed: Option<Feed>,
    /// The gate's name, for whoever asks the owner.
    pub gate: String,
    /// For the commands in remedies.
    pub vhost: String,
    /// Likewise.
    pub user: String,
    /// What is known of the worker's consuming.
    pub deaf: Deaf,
}

/// Whether the worker consumes its lane when the edge is open. A command of Celery's remote control is no more than a wish: the worker
/// may read it late, and carries out what it reads at one time in any order (kombu/asynchronous/hub.py, `call_soon`). So nothing is
/// undone by its opposite before it has been seen to have had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deaf {
    /// It was seen to consume after all that it was told.
    No,
    /// It was told to go on, or a gate before this one may have told it to stop and did not live to undo it.
    Perhaps,
    /// It was told to stop, and was not seen to have stopped yet.
    Soon,
}

impl Route {
    /// The edge of a feed from this queue (DESIGN.md 4.2): the gate publishes to `<queue>.feed` with the lane's name as the key,
    /// and what comes there while the edge is shut goes back to the queue.
    pub fn fed(worker: Worker, queue: &str, feed: Feed, gate: String, (vhost, user): (String, String)) -> Self {
        let intake = Self::fed_by(&worker, queue);
        Self { worker, intake, feed: Some(feed), gate, vhost, user, deaf: Deaf::Perhaps }
    }

    /// The exchange by which a gate feeds this worker from this queue.
    fn fed_by(worker: &Worker, queue: &str) -> RouteIntake {
        let (exchange, keys) = (names::feed_exchange(queue), vec![worker.lane.clone()]);
        RouteIntake { exchange, kind: IntakeType::Direct, keys }
    }
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
        let shared = self.feed.as_ref().and_then(|feed| match &feed.intake {
            FeedIntake::Queue(queue) => Some(queue.as_str()),
            FeedIntake::Exchange { .. } => None,
        });
        let names = Names::new(&self.worker, &self.intake, shared);
        let mut deaf = self.deaf;
        let served = serving::serve(self, &names, links, ends, memory, &mut deaf, stop).await;
        self.deaf = deaf;
        served
    }
}
