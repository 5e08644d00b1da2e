//! Durations as settings write them: `"250ms"`, `"30s"`, `"5m"`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};

/// The units, largest first, with their length in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A year: longer than anything here can sensibly take, and far from where adding to a clock overflows.
const LONGEST_MS: u64 = 365 * 86_400_000;

/// [`parse`], but not less than so many milliseconds.
pub(super) fn at_least(text: &str, least: u32) -> Result<Duration, &'static str> {
    let duration = parse(text)?;
    if duration < Duration::from_millis(least.into()) { Err("no time at all") } else { Ok(duration) }
}

/// Reads a whole number and a unit, up to 365 days. The error says what is wrong, without the text itself.
pub(crate) fn parse(text: &str) -> Result<Duration, &'static str> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) if number.is_empty() => return Err("not a duration"),
        Err(_) => return Err("too long a duration"),
    };
    let Some((_, ms)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(if unit.is_empty() { "a duration without a unit" } else { "not a duration" });
    };
    match number.checked_mul(*ms) {
        Some(ms) if ms <= LONGEST_MS => Ok(Duration::from_millis(ms)),
        Some(_) | None => Err("too long a duration"),
    }
}

/// For serde, on text that [`parse`] has already accepted.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// Writes a duration in the largest unit that leaves no rest; zero in seconds.
pub(super) fn text(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms == 0 {
        return "0s".to_owned();
    }
    let (unit, size) =
        UNITS.iter().find(|(_, size)| ms.is_multiple_of(u128::from(*size))).copied().unwrap_or(("ms", 1));
    format!("{}{unit}", ms / u128::from(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_written_back() {
        for (written, ms) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000)] {
            assert_eq!(parse(written), Ok(Duration::from_millis(ms)), "{written}");
            assert_eq!(text(Duration::from_millis(ms)), written);
        }
        assert_eq!(text(Duration::from_secs(90)), "90s");
    }

    #[test]
    fn what_is_no_positive_whole_number_with_a_unit_is_refused() {
        for wrong in ["", "5", "s", "-5s", "+5s", "1.5s", "5 s", " 5s", "5S", "5min", "1h30m", "0s", "0ms", "366d"] {
            assert!(at_least(wrong, 1).is_err(), "{wrong:?} was accepted");
        }
        assert_eq!(at_least("0s", 0), Ok(Duration::ZERO));
        assert_eq!(parse("99999999999999999999s"), Err("too long a duration"));
        assert_eq!(parse("18446744073709551615d"), Err("too long a duration"));
        assert_eq!(parse("5"), Err("a duration without a unit"));
    }
}
