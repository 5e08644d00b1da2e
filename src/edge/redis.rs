//! Edges on Redis, where nothing but feeding is possible: the gate moves, and only while it may (DESIGN.md 4.2).
//!
//! ```text
//! producer ─▶ intake (lists) ─(round.lua: owner? edge? room?)─▶ lane (lists) ─▶ worker
//! ```
//!
//! Two keys stand for what RabbitMQ's edge has in exchanges and queues: the *owner* says which gate has the worker, and the
//! *edge* is there while it is open. Both expire unless a living gate renews them, and every script that moves anything looks
//! at them first, so a gate that dies or hangs moves nothing any more (G4), and one that wakes up after its end moves nothing
//! either. What a worker was fed is at most `depth` messages; a shut puts them back to where they came from.
//!
//! All workers of a gate are fed in one round trip (`feeder`); when there is something to do, Redis says by itself: the lists
//! that a round has read are tracked (`CLIENT TRACKING`), so an idle gate asks for nothing.

mod address;
mod binding;
mod feed;
mod feeder;
mod kept;
pub(crate) mod keys;
pub mod links;
mod presence;
mod recycling;
pub(crate) mod rehome;
mod remote;
pub(crate) mod waiting;

pub use feed::Feed;

use ::redis::RedisError;

use super::fault::Fault;
use crate::redis::{is_refusal, text};

/// What Redis said while `doing`, a missing permission apart.
fn fault(doing: &str, error: RedisError) -> Fault {
    if is_refusal(&error) {
        return Fault::Permission { doing: doing.to_owned(), detail: text(&error), remedy: String::new() };
    }
    Fault::Redis { doing: doing.to_owned(), error: Box::new(error) }
}

/// The same, with the command that gives this user what it lacks.
fn mended(fault: Fault, user: &str) -> Fault {
    let Fault::Permission { doing, detail, remedy } = fault else { return fault };
    if !remedy.is_empty() {
        return Fault::Permission { doing, detail, remedy };
    }
    let remedy = format!("run: redis-cli ACL SETUSER {user} '~*' '&*' +@all (or rights that cover what was refused)");
    Fault::Permission { doing, detail, remedy }
}
