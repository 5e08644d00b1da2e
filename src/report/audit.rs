//! The audit log: `<state_dir>/audit.jsonl`, one fact a line, each line bound to the one before it by a hash.
//!
//! # The exact form
//!
//! A line is a JSON object: the event's fields, then `prev`, then `hash`, then a line feed.
//!
//! ```text
//! {"type":"worker-admitted", … ,"prev":"<64 hex digits>","hash":"<64 hex digits>"}⏎
//! ```
//!
//! - `prev` is the `hash` of the line above; 64 zeros on the first line.
//! - `hash` is the sha256, in lower-case hex, over the line's bytes from the opening brace to the end of `prev`'s
//!   closing quote: everything that stands before `,"hash":"`. So it covers `prev`, and through it all lines above.
//!
//! Both stand at a fixed distance from the line's end, so a check needs no JSON parser. This one is run by a test:
//!
//! ```python
#![doc = include_str!("audit/verify.py")]
//! ```
//!
//! What stands at the log's end and is no line of it, as after a power cut, is set aside in `audit.torn-<time>` when a gate opens
//! the log. The next line says so in `audit_torn`, which stands before `prev`: the file's name, and how many bytes it has.
//!
//! # What it proves
//!
//! An edited line, a deletion, an insertion and a change of order break the chain at a line that [`verify`] names. Two
//! things need an outside witness, since who may write the file can also write its hashes anew: a log that was rebuilt
//! from some line on, and one whose end was cut off. The published events are that witness: each carries the chain's
//! newest hash as `audit_hash`, heartbeats too, and a `seq` without holes.

use crate::hash::sha256;

mod log;
mod read;

pub use log::{AuditError, AuditLog, Opened, Torn};
pub use read::{Broken, Entries, Entry, ReadError, Summary, VerifyError, Why, read, torn, verify};

/// The log's name in `state_dir`.
pub const FILE_NAME: &str = "audit.jsonl";

/// How the names of files begin that hold what was set aside.
const TORN_NAME: &str = "audit.torn-";

/// Where a line tells of that.
const TORN_FIELD: &str = "audit_torn";

/// `prev` of the first line.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// `,"hash":"`, 64 digits, `"}`.
const HASH_PART: usize = 9 + 64 + 2;

/// `,"prev":"`, 64 digits, `"`.
const PREV_PART: usize = 9 + 64 + 1;

/// The line for an event, with its line feed, and the line's hash. `event` is a JSON object with at least one field.
fn seal(event: &str, prev: &str) -> (String, String) {
    let mut line = String::with_capacity(event.len() + PREV_PART + HASH_PART + 1);
    line.push_str(event.strip_suffix('}').unwrap_or(event));
    line.push_str(",\"prev\":\"");
    line.push_str(prev);
    line.push('"');
    let hash = sha256(line.as_bytes());
    line.push_str(",\"hash\":\"");
    line.push_str(&hash);
    line.push_str("\"}\n");
    (line, hash)
}

/// A line, without its line feed, taken apart; `None` if it does not have the form of one.
#[derive(Debug, Clone, Copy)]
struct Parts<'a> {
    /// What `hash` is over.
    hashed: &'a [u8],
    prev: &'a str,
    hash: &'a str,
}

fn take_apart(line: &[u8]) -> Option<Parts<'_>> {
    let (hashed, hash) = line.split_at_checked(line.len().checked_sub(HASH_PART)?)?;
    let hash = hash.strip_prefix(b",\"hash\":\"")?.strip_suffix(b"\"}")?;
    let (_, prev) = hashed.split_at_checked(hashed.len().checked_sub(PREV_PART)?)?;
    let prev = prev.strip_prefix(b",\"prev\":\"")?.strip_suffix(b"\"")?;
    Some(Parts { hashed, prev: hex(prev)?, hash: hex(hash)? })
}

fn hex(digits: &[u8]) -> Option<&str> {
    let lower = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    digits.iter().all(lower).then(|| str::from_utf8(digits).ok()).flatten()
}

#[cfg(test)]
mod tests;
