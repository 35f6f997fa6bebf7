//! How arguments are read: offsets, times and variables as people type them.
//!
//! Pure functions for clap's `value_parser`; what they refuse ends with exit code 2.

use std::str::FromStr;

use crate::core::deployment::StartOffset;
use crate::core::record::TimestampMs;
use crate::core::units::Span;
use crate::ports::ReadFrom;

/// Reads how many.
pub fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "write a number, 0 or more".to_owned())
}

/// Reads a variable of the environment, `KEY=VALUE`.
pub fn variable(text: &str) -> Result<(String, String), String> {
    let (key, value) = key_value(text)?;
    if key.contains(char::is_whitespace) {
        return Err(format!("the name {key:?} has white space in it: write KEY=VALUE, one variable each"));
    }
    Ok((key, value))
}

/// Reads `KEY=VALUE`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the name before = is empty: write KEY=VALUE".into()),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("there is no =: write KEY=VALUE".into()),
    }
}

/// Reads where a deployment starts: `earliest`, `latest`, `@<ms>`, `+<n>`, `-<n>`.
pub fn start_offset(text: &str) -> Result<StartOffset, String> {
    let bad = || "write earliest, latest, @<milliseconds since 1970>, +<offsets> or -<offsets>".to_owned();
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| bad());
    match text.as_bytes().first() {
        Some(b'@') => {
            let timestamp = TimestampMs::try_from(number(&text[1..])?).map_err(|_| bad())?;
            Ok(StartOffset::Timestamp { timestamp })
        }
        Some(b'+') => Ok(StartOffset::FromStart { records: number(&text[1..])? }),
        Some(b'-') => Ok(StartOffset::FromEnd { records: number(&text[1..])? }),
        _ if text == "earliest" => Ok(StartOffset::Earliest),
        _ if text == "latest" => Ok(StartOffset::Latest),
        _ => Err(bad()),
    }
}

/// Reads where a reader starts: `start`, `end`, an offset, `@<ms>`, `-<n>`.
pub fn read_from(text: &str) -> Result<ReadFrom, String> {
    let bad = || "write start, end, an offset, @<milliseconds since 1970> or -<offsets>".to_owned();
    match text.as_bytes().first() {
        Some(b'@') => text[1..].parse().map(ReadFrom::Timestamp).map_err(|_| bad()),
        Some(b'-') => text[1..].parse().map(ReadFrom::Last).map_err(|_| bad()),
        _ if text == "start" => Ok(ReadFrom::Start),
        _ if text == "end" => Ok(ReadFrom::End),
        _ => text.parse().map(ReadFrom::Offset).map_err(|_| bad()),
    }
}

/// A point in time, as typed: absolute, or before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Milliseconds since the Unix epoch.
    At(TimestampMs),
    /// So long before now.
    Ago(Span),
}

impl When {
    /// The point in time, seen from now.
    pub fn resolve(self, now: TimestampMs) -> TimestampMs {
        match self {
            Self::At(ms) => ms,
            Self::Ago(span) => now.saturating_sub_unsigned(span.0),
        }
    }
}

/// Reads a point in time: `10m` (ago), `now`, milliseconds or seconds since 1970, `2026-01-31`, or
/// `2026-01-31T12:00:00Z`.
pub fn when(text: &str) -> Result<When, String> {
    if text == "now" {
        return Ok(When::Ago(Span::from_ms(0)));
    }
    if let Ok(span) = text.trim_start_matches('-').parse::<Span>() {
        return Ok(When::Ago(span));
    }
    let absolute = match (text.parse::<i64>(), text.len()) {
        (Ok(ms), 13) => Some(ms),
        (Ok(seconds), 10) => Some(seconds * 1_000),
        _ => date(text),
    };
    absolute.map(When::At).ok_or_else(|| {
        "write a duration before now like 10m, milliseconds (13 digits) or seconds (10 digits) since 1970, \
         a date like 2026-01-31 or a time like 2026-01-31T12:00:00Z"
            .to_owned()
    })
}

/// Reads `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM:SS[.mmm]Z`, both in UTC.
fn date(text: &str) -> Option<TimestampMs> {
    let (day, time) = match text.split_once('T') {
        Some((day, time)) => (day, time.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let numbers = |text: &str, separator| -> Option<[i64; 3]> {
        let parts: Vec<i64> = text.split(separator).map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let [year, month, day] = numbers(day, '-')?;
    let (time, milli) = time.split_once('.').unwrap_or((time, "0"));
    let milli: i64 = format!("{milli:0<3}").get(..3)?.parse().ok()?;
    let [hour, minute, second] = numbers(time, ':')?;
    let legal = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..60).contains(&second);
    let seconds = ((days_from_civil(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    legal.then_some(seconds * 1_000 + milli)
}

/// Days since 1970-01-01. Source: <https://howardhinnant.github.io/date_algorithms.html>.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::status::rfc3339;

    #[test]
    fn start_offsets() {
        for (text, offset) in [
            ("earliest", StartOffset::Earliest),
            ("latest", StartOffset::Latest),
            ("@1500", StartOffset::Timestamp { timestamp: 1500 }),
            ("+3", StartOffset::FromStart { records: 3 }),
            ("-4", StartOffset::FromEnd { records: 4 }),
        ] {
            assert_eq!(start_offset(text), Ok(offset), "{text}");
        }
        for bad in ["", "5", "@", "@-1", "+x", "--1", "Earliest"] {
            assert!(start_offset(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reading_positions() {
        for (text, from) in [
            ("start", ReadFrom::Start),
            ("end", ReadFrom::End),
            ("7", ReadFrom::Offset(7)),
            ("@9", ReadFrom::Timestamp(9)),
            ("-10", ReadFrom::Last(10)),
        ] {
            assert_eq!(read_from(text), Ok(from), "{text}");
        }
        assert!(read_from("begin").is_err() && read_from("").is_err());
    }

    #[test]
    fn times() {
        for (text, ms) in [
            ("2018-02-07", "2018-02-07T00:00:00.000Z"),
            ("2000-02-29T23:59:58.7Z", "2000-02-29T23:59:58.700Z"),
            ("1517968154000", "2018-02-07T01:49:14.000Z"),
            ("1517968154", "2018-02-07T01:49:14.000Z"),
        ] {
            let at = when(text).unwrap().resolve(0);
            assert_eq!(rfc3339(at), ms, "{text}");
        }
        assert_eq!(when("10m").unwrap().resolve(600_000), 0);
        assert_eq!(when("-1s").unwrap().resolve(5_000), 4_000);
        for bad in ["", "yesterday", "2018-13-01", "2018-02", "15"] {
            assert!(when(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variables() {
        assert_eq!(key_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(key_value("A="), Ok(("A".into(), String::new())));
        assert!(key_value("A").is_err() && key_value("=b").is_err());
        assert_eq!(variable("A=b c"), Ok(("A".into(), "b c".into())));
        assert!(variable("A B=1").is_err() && variable(" A=1").is_err());
        assert_eq!((number("7"), number::<usize>("-1").is_err()), (Ok(7), true));
    }
}
