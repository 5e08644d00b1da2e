//! Edges first: while the broker is busy with many opens and shuts, nothing else is asked of it.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

/// So many at once are a rush. Fewer are confirmed before anything that waits for them could have begun.
const MANY: usize = 16;
/// A thousand shuts take half a second.
const LIMIT: Duration = Duration::from_secs(1);

/// The opens and shuts of one gate that the broker has not confirmed yet. When one edit shuts a thousand edges, nobody's
/// messages are looked after and nobody is told before the last edge is shut: the broker would have ten times as much to do
/// meanwhile.
#[derive(Debug, Clone)]
pub struct Rush(Arc<watch::Sender<usize>>);

impl Default for Rush {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Rush {
    /// One more, until what is handed back is dropped.
    pub fn begin(&self) -> Urgent<'_> {
        // Nobody waits for there to be more.
        self.0.send_if_modified(|urgent| {
            *urgent += 1;
            false
        });
        Urgent(&self.0)
    }

    /// Waits until there is no rush, but not for long: each has an edge that waits as well. Cancel-safe.
    pub async fn over(&self) {
        self.fewer_than(MANY).await;
    }

    /// Waits until the broker has confirmed every one of them, but not for long. Cancel-safe.
    pub async fn quiet(&self) {
        self.fewer_than(1).await;
    }

    async fn fewer_than(&self, many: usize) {
        let mut urgent = self.0.subscribe();
        let _ = tokio::time::timeout(LIMIT, urgent.wait_for(|urgent| *urgent < many)).await;
    }
}

/// An open or a shut under way.
#[derive(Debug)]
pub struct Urgent<'a>(&'a watch::Sender<usize>);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.send_if_modified(|urgent| {
            *urgent -= 1;
            *urgent < MANY
        });
    }
}
