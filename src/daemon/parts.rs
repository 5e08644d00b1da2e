//! The tasks of the gate, and the signals that stop them.

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::edge::fault::Fault;

/// The parts of the gate, and how each of them is told to stop.
pub(super) struct Parts {
    pub(super) tasks: JoinSet<(String, Result<(), Fault>)>,
    pub(super) probes: JoinSet<()>,
    /// The edges let go of their workers.
    pub(super) stop_edges: CancellationToken,
    /// The links say goodbye, and so does HTTP.
    pub(super) stop_links: CancellationToken,
}

impl Parts {
    pub(super) fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
            probes: JoinSet::new(),
            stop_edges: CancellationToken::new(),
            stop_links: CancellationToken::new(),
        }
    }

    pub(super) fn spawn(&mut self, name: String, part: impl Future<Output = Result<(), Fault>> + Send + 'static) {
        self.tasks.spawn(async move { (name, part.await) });
    }

    pub(super) fn spawn_probe(&mut self, probe: impl Future<Output = ()> + Send + 'static) {
        self.probes.spawn(probe);
    }

    /// The first part that ends.
    pub(super) async fn ended(&mut self) -> DaemonError {
        let joined = tokio::select! {
            Some(joined) = self.tasks.join_next() => joined.map_err(|panic| panic.to_string()),
            Some(joined) = self.probes.join_next() => {
                Ok(("the checks".to_owned(), joined.map_err(|_| Fault::LinkDown)))
            }
            else => Err("everything".to_owned()),
        };
        match joined {
            Ok((_, Err(fault))) if !matches!(fault, Fault::LinkDown) => DaemonError::Broker(fault),
            Ok((name, _)) => DaemonError::Defect(name),
            Err(panic) => DaemonError::Defect(panic),
        }
    }
}

/// SIGTERM and SIGINT, which mean the same.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next request to stop.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
