//! One tokio runtime behind all helpers, so that they can be called from plain tests and from async ones alike.

use std::{
    future::Future,
    sync::{LazyLock, mpsc},
    time::Duration,
};

use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

/// Longer than any single broker operation takes on a loaded machine; a helper that hangs must fail its test.
const BOUND: Duration = Duration::from_secs(60);

/// Runs the future on the shared runtime and waits for it. Unlike `block_on`, this may be called from inside a runtime.
#[track_caller]
pub(crate) fn on<F>(future: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (send, receive) = mpsc::sync_channel(1);
    spawn(async move {
        let _ = send.send(future.await);
    });
    match receive.recv_timeout(BOUND) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("a helper did not come back within {BOUND:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("a helper panicked; its message stands above"),
    }
}

/// Starts the future on the shared runtime.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    RUNTIME.spawn(future);
}
