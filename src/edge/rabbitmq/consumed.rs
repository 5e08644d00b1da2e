//! Which shared queues this gate consumes: only so can a consumer that is no gate be told from one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
