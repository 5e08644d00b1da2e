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
pub(crate) struct Consumed(Mutex<BTreeMap<String, Times>>);

/// How often one queue is consumed, as the broker may count it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Times {
    /// With those that have been asked to begin, or to end, and of which nothing has been heard since.
    most: u32,
    /// Without them.
    least: u32,
}

impl Consumed {
    /// Once more, until what is handed back is dropped. To be called before the broker is asked, for it counts before it answers.
    pub(super) fn begin(self: &Arc<Self>, queue: &str) -> Consuming {
        self.lock().entry(queue.to_owned()).or_default().most += 1;
        Consuming { consumed: Arc::clone(self), queue: queue.to_owned(), is_sure: false }
    }

    /// How often it consumes each of them at this moment.
    pub(crate) fn counts(&self) -> BTreeMap<String, usize> {
        self.lock().iter().map(|(queue, times)| (queue.clone(), times.most as usize)).collect()
    }

    /// Counts what waits in a queue, and who else consumes it.
    pub(super) async fn others(&self, channel: &Channel, queue: &ShortString) -> Result<Others, Fault> {
        // Before, for those that have ended when the broker counts, and after, for those that have begun.
        let before = self.times(queue.as_str());
        let counted = wire::count(channel, queue).await?;
        let after = self.times(queue.as_str());
        Ok(Others::of(u64::from(counted.message_count()), counted.consumer_count(), before, after))
    }

    fn times(&self, queue: &str) -> Times {
        self.lock().get(queue).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Times>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue, and who consumes it besides this gate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Others {
    /// Messages that wait.
    pub(super) waiting: u64,
    /// At least so many. While the gate begins or ends to consume one may be missed for a moment; it never takes itself for a
    /// worker.
    pub(super) consumers: u32,
    /// At most so many. While the gate begins or ends to consume one of these may be itself.
    pub(super) at_most: u32,
    /// Whether the gate consumes it as well.
    pub(super) and_we: bool,
}

impl Others {
    fn of(waiting: u64, consumers: u32, before: Times, after: Times) -> Self {
        let (most, least) = (before.most.max(after.most), before.least.min(after.least));
        Self {
            waiting,
            consumers: consumers.saturating_sub(most),
            at_most: consumers.saturating_sub(least),
            and_we: most > 0,
        }
    }
}

/// A queue being consumed.
#[derive(Debug)]
pub(crate) struct Consuming {
    consumed: Arc<Consumed>,
    queue: String,
    is_sure: bool,
}

impl Consuming {
    /// The broker has said that it is consumed.
    pub(super) fn has_begun(&mut self) {
        self.set_sure(true);
    }

    /// The broker is about to be asked to end it.
    pub(super) fn ends(&mut self) {
        self.set_sure(false);
    }

    fn set_sure(&mut self, is_sure: bool) {
        if is_sure == self.is_sure {
            return;
        }
        self.is_sure = is_sure;
        if let Some(times) = self.consumed.lock().get_mut(&self.queue) {
            times.least = if is_sure { times.least + 1 } else { times.least - 1 };
        }
    }
}

impl Drop for Consuming {
    fn drop(&mut self) {
        self.ends();
        if let Some(times) = self.consumed.lock().get_mut(&self.queue) {
            times.most -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_been_heard_of_yet_is_taken_neither_for_the_gate_nor_for_a_worker() {
        let consumed = Arc::<Consumed>::default();
        let bounds = |counted| {
            let times = consumed.times("lane");
            let Others { consumers, at_most, and_we, .. } = Others::of(0, counted, times, times);
            (consumers, at_most, and_we)
        };
        assert_eq!(bounds(1), (1, 1, false));
        let mut consuming = consumed.begin("lane");
        // One of the two may be the gate; if there is one it may be either.
        assert_eq!((bounds(2), bounds(1)), ((1, 2, true), (0, 1, true)));
        consuming.has_begun();
        assert_eq!((bounds(2), bounds(1)), ((1, 1, true), (0, 0, true)));
        consuming.ends();
        assert_eq!((bounds(2), bounds(1)), ((1, 2, true), (0, 1, true)));
        assert_eq!(consumed.counts()["lane"], 1);
        drop(consuming);
        assert_eq!((bounds(1), bounds(0)), ((1, 1, false), (0, 0, false)));
        // What fails, or is dropped with its channel, leaves nothing behind.
        drop(consumed.begin("lane"));
        let mut consuming = consumed.begin("lane");
        consuming.has_begun();
        drop(consuming);
        assert_eq!(consumed.times("lane"), Times::default());
    }

    #[test]
    fn what_begins_or_ends_while_the_broker_counts_may_be_in_its_count() {
        let of = |before, after| {
            let times = |(most, least)| Times { most, least };
            let others = Others::of(0, 2, times(before), times(after));
            (others.consumers, others.at_most)
        };
        assert_eq!(of((0, 0), (1, 1)), (1, 2));
        assert_eq!(of((1, 1), (0, 0)), (1, 2));
        assert_eq!(of((1, 1), (5, 1)), (0, 1));
    }
}
