//! Which shared queues this gate consumes: only so can a consumer that is no gate be told from one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lapin::{Channel, types::ShortString};

use super::wire;
use crate::edge::fault::Fault;

/// How often this gate consumes which queue.
#[derive(Debug, Default)]
pub(crate) struct Consumed(Mutex<BTreeMap<String, usize>>);

impl Consumed {
    /// Once more, until what is handed back is dropped.
    pub(super) fn begin(self: &Arc<Self>, queue: &str) -> Consuming {
        *self.lock().entry(queue.to_owned()).or_default() += 1;
        Consuming { consumed: Arc::clone(self), queue: queue.to_owned() }
    }

    /// How often it consumes each of them at this moment.
    pub(crate) fn counts(&self) -> BTreeMap<String, usize> {
        self.lock().clone()
    }

    /// Counts what waits in a queue, and who else consumes it.
    pub(super) async fn others(&self, channel: &Channel, queue: &ShortString) -> Result<Others, Fault> {
        // Before, for those that have ended when the broker counts, and after, for those that have begun.
        let before = self.times(queue);
        let counted = wire::count(channel, queue).await?;
        let own = before.max(self.times(queue));
        let consumers = counted.consumer_count().saturating_sub(own);
        Ok(Others { waiting: u64::from(counted.message_count()), consumers, and_we: own > 0 })
    }

    fn times(&self, queue: &ShortString) -> u32 {
        self.lock().get(queue.as_str()).map_or(0, |times| u32::try_from(*times).unwrap_or(u32::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue, and who consumes it besides this gate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Others {
    /// Messages that wait.
    pub(super) waiting: u64,
    /// While the gate begins or ends to consume one may be missed for a moment; it never takes itself for a worker.
    pub(super) consumers: u32,
    /// Whether the gate consumes it as well.
    pub(super) and_we: bool,
}

/// A queue being consumed.
#[derive(Debug)]
pub(crate) struct Consuming {
    consumed: Arc<Consumed>,
    queue: String,
}

impl Drop for Consuming {
    fn drop(&mut self) {
        if let Some(times) = self.consumed.lock().get_mut(&self.queue) {
            *times -= 1;
        }
    }
}
