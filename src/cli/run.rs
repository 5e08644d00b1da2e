//! `worker-gate run`

use std::sync::Arc;

use super::{Coded, Context, Exit, exit, prepare};
use crate::{
    amqp::Retry,
    daemon::{self, DaemonError, Load},
};

pub(super) async fn run(context: &Context) -> anyhow::Result<Exit> {
    let setup = prepare::setup(context)?;
    let load: Load = {
        let context = context.clone();
        Arc::new(move || prepare::setup(&context).map_err(|error| exit::text(&error)))
    };
    match daemon::run(setup, load).await {
        Ok(()) => Ok(Exit::Done),
        Err(error) => {
            let exit = exit(&error);
            let remedy = remedy(&error).map_or_else(String::new, |remedy| format!("; {remedy}"));
            let chain = crate::chain::chain(&error);
            Err(Coded::new(exit, anyhow::anyhow!("failed to {chain}{remedy}")).into())
        }
    }
}

fn exit(error: &DaemonError) -> Exit {
    match error {
        DaemonError::Broker(fault) => broker_exit(fault.retry(), fault.is_permission()),
        DaemonError::Listen(error) if exit::is_denied(error) => Exit::NotPermitted,
        DaemonError::State(_) | DaemonError::Listen(_) => Exit::Settings,
        DaemonError::Start(_) | DaemonError::Defect(_) => Exit::Internal,
    }
}

fn remedy(error: &DaemonError) -> Option<&str> {
    match error {
        DaemonError::Broker(fault) => fault.remedy(),
        DaemonError::State(_) | DaemonError::Listen(_) | DaemonError::Start(_) | DaemonError::Defect(_) => None,
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::report::http::BindError;

    #[test]
    fn an_address_that_may_not_be_had_is_not_one_that_is_wrong() {
        let refused = |kind: io::ErrorKind| {
            exit(&DaemonError::Listen(BindError { address: "127.0.0.1:80".into(), source: kind.into() }))
        };
        assert_eq!(refused(io::ErrorKind::PermissionDenied), Exit::NotPermitted);
        assert_eq!(refused(io::ErrorKind::AddrInUse), Exit::Settings);
    }
}
