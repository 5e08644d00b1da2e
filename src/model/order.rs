//! What an operator asks of a gate, and what became of it.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::WorkerName;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// Whom the broker vouches for (RabbitMQ's `user_id`); `None` if it vouches for nobody.
    pub user: Option<String>,
    /// What the request says of itself.
    pub claims: String,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "{} (the broker's user {user})", self.claims),
            None => f.write_str(&self.claims),
        }
    }
}

/// An operator's hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Who asked for it.
    pub by: By,
    /// Why, in the operator's words; may be empty.
    pub reason: String,
    /// When the gate took it in.
    pub since: Timestamp,
    /// When it ends by itself; `None` if only a release ends it.
    pub until: Option<Timestamp>,
}

/// What an operator asks for one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// It is to get no work, however fit it is.
    Hold {
        /// As [`Hold::until`].
        until: Option<Timestamp>,
    },
    /// The hold is to end. A quarantine whose cause stands goes on.
    Release,
    /// Its checks are to run now.
    Recheck,
}

/// One request of an operator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// For whom.
    pub worker: WorkerName,
    /// What.
    pub ask: Ask,
    /// Who asks.
    pub by: By,
    /// Why, in the operator's words; may be empty.
    pub reason: String,
}

/// What became of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The worker is held.
    Held,
    /// The hold has ended.
    Released,
    /// There was no hold to end.
    NotHeld,
    /// The checks are about to run.
    Rechecking,
    /// The worker is not this gate's, or another gate owns it.
    NotOwner,
}

/// An order inside a record, with what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Command {
    /// What was asked.
    pub ask: Verb,
    /// Who asked; the gate itself for a hold that has ended by itself.
    pub by: By,
    /// Why.
    pub reason: String,
    /// For a hold: when it ends by itself.
    pub until: Option<Timestamp>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What was asked, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// [`Ask::Hold`]
    Hold,
    /// [`Ask::Release`]
    Release,
    /// [`Ask::Recheck`]
    Recheck,
}

impl Verb {
    /// As it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Release => "release",
            Self::Recheck => "recheck",
        }
    }
}
