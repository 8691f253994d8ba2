//! Time spans as people write them in flags, and in the ConfigMap `braid-config` that fills these.

use std::time::Duration;

/// The shortest of most time spans: what is counted in whole seconds.
pub const SECOND: Duration = Duration::from_secs(1);
/// The longest of most time spans. Nobody means more, and the bound keeps clock arithmetic safe.
pub const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// From the longest unit to the shortest, in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Why a text is no time span that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// No number, no known unit, or too large to be counted.
    #[error("`{0}` is no time span; write a whole number and a unit, such as `500ms`, `30s`, `15m` or `1h`")]
    Unreadable(String),
    /// A number alone: seconds to some, milliseconds to others.
    #[error("`{0}` has no unit; write `{0}s` for seconds or `{0}ms` for milliseconds")]
    NoUnit(u64),
    /// Shorter than what works.
    #[error("`{given}` is too short; write at least `{shortest}`")]
    TooShort {
        /// As it was given.
        given: String,
        /// As [`written`].
        shortest: String,
    },
    /// Longer than what works.
    #[error("`{given}` is too long; write at most `{longest}`")]
    TooLong {
        /// As it was given.
        given: String,
        /// As [`written`].
        longest: String,
    },
}

/// A whole number and one of the units `ms`, `s`, `m`, `h`. `0` needs no unit.
///
/// # Errors
/// If it is anything else.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let unreadable = || DurationError::Unreadable(text.to_owned());
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| unreadable())?;
    match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, millis)) => number.checked_mul(*millis).map(Duration::from_millis).ok_or_else(unreadable),
        None if unit.is_empty() && number == 0 => Ok(Duration::ZERO),
        None if unit.is_empty() => Err(DurationError::NoUnit(number)),
        None => Err(unreadable()),
    }
}

/// A parser of time spans from `shortest` to `longest`.
pub fn between(
    shortest: Duration,
    longest: Duration,
) -> impl Fn(&str) -> Result<Duration, DurationError> + Clone + Send + Sync + 'static {
    move |text| {
        let span = parse(text)?;
        let given = || text.to_owned();
        if span < shortest {
            return Err(DurationError::TooShort { given: given(), shortest: written(shortest) });
        }
        if span > longest {
            return Err(DurationError::TooLong { given: given(), longest: written(longest) });
        }
        Ok(span)
    }
}

/// The shortest way to write it, to the millisecond: `1h`, `90s`.
#[must_use]
pub fn written(span: Duration) -> String {
    let millis = span.as_millis();
    let (unit, size) =
        UNITS.into_iter().find(|(_, size)| millis.is_multiple_of(u128::from(*size))).unwrap_or(("ms", 1));
    if millis == 0 { "0".to_owned() } else { format!("{}{unit}", millis / u128::from(size)) }
}

/// Whole seconds, rounded up: where only those are counted, nothing is shorter than it was asked for.
#[must_use]
pub fn whole_seconds(span: Duration) -> u64 {
    span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("060s", 60_000),
            ("15m", 900_000),
            ("2h", 7_200_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "s", "-1s", "+1s", "1d", "1.5s", "30 s", "1h30m", "30S"] {
            assert_eq!(parse(bad), Err(DurationError::Unreadable(bad.to_owned())), "{bad}");
        }
        for huge in ["99999999999999999999s", "18446744073709551615h"] {
            assert!(parse(huge).is_err(), "{huge}");
        }
    }

    #[test]
    fn what_is_wrong_says_what_to_write() {
        let said = |text| between(SECOND, Duration::from_secs(120))(text).unwrap_err().to_string();
        for (text, sentence) in [
            ("60", "`60` has no unit; write `60s` for seconds or `60ms` for milliseconds"),
            ("0", "`0` is too short; write at least `1s`"),
            ("999ms", "`999ms` is too short; write at least `1s`"),
            ("1h", "`1h` is too long; write at most `2m`"),
            (
                "",
                "`` is no time span; write a whole number and a unit, such as `500ms`, `30s`, `15m` or `1h`",
            ),
        ] {
            assert_eq!(said(text), sentence);
        }
        assert_eq!(between(SECOND, YEAR)("8760h"), Ok(YEAR));
    }

    #[test]
    fn what_is_written_is_read() {
        for text in ["0", "1ms", "1500ms", "90s", "2m", "1h", "8760h"] {
            assert_eq!(written(parse(text).unwrap()), text);
        }
    }

    #[test]
    fn part_of_a_second_counts_as_one() {
        for (text, seconds) in [("0", 0), ("1ms", 1), ("1s", 1), ("1001ms", 2), ("1h", 3600)] {
            assert_eq!(whole_seconds(parse(text).unwrap()), seconds, "{text}");
        }
    }
}
