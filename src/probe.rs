//! Looks at the machine: checks and the profile, on their schedules. Knows nothing of edges.
//!
//! From the inside out: `spawner` starts processes, `family` finds what they leave behind, [`command`] runs one command
//! to its end in bounded time, [`check`] runs the commands of one check and reads a version, [`schedule`] repeats all of
//! that and sends what it finds. No decision about a worker is made here.

pub mod check;
pub mod command;
mod family;
pub mod image;
mod output;
mod profile;
pub(crate) mod program;
pub mod schedule;
pub mod signature;
mod spawner;
mod status;
pub mod toolchain;
pub(crate) mod version;

pub use command::Runner;
pub use profile::probes;
pub use schedule::{ProfileProbe, Schedule};
pub use signature::Signature;
