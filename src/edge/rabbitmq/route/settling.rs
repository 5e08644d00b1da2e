//! An open or a shut whose messages are still on their way: when its account is complete, and what it says then.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::model::{Account, Exposed, Wanted};

/// For what waits to be moved after an open or a shut, before the account is told as it stands.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// An open or a shut whose account is not complete yet.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) wanted: Wanted,
    pub(super) before: u64,
    pub(super) until: Instant,
    /// What the worker already has; asked for while the lane is emptied.
    pub(super) exposed: Option<AbortOnDropHandle<Exposed>>,
    /// Ends when everything has come that was under way when the queues were seen empty.
    pub(super) swept: Option<AbortOnDropHandle<()>>,
}

impl Settling {
    /// Begins now.
    pub(super) fn new(wanted: Wanted, before: u64, exposed: Option<AbortOnDropHandle<Exposed>>) -> Self {
        Self { wanted, before, until: Instant::now() + SETTLE_LIMIT, exposed, swept: None }
    }

    /// Whether everything that waited has come. What the broker has sent may still be under way when its queue is empty, so
    /// if some of it went another way, only a sweep tells.
    pub(super) fn has_come(&self, received: u64) -> bool {
        received >= self.before || self.swept.as_ref().is_some_and(AbortOnDropHandle::is_finished)
    }
}

/// Between two looks at what takes long to be moved.
const PROGRESS_LOOK: Duration = Duration::from_secs(1);
/// Between two lines of the log about it.
const PROGRESS_LOG: Duration = Duration::from_secs(5);

/// How far a move has come whose account was told before its end.
#[derive(Debug)]
pub(super) struct Progress {
    told: Account,
    look_at: Instant,
    log_at: Instant,
}

impl Progress {
    /// Goes on from what was told.
    pub(super) fn new(told: Account) -> Self {
        let now = Instant::now();
        Self { told, look_at: now + PROGRESS_LOOK, log_at: now + PROGRESS_LOG }
    }

    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Where it stands, given how many are moved and how many can be seen, and whether that is to be logged. What the broker has
    /// sent and the mover has not taken yet can be seen nowhere. Nothing is left at the end.
    pub(super) fn look(&mut self, moved: u64, seen: u64) -> (Account, bool) {
        let now = Instant::now();
        self.look_at = now + PROGRESS_LOOK;
        let left = if seen == 0 { 0 } else { seen.max((self.told.moved + self.told.left).saturating_sub(moved)) };
        let logs = now >= self.log_at || left == 0;
        if logs {
            self.log_at = now + PROGRESS_LOG;
        }
        (balance(self.told.before.max(moved + left), moved, left), logs)
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
