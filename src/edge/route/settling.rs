//! An open or a shut whose messages are still on their way: when its account is complete, and what it says then.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::model::{Account, Exposed, Wanted};

/// For what waits to be moved after an open or a shut, before the account is told as it stands.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// What was sent before a queue was seen empty has come after so long.
const SILENCE: Duration = Duration::from_millis(100);

/// An open or a shut whose account is not complete yet.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) wanted: Wanted,
    pub(super) before: u64,
    pub(super) until: Instant,
    /// How many messages had been received when that number last grew, and since when it has not.
    received: (u64, Instant),
    /// What the worker already has; asked for while the lane is emptied.
    pub(super) exposed: Option<AbortOnDropHandle<Exposed>>,
}

impl Settling {
    /// Begins now.
    pub(super) fn new(wanted: Wanted, before: u64, exposed: Option<AbortOnDropHandle<Exposed>>) -> Self {
        let now = Instant::now();
        Self { wanted, before, until: now + SETTLE_LIMIT, received: (0, now), exposed }
    }

    /// Whether everything that waited has come. What the broker has sent may still be under way when its queue is empty, so
    /// if some of it went another way, only a silence tells.
    pub(super) fn has_come(&mut self, received: u64) -> bool {
        if received > self.received.0 {
            self.received = (received, Instant::now());
        }
        received >= self.before || self.received.1.elapsed() >= SILENCE
    }
}

/// What came while the moving went on was waiting as well, if it has been moved. What is still there is counted while messages
/// go from the queue into the mover's hands, and so perhaps twice: it is never more than what is not moved. What is missing was
/// taken by somebody else.
pub(super) fn balance(before: u64, moved: u64, left: u64) -> Account {
    let before = before.max(moved);
    let left = left.min(before - moved);
    Account { before, moved, left, taken: before - moved - left }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_balances_whatever_was_counted_meanwhile() {
        for (before, moved, left, account) in [
            (10, 10, 0, (10, 10, 0, 0)),
            (10, 4, 6, (10, 4, 6, 0)),
            (10, 4, 8, (10, 4, 6, 0)),
            (10, 4, 1, (10, 4, 1, 5)),
            (10, 13, 2, (13, 13, 0, 0)),
            (0, 0, 0, (0, 0, 0, 0)),
        ] {
            let found = balance(before, moved, left);
            assert_eq!((found.before, found.moved, found.left, found.taken), account);
        }
    }
}
