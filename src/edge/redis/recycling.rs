//! What recycling needs, on Redis: remote control, and what the feeder has heard of the worker.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::links::Links;
use crate::{
    edge::{celery::Command, fault::Fault, links::LinkState, recycle::Hands},
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

impl Recycling {
    fn links(&self) -> Result<Arc<Links>, Fault> {
        match &*self.links.borrow() {
            LinkState::Up(links) => Ok(Arc::clone(links)),
            LinkState::Down(_) => Err(Fault::LinkDown),
        }
    }
}

impl Hands for Recycling {
    async fn shut_down(&self) -> Result<bool, Fault> {
        // Every worker of the database hears it, so whether this one did shows in nothing but what it does.
        self.links()?.remote.send(&self.worker, &self.lane, Command::Shutdown).await.map(|()| true)
    }

    async fn process(&self) -> Result<u32, Fault> {
        loop {
            if let Some(pid) = self.links()?.feeder.process(&self.worker) {
                return Ok(pid);
            }
            sleep(LOOK).await;
        }
    }

    async fn consumes(&self) -> Option<bool> {
        let links = self.links().ok()?;
        let consumes = links.remote.consumes(&self.worker, &self.lane).await;
        // Remote control may be off. A worker that shuts down says so in an event.
        consumes.or_else(|| Some(links.feeder.is_heard(&self.worker)))
    }
}
