//! Facts on their way out: the audit log, the fanout exchange, and HTTP. Never blocks anything, never feeds back.
//!
//! A fact is offered to the [`outbox`], stamped into an [`event`], written to the [`audit`] log, and then published. The
//! three run apart: a disk that hangs does not stop the daemon's loop, and a broker that is away does not stop the
//! disk. [`http`] shows the newest state to whoever asks; it reads a snapshot and can change nothing. [`metrics`] has what is
//! counted beside that, for Prometheus.

pub mod audit;
pub mod event;
pub mod http;
pub mod metrics;
pub mod outbox;
mod publish;
mod scribe;
