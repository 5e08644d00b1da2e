//! worker-gate: admission control for Celery workers at the message broker.
//!
//! > A worker gets a task only while a living gate vouches, with fresh evidence, that its tools and its config are right.
//!
//! # How it hangs together
//!
//! ```text
//!  settings ─▶ daemon: one loop, three phases
//!                 1 select     turns what happens into an Input, and decides nothing
//!                 2 verdict    Gate::step(now, input) -> Step: pure, no clock, no I/O
//!                 3 act        edges first, reasons second
//!  probe ───Observation──▶ │                 │ Wanted: a watch channel    │ Fact: a bounded queue
//!  signals, timer ───────▶ │                 ▼                            ▼
//!  edge ────EdgeReport───▶ │◀── one way back ── edge (a task a worker)   report: audit log, exchange, HTTP
//! ```
//!
//! A newcomer reads [`model`] (the words), [`verdict`] (the decision), [`daemon`] (the loop), then [`edge`] and the
//! edge of interest: [`edge::rabbitmq`] (a route inside the broker, or a shared queue that the gate feeds from) or
//! [`edge::redis`] (the same by scripts); [`edge::rehome`] gives what is held for a worker that is gone to another one. The
//! rest are rooms of their own: [`probe`] runs checks as the worker's user and knows what their tools are made of, [`watch`]
//! tells when a file changes, [`profile`] reads and merges the managed config, [`settings`] reads and checks the settings,
//! [`report`] tells what happened, [`control`] is how gates are asked over the broker, [`cli`] is the command line, [`doctor`]
//! looks for ways round the gate, [`image`] records and verifies what
//! an image is made of, [`init`] writes a first settings file, [`amqp`] and [`redis`] make connections.
//!
//! # What is absent
//!
//! - Nothing in [`verdict`] reads a clock, a file or a socket; it imports [`model`] alone.
//! - Probes know nothing of edges, and edges nothing of probes: they meet in the verdict.
//! - Nothing in [`report`] feeds back into a decision, and nothing waits for it.
//! - No edge is opened by anything but the verdict's wish, and none survives its gate: the broker takes it away.
//! - No check is defined over a network, and none goes through a shell.

pub mod amqp;
mod brief;
pub mod chain;
pub mod cli;
pub mod clock;
pub mod control;
pub mod daemon;
pub mod doctor;
mod durable;
pub mod edge;
pub mod failpoint;
pub mod glob;
mod hash;
pub mod identity;
pub mod image;
pub mod init;
pub mod model;
pub mod probe;
pub mod profile;
pub mod redis;
mod regular;
pub mod report;
pub mod rush;
pub mod secret;
pub mod settings;
pub mod verdict;
pub mod watch;
