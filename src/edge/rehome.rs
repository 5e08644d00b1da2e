//! Gives what is held for a worker that is gone for good to another one.
//!
//! It is done under the ownership that a gate would have (G6), so no gate can take the worker back meanwhile, and one that lives
//! makes it refuse. What it moves goes in by the other worker's way, as if it had been published there: what the other's edge
//! does with it is that gate's business, and a later retry of the task goes the same way again (DESIGN.md 4.1).
//!
//! What is *absent*: nothing here opens an edge, and nothing touches what is held for anybody else.

use tokio_util::sync::CancellationToken;

use super::{fault::Fault, rabbitmq::route, redis};
use crate::{
    model::Account,
    settings::{BrokerUrl, IntakeType, Settings},
};

mod plan;

pub use plan::{Entry, Plan, PlanError};

/// Why nothing was moved, or no more.
#[derive(Debug, thiserror::Error)]
pub enum RehomeError {
    /// The broker's, or a gate owns the worker.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Somebody consumes the lane.
    #[error(
        "give away what is held for {worker}: its lane {lane} is still consumed ({consumers}); stop that worker first, or name \
         the right lane with --lane"
    )]
    Consumed {
        /// Who is said to be gone.
        worker: String,
        /// Its lane.
        lane: String,
        /// How many consume it.
        consumers: u32,
    },
    /// Nobody has ever heard of such a worker.
    #[error(
        "find what is held for {worker}: there is neither a queue {lane} nor {lane}.held; name its lane with --lane"
    )]
    NoQueues {
        /// Who is said to be gone.
        worker: String,
        /// Where its lane was looked for.
        lane: String,
    },
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Waiting at the beginning.
    pub before: u64,
    /// Moved, and confirmed by the broker.
    pub moved: u64,
    /// Waiting at the end, those that came meanwhile included.
    pub waiting: u64,
}

impl Outcome {
    /// The account of what waited at the beginning. What came meanwhile and was moved counts as if it had waited.
    pub fn account(self) -> Account {
        let before = self.before.max(self.moved);
        let left = self.waiting.min(before - self.moved);
        Account { before, moved: self.moved, left, taken: before - self.moved - left }
    }

    /// How many came meanwhile, and are held now.
    pub fn came(self) -> u64 {
        self.waiting - self.account().left
    }
}

/// Moves until nothing is left of what waited at the beginning, or until `stop`; then what is not confirmed stays where it was.
/// `tell` hears now and then how many of how many have been moved.
///
/// # Errors
/// Why nothing was moved, or no more: a gate owns the worker, somebody consumes its lane, or the broker's own.
pub async fn run(
    plan: &Plan,
    settings: &Settings,
    stop: &CancellationToken,
    tell: impl FnMut(u64, u64) + Send,
) -> Result<Outcome, RehomeError> {
    // By this name a gate that wants the worker meanwhile is told who has it.
    let name = format!("{} rehome", settings.gate.name);
    match settings.broker.urls.first() {
        Some(BrokerUrl::Amqp(url)) => route::rehome::run(plan, &settings.broker, url, &name, stop, tell).await,
        Some(BrokerUrl::Redis(_)) | None => redis::rehome::run(plan, &settings.broker, &name, stop, tell).await,
    }
}

/// A key with which messages come to whoever has these: one without wildcards if there is one, else the first with its
/// wildcards filled in. `None` where any key will do.
pub(crate) fn entry_key(kind: IntakeType, keys: &[String]) -> Option<String> {
    let is_wild = |word: &str| matches!(word, "*" | "#");
    match kind {
        IntakeType::ConsistentHash => None,
        IntakeType::Direct => keys.first().cloned(),
        IntakeType::Topic => {
            let exact = keys.iter().find(|key| !key.split('.').any(is_wild)).cloned();
            exact.or_else(|| {
                let words = keys.first()?.split('.').map(|word| if is_wild(word) { "rehomed" } else { word });
                Some(words.collect::<Vec<_>>().join("."))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_balances_and_what_came_meanwhile_is_told_apart() {
        for ((before, moved, waiting), (account_before, left, taken, came)) in [
            ((10, 10, 0), (10, 0, 0, 0)),
            ((10, 4, 6), (10, 6, 0, 0)),
            ((10, 4, 1), (10, 1, 5, 0)),
            ((10, 10, 3), (10, 0, 0, 3)),
            ((10, 12, 3), (12, 0, 0, 3)),
            ((0, 0, 0), (0, 0, 0, 0)),
        ] {
            let outcome = Outcome { before, moved, waiting };
            let expected = Account { before: account_before, moved, left, taken };
            assert_eq!((outcome.account(), outcome.came()), (expected, came), "{outcome:?}");
        }
    }

    #[test]
    fn a_message_comes_in_by_a_key_that_is_the_others() {
        let entry = |kind, keys: &[&str]| entry_key(kind, &keys.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(entry(IntakeType::Direct, &["codex-1", "one"]).as_deref(), Some("codex-1"));
        assert_eq!(entry(IntakeType::Direct, &["a.*"]).as_deref(), Some("a.*"), "a direct key has no wildcards");
        assert_eq!(entry(IntakeType::Topic, &["codex.#", "codex.eu"]).as_deref(), Some("codex.eu"));
        assert_eq!(entry(IntakeType::Topic, &["codex.*.low", "#"]).as_deref(), Some("codex.rehomed.low"));
        assert_eq!(entry(IntakeType::ConsistentHash, &["1"]), None);
    }
}
