//! Notices that something was mounted or unmounted. What lies under a path can change that way without any event on it.

use std::{fs::File, io};

use super::task::wait_for;
use tokio::io::{Interest, unix::AsyncFd};

/// The mount table, which the kernel lets one wait for (proc(5), `/proc/pid/mounts`).
#[derive(Debug)]
pub(super) struct Mounts(Option<AsyncFd<File>>);

impl Mounts {
    /// Without /proc there is nothing to wait for, and the slow look has to find out.
    pub(super) fn open() -> Self {
        let open = || -> io::Result<_> { wait_for(File::open("/proc/thread-self/mountinfo")?, Interest::PRIORITY) };
        Self(open().ok())
    }

    /// Waits for the next change. Cancel-safe.
    pub(super) async fn changed(&self) {
        let ready = match &self.0 {
            Some(table) => table.ready(Interest::PRIORITY).await.ok(),
            None => None,
        };
        match ready {
            Some(mut ready) => ready.clear_ready(),
            None => std::future::pending().await,
        }
    }
}
