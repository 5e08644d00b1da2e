//! When a delivery that failed is tried again.

use std::time::Duration;

use tokio::time::Instant;

/// Before the second attempt.
const FIRST: Duration = Duration::from_millis(500);

/// Doubled up to this: whoever comes back after a night is found half a minute later.
const LONGEST: Duration = Duration::from_secs(30);

/// For a webhook whose events nobody keeps: a deployment of the other side takes less.
const A_MINUTE: Duration = Duration::from_secs(60);

/// For one delivery.
#[derive(Debug)]
pub(super) struct Patience {
    /// `None`: for ever.
    limit: Option<Duration>,
    /// When it failed first.
    since: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// One attempt.
    pub(super) fn none() -> Self {
        Self::of(Some(Duration::ZERO))
    }

    /// About a minute.
    pub(super) fn a_minute() -> Self {
        Self::of(Some(A_MINUTE))
    }

    /// For ever.
    pub(super) fn endless() -> Self {
        Self::of(None)
    }

    fn of(limit: Option<Duration>) -> Self {
        Self { limit, since: None, pause: FIRST }
    }

    /// The pause before the next attempt, after one that has failed now; `None` if there shall be none.
    pub(super) fn after_failure(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let pause = self.pause;
        // Half of a pause more or less is what "about" means.
        if self.limit.is_some_and(|limit| now + pause / 2 > since + limit) {
            return None;
        }
        self.pause = (pause * 2).min(LONGEST);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses in ms, of deliveries that fail at once.
    fn pauses(mut patience: Patience) -> Vec<u128> {
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        while let Some(pause) = patience.after_failure(now) {
            pauses.push(pause.as_millis());
            now += pause;
            if pauses.len() == 12 {
                break;
            }
        }
        pauses
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let endless = pauses(Patience::endless());
        assert_eq!(endless[..8], [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(endless.len(), 12);
    }

    #[test]
    fn patience_ends_after_about_a_minute_or_at_once() {
        let minute = pauses(Patience::a_minute());
        let sum: u128 = minute.iter().sum();
        assert!((45_000..75_000).contains(&sum), "{minute:?}");
        assert!(pauses(Patience::none()).is_empty());
    }

    #[test]
    fn attempts_that_take_long_count_too() {
        let mut patience = Patience::a_minute();
        let now = Instant::now();
        assert!(patience.after_failure(now).is_some());
        assert!(patience.after_failure(now + Duration::from_secs(61)).is_none());
    }
}
