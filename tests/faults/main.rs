//! Kills the gate at every point of src/failpoint.rs, on every edge that passes it, while messages flow; lets the next gate
//! finish, and counts. `scripts/test --faults` runs it and shows the table.
//!
//! `WORKER_GATE_FAULTS` may have words: then only the rows with one of them in their name are run.
#![cfg(test)]

mod cases;
mod crew;
mod kill;
mod load;
mod place;
mod table;

/// The parts of the integration tests that this needs.
#[path = "../it/support"]
#[expect(dead_code, reason = "the integration tests use all of it")]
mod support {
    pub(crate) mod celery;
    pub(crate) mod facts;
    pub(crate) mod gate;
    pub(crate) mod process;
    pub(crate) mod rabbitmq;
    pub(crate) mod redis;
    pub(crate) mod runtime;
    pub(crate) mod scratch;
    pub(crate) mod tasks;
    pub(crate) mod vhost;
    pub(crate) mod wait;
}
