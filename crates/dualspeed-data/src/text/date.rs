//! Days, for templates that tell the date.

use std::fmt;

use dualspeed_core::date;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A day of the Gregorian calendar, as days since 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Date(i64);

impl Date {
    /// Today (UTC).
    pub(super) fn today() -> Self {
        Self(date::today())
    }

    fn from_civil(year: i64, month: i64, day: i64) -> Self {
        let year = year - i64::from(month <= 2);
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
        Self(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
    }

    /// Writes the day as Python's `strftime` does at midnight; `None` for a directive that is not known.
    pub(super) fn format(self, format: &str) -> Option<String> {
        let (year, month, day) = date::civil(self.0);
        let weekday = (self.0 + 3).rem_euclid(7).unsigned_abs() as usize;
        let of_year = self.0 - Self::from_civil(year, 1, 1).0 + 1;
        let (month_name, weekday_name) = (MONTHS.get(month.checked_sub(1)?)?, WEEKDAYS[weekday]);
        let mut text = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let mut directive = chars.next()?;
            // glibc's "no padding".
            let bare = directive == '-';
            if bare {
                directive = chars.next()?;
            }
            let number = |value: i64, width: usize| match bare {
                true => value.to_string(),
                false => format!("{value:0width$}"),
            };
            let written = match directive {
                'Y' => number(year, 4),
                'y' => number(year.rem_euclid(100), 2),
                'm' => number(month as i64, 2),
                'd' => number(day, 2),
                'j' => number(of_year, 3),
                'H' | 'M' | 'S' => number(0, 2),
                'I' => number(12, 2),
                'p' => "AM".into(),
                'B' => (*month_name).into(),
                'b' | 'h' => month_name[..3].into(),
                'A' => weekday_name.into(),
                'a' => weekday_name[..3].into(),
                'F' => format!("{year:04}-{month:02}-{day:02}"),
                '%' => "%".into(),
                _ => return None,
            };
            text.push_str(&written);
        }
        Some(text)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date::civil(self.0);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut parts = text.splitn(3, '-').map(str::parse::<i64>);
        let date = match (parts.next(), parts.next(), parts.next()) {
            (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) if (0..=9999).contains(&year) => {
                Some(Self::from_civil(year, month, day))
            }
            _ => None,
        };
        // A day that is not written the same again is none.
        date.filter(|date| date.to_string() == text)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is no day; write 2026-01-31")))
    }
}
