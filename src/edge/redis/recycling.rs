//! What recycling needs, on Redis: remote control, and what the feeder has heard of the worker.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::{sync::watch, time::sleep};

use super::links::Links;
use crate::{
    edge::{
        celery::Command,
        fault::Fault,
        links::{self, LinkState},
        recycle::Hands,
    },
    model::WorkerName,
};

const LOOK: Duration = Duration::from_millis(100);

/// One worker's.
#[derive(Debug)]
pub(super) struct Recycling {
    /// Those that there are at the time: starting anew may take longer than a link lasts.
    pub(super) links: watch::Receiver<LinkState<Links>>,
    pub(super) worker: WorkerName,
    pub(super) lane: String,
}

impl Hands for Recycling {
    async fn shut_down(&self) -> Result<bool, Fault> {
        // Every worker of the database hears it, so whether this one did shows in nothing but what it does.
        links::up(&self.links).await?.remote.send(&self.worker, &self.lane, Command::Shutdown).await.map(|()| true)
    }

    async fn process(&self) -> Result<u32, Fault> {
        loop {
            if let Some(pid) = links::up(&self.links).await?.feeder.process(&self.worker) {
                return Ok(pid);
            }
            sleep(LOOK).await;
        }
    }

    async fn consumes(&self) -> Option<bool> {
        let links = links::up(&self.links).now_or_never()?.ok()?;
        let consumes = links.remote.consumes(&self.worker, &self.lane).await;
        // Remote control may be off. A worker that shuts down says so in an event.
        consumes.or_else(|| links.feeder.is_heard(&self.worker))
    }
}
