//! What gates are asked over the broker: how things stand, and what operators want. There is no server in between: a request goes
//! to every gate by a fanout, and whoever it concerns answers to the asker's own queue.
//!
//! ```text
//!  worker-gate status ──▶ worker-gate.control (fanout) ──▶ every gate: guard ──▶ desk ──▶ the daemon's loop
//!          ▲                                                                      │
//!          └──────────────────────── a queue of the asker's own ◀─────────────────┘
//! ```
//!
//! - [`Request`] and [`Answer`] are the messages: JSON, at most [`LONGEST`] bytes.
//! - [`guard`] lets a request in or refuses it; with `control.key_file` it takes a signature, a fresh time and a new id.
//! - [`desk`] answers: out of the newest snapshot, or by asking the daemon's loop.
//! - [`roll`] is how a gate stays known that does not answer any more.
//! - [`rabbitmq`] and [`redis`] carry all that, and [`asker`] is the other end of it.
//!
//! What is *absent*: no request opens an edge. An operator can only take a hold away that an operator has put there, and the
//! verdict says what follows from it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::{Admission, Reason, WorkerName, order::Outcome};

pub mod asker;
pub mod desk;
pub mod guard;
pub mod key;
pub mod rabbitmq;
pub mod redis;
pub mod roll;

/// A fanout to all gates.
pub const EXCHANGE: &str = "worker-gate.control";

/// The header, of either broker's message, that has the signature of its body: HMAC-SHA256, in lower-case hex.
pub const SIGNATURE: &str = "worker-gate-hmac";

/// So many bytes a request may have. One that names the most workers with the longest names has half as many.
pub const LONGEST: usize = 64 * 1024;

/// So many workers one request may name; whoever means more sends more requests.
pub const MOST_WORKERS: usize = 200;

/// What is asked of all gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Made anew for each request; the answers carry it.
    pub id: String,
    /// When it was made.
    pub at: Timestamp,
    /// Who asks, as it says itself.
    pub by: String,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// The records of all workers.
    Status,
    /// How often each shared queue is consumed, and by whom.
    Consumes,
    /// That workers get no work until somebody says otherwise.
    Hold(Wish),
    /// That an operator's hold ends.
    Release(Wish),
    /// That checks run now.
    Recheck(Wish),
}

/// What an operator wants, and of whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// Whole names.
    pub workers: Vec<String>,
    /// Why; may be empty.
    pub reason: String,
    /// When it ends by itself; only for a hold.
    pub until: Option<Timestamp>,
}

/// One gate's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The request's.
    pub id: String,
    /// The gate's name.
    pub gate: String,
    /// Its process.
    pub pid: u32,
    /// What it says.
    pub says: Says,
}

/// What a gate answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Says {
    /// Every worker's record, as events carry it, and how many messages wait for it, where that is known (`waiting`).
    Status(Vec<Map<String, Value>>),
    /// How often it consumes each shared queue at this moment.
    Consumes(BTreeMap<String, usize>),
    /// What became of the wish, for each worker that is its own.
    Done(Vec<Done>),
    /// Why it does not do it, for people.
    Refused(String),
}

/// What became of a wish for one worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The worker.
    pub worker: WorkerName,
    /// What was done.
    pub outcome: Outcome,
    /// The worker's admission after it.
    pub admission: Admission,
    /// Why that is so.
    pub reason: Reason,
    /// What keeps the gate from remembering a hold over its own restart, if anything does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forgetful: Option<String>,
}
