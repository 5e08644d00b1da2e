//! `worker-gate run`

use super::{
    Coded, Context, Exit,
    prepare::{prepare, runner},
};
use crate::{
    amqp::Retry,
    daemon::{self, DaemonError},
};

pub(super) async fn run(context: &Context) -> anyhow::Result<Exit> {
    let (settings, identities) = prepare(context)?;
    let runner = runner(context, &settings)?;
    tracing::info!(
        gate = settings.gate.name,
        workers = settings.workers.len(),
        "worker-gate {}",
        env!("CARGO_PKG_VERSION")
    );
    let probes = crate::probe::probes(&settings);
    match daemon::run(settings, identities, runner, probes).await {
        Ok(()) => Ok(Exit::Done),
        Err(error) => {
            let exit = exit(&error);
            let remedy = remedy(&error).map_or_else(String::new, |remedy| format!("; {remedy}"));
            Err(Coded::new(exit, anyhow::anyhow!("failed to {}{remedy}", crate::chain::chain(&error))).into())
        }
    }
}

fn exit(error: &DaemonError) -> Exit {
    match error {
        DaemonError::Broker(fault) => broker_exit(fault.retry(), fault.is_permission()),
        DaemonError::State(_) | DaemonError::Listen(_) | DaemonError::Unsupported { .. } => Exit::Settings,
        DaemonError::Start(_) | DaemonError::Defect(_) => Exit::Internal,
    }
}

fn remedy(error: &DaemonError) -> Option<&str> {
    match error {
        DaemonError::Broker(fault) => fault.remedy(),
        DaemonError::State(_)
        | DaemonError::Listen(_)
        | DaemonError::Unsupported { .. }
        | DaemonError::Start(_)
        | DaemonError::Defect(_) => None,
    }
}

/// The broker's answers: what is not there is 69, what is not allowed 77, what is set up otherwise 78.
pub(super) fn broker_exit(retry: Retry, is_permission: bool) -> Exit {
    match retry {
        _ if is_permission => Exit::NotPermitted,
        Retry::NeedsPerson => Exit::Settings,
        Retry::Soon | Retry::AfterReconnect => Exit::Unreachable,
    }
}
