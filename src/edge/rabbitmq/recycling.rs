//! What recycling needs, on RabbitMQ: the worker's mailbox, its events, and how many consume its lane.

use futures_util::{FutureExt, StreamExt};
use lapin::types::ShortString;
use serde_json::Value;
use tokio::sync::watch;

use super::{
    links::Links,
    remote::{self, Sent},
    wire,
};
use crate::{
    edge::{
        celery::{self, Command},
        fault::Fault,
        links::{self, LinkState},
        recycle::Hands,
    },
    model::WorkerName,
};

/// One worker's.
#[derive(Debug)]
pub(super) struct Recycling {
    /// Those that there are at the time: starting anew may take longer than a link lasts.
    pub(super) links: watch::Receiver<LinkState<Links>>,
    pub(super) worker: WorkerName,
    pub(super) lane: ShortString,
}

impl Hands for Recycling {
    async fn shut_down(&self) -> Result<bool, Fault> {
        let sent =
            remote::send(&*links::up(&self.links).await?, &self.worker, self.lane.as_str(), Command::Shutdown).await?;
        Ok(sent == Sent::Delivered)
    }

    async fn process(&self) -> Result<u32, Fault> {
        let channel = wire::open(&links::up(&self.links).await?.moves).await?;
        let mut events = wire::hear_heartbeats(&channel).await?;
        let node = celery::node(&self.worker);
        let pid = loop {
            let Some(event) = events.next().await else { return Err(Fault::LinkDown) };
            let event = event.map_err(|error| Fault::command("listen to Celery's heartbeats", error))?;
            if let Some(pid) = celery::process(&serde_json::from_slice::<Value>(&event.data).unwrap_or_default(), &node)
            {
                break pid;
            }
        };
        let _ = channel.close(200, "done".into()).await;
        Ok(pid)
    }

    async fn consumes(&self) -> Option<bool> {
        let links = links::up(&self.links).now_or_never()?.ok()?;
        let channel = wire::open(&links.control).await.ok()?;
        let lane = links.consumed.others(&channel, &self.lane).await.ok()?;
        let _ = channel.close(200, "done".into()).await;
        // The gate's own consumers come and go.
        if lane.consumers > 0 { Some(true) } else { (lane.at_most == 0).then_some(false) }
    }
}
