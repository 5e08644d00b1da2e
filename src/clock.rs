//! The one place that reads the clocks.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

use crate::model::{Mono, Now};

/// Both clocks at this instant.
///
/// `mono` is CLOCK_BOOTTIME, because a machine that was suspended for an hour has evidence that is an hour old;
/// CLOCK_MONOTONIC would call it fresh.
pub fn now() -> Now {
    // The call cannot fail for a clock that every supported kernel has. If it did, time zero would make all evidence
    // look older than the machine, which keeps edges shut.
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    Now { mono: Mono(since_boot), wall: Timestamp::now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_moves_forward_and_starts_at_boot() {
        let first = now();
        let second = now();
        assert!(first.mono > Mono::default());
        assert!(second.mono >= first.mono);
        assert!(second.mono.since(first.mono) < Duration::from_secs(5));
    }
}
