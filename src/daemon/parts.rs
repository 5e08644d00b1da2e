//! The tasks of the gate, and the signals that stop them.

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::edge::fault::Fault;

/// The parts of the gate, and how each of them is told to stop.
pub(super) struct Parts {
    /// `None` from one that was told to end while the gate goes on.
    pub(super) tasks: JoinSet<Option<(String, Result<(), Fault>)>>,
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
        self.tasks.spawn(async move { Some((name, part.await)) });
    }

    /// One that may end once it was told to.
    pub(super) fn spawn_until(
        &mut self,
        stop: CancellationToken,
        name: String,
        part: impl Future<Output = Result<(), Fault>> + Send + 'static,
    ) {
        self.tasks.spawn(async move {
            let ended = part.await;
            (!stop.is_cancelled()).then_some((name, ended))
        });
    }

    /// One that ends with the gate, or is aborted by its handle.
    pub(super) fn spawn_probe(&mut self, probe: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.probes.spawn(probe)
    }

    /// The first part that ends without having been told to. Cancel-safe.
    pub(super) async fn ended(&mut self) -> DaemonError {
        loop {
            let joined = tokio::select! {
                Some(joined) = self.tasks.join_next() => joined,
                Some(joined) = self.probes.join_next() => match joined {
                    Err(aborted) if aborted.is_cancelled() => Ok(None),
                    joined => joined.map(|()| Some(("the checks".to_owned(), Ok(())))),
                },
                else => return DaemonError::Defect("everything".to_owned()),
            };
            return match joined {
                Ok(None) => continue,
                Ok(Some((_, Err(fault)))) if !matches!(fault, Fault::LinkDown) => DaemonError::Broker(fault),
                Ok(Some((name, _))) => DaemonError::Defect(name),
                Err(panic) => DaemonError::Defect(panic.to_string()),
            };
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
