//! Waiting for a value with a bound, in place of sleeping and hoping.

use std::{
    thread,
    time::{Duration, Instant},
};

/// For what takes a second on an idle machine and may take many on a busy one.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Polls until `value` gives something, and panics with `what` after `bound`.
#[track_caller]
pub(crate) fn eventually<T>(bound: Duration, what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = value() {
            return found;
        }
        assert!(start.elapsed() < bound, "not within {bound:?}: {what}");
        // Short enough not to show in a latency of milliseconds that a test asserts, long enough to leave two cores idle.
        thread::sleep(Duration::from_millis(5));
    }
}

/// Polls until `holds`, and panics with `what` after `bound`.
#[track_caller]
pub(crate) fn until(bound: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    eventually(bound, what, || holds().then_some(()));
}

/// Looks again and again for the whole of `period`, and panics with `what` as soon as it does not hold.
#[track_caller]
pub(crate) fn throughout(period: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < period {
        assert!(holds(), "after {:?} it no longer holds: {what}", start.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
}
