//! What recycling needs, on Redis: remote control, and what the feeder has heard of the worker.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{feeder::Feeder, remote::Remote};
use crate::{
    edge::{celery::Command, fault::Fault, recycle::Hands},
    model::WorkerName,
};

const LOOK: Duration = Duration::from_millis(100);

/// One worker's.
#[derive(Debug)]
pub(super) struct Recycling {
    pub(super) remote: Arc<Remote>,
    pub(super) feeder: Arc<Feeder>,
    pub(super) worker: WorkerName,
    pub(super) lane: String,
}

impl Hands for Recycling {
    async fn shut_down(&self) -> Result<bool, Fault> {
        // Every worker of the database hears it, so whether this one did shows in nothing but what it does.
        self.remote.send(&self.worker, &self.lane, Command::Shutdown).await.map(|()| true)
    }

    async fn process(&self) -> Result<u32, Fault> {
        loop {
            if let Some(pid) = self.feeder.process(&self.worker) {
                return Ok(pid);
            }
            sleep(LOOK).await;
        }
    }

    async fn consumes(&self) -> Option<bool> {
        let consumes = self.remote.consumes(&self.worker, &self.lane).await;
        // Remote control may be off. A worker that shuts down says so in an event.
        consumes.or_else(|| Some(self.feeder.is_heard(&self.worker)))
    }
}
