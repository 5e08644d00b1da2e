//! What is asked of the broker for `/metrics` alone.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{broker::Broker, parts::Parts};
use crate::{clock, report::metrics::Metrics, settings::Worker};

/// At the most so often: a thousand workers are a thousand questions, which take RabbitMQ some ten milliseconds.
const EVERY: Duration = Duration::from_secs(5);

/// Counts what waits for these workers after each scrape, for the next one; nothing while nobody scrapes. What is handed back
/// takes the workers that there are after a change of the settings.
pub(super) fn start(
    broker: &Arc<Broker>,
    metrics: &Arc<Metrics>,
    workers: &[Worker],
    parts: &mut Parts,
) -> watch::Sender<Vec<Worker>> {
    let (counted, workers) = watch::channel(workers.to_vec());
    let (asked, told) = (Arc::clone(broker), Arc::clone(metrics));
    parts.spawn_probe(async move {
        loop {
            told.scraped().await;
            let workers = workers.borrow().clone();
            let waiting = asked.waiting(&workers).await;
            told.counted(clock::now().mono, waiting);
            sleep(EVERY).await;
        }
    });
    let (asked, told) = (Arc::clone(broker), Arc::clone(metrics));
    parts.spawn_probe(async move {
        asked.reconnects(|| told.reconnected()).await;
        // The links end with the gate; a part that ended by itself would stop it.
        std::future::pending::<()>().await;
    });
    counted
}
