//! `worker-gate run`

use std::sync::Arc;

use super::{Coded, Context, Exit, exit, prepare};
use crate::{
    amqp::Retry,
    daemon::{self, DaemonError, Load},
};

/// From so many bytes on an allocation is a mapping of its own: glibc's default (mallopt(3)).
#[cfg(target_env = "gnu")]
const MAPPED: nix::libc::c_int = 128 * 1024;

pub(super) async fn run(context: &Context) -> anyhow::Result<Exit> {
    #[cfg(target_env = "gnu")]
    keep_memory_small();
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

/// Keeps glibc from raising that limit. It does so when a mapping is given back, and each connection of lapin's has two buffers of
/// 4 MiB (io_loop.rs, `FRAMES_STORAGE`) of which it uses a few KB: mapped they cost no more than that, but those of the next
/// connection would be taken from the heap, which fills with zeros what was in use before, and keeps 8 MiB for the next time.
#[cfg(target_env = "gnu")]
fn keep_memory_small() {
    #[expect(unsafe_code, reason = "nix has no call for it, and what it sets is a number of the allocator's")]
    // SAFETY: it takes two numbers, and locks what it changes.
    let is_set = unsafe { nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MAPPED) } == 1;
    debug_assert!(is_set);
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

    #[test]
    #[cfg(target_env = "gnu")]
    fn large_buffers_stay_mappings_of_their_own_after_one_was_given_back() {
        super::keep_memory_small();
        // What is a mapping begins with a page, and with 16 bytes of glibc's.
        let is_mapped = || {
            let buffer = vec![0_u8; 4 << 20];
            buffer.as_ptr() as usize % 4096 == 16
        };
        for times in 0..4 {
            assert!(is_mapped(), "{times}");
        }
    }
}
