//! Dates in the formats of Python's `strftime`, in UTC and English.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

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
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in the Gregorian calendar; the first month, day and day of the year are 1.
struct Moment {
    year: u64,
    month: u64,
    day: u64,
    day_of_year: u64,
    /// Sunday is 0.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
    microsecond: u64,
    /// Since 1970.
    seconds: u64,
}

impl Moment {
    /// A clock before 1970 or after 9999 is wrong anyway, and is moved to the nearest of them.
    fn new(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs().min(253_402_300_799);
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let mut year = 1970;
        let mut rest = days;
        while rest >= 365 + leap(year) {
            rest -= 365 + leap(year);
            year += 1;
        }
        let lengths = [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let day_of_year = rest + 1;
        let mut month = 0;
        while rest >= lengths[month] {
            rest -= lengths[month];
            month += 1;
        }
        Self {
            year,
            month: month as u64 + 1,
            day: rest + 1,
            day_of_year,
            weekday: (days + 4) % 7, // 1970 began on a Thursday
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            microsecond: u64::from(since.subsec_micros()),
            seconds,
        }
    }

    /// Year and week by ISO 8601: weeks begin on Mondays, and the first has the year's first Thursday.
    fn iso_week(&self) -> (u64, u64) {
        let monday_based = (self.weekday + 6) % 7;
        // The Thursday of this week decides about the year.
        let thursday = self.day_of_year as i64 + 3 - monday_based as i64;
        let days = |year: u64| 365 + leap(year) as i64;
        let (year, thursday) = match thursday {
            ..1 => (self.year - 1, thursday + days(self.year - 1)),
            _ if thursday > days(self.year) => (self.year + 1, thursday - days(self.year)),
            _ => (self.year, thursday),
        };
        (year, (thursday as u64 - 1) / 7 + 1)
    }

    fn write(&self, flag: Option<char>, code: char, out: &mut String) {
        let month = MONTHS[self.month as usize - 1];
        let weekday = WEEKDAYS[self.weekday as usize];
        let (number, width, fill) = match code {
            'Y' => (self.year, 4, '0'),
            'y' => (self.year % 100, 2, '0'),
            'm' => (self.month, 2, '0'),
            'd' => (self.day, 2, '0'),
            'e' => (self.day, 2, ' '),
            'j' => (self.day_of_year, 3, '0'),
            'H' => (self.hour, 2, '0'),
            'I' => ((self.hour + 11) % 12 + 1, 2, '0'),
            'M' => (self.minute, 2, '0'),
            'S' => (self.second, 2, '0'),
            'w' => (self.weekday, 1, '0'),
            'u' => ((self.weekday + 6) % 7 + 1, 1, '0'),
            'f' => (self.microsecond, 6, '0'),
            's' => (self.seconds, 1, '0'),
            'k' => (self.hour, 2, ' '),
            'l' => ((self.hour + 11) % 12 + 1, 2, ' '),
            'C' => (self.year / 100, 2, '0'),
            'G' => (self.iso_week().0, 4, '0'),
            'g' => (self.iso_week().0 % 100, 2, '0'),
            'V' => (self.iso_week().1, 2, '0'),
            'U' => ((self.day_of_year + 6 - self.weekday) / 7, 2, '0'),
            'W' => ((self.day_of_year + 6 - (self.weekday + 6) % 7) / 7, 2, '0'),
            'n' => return out.push('\n'),
            't' => return out.push('\t'),
            'P' => return out.push_str(if self.hour < 12 { "am" } else { "pm" }),
            'r' => return self.write_all("%I:%M:%S %p", out),
            'B' => return out.push_str(month),
            'b' | 'h' => return out.push_str(&month[..3]),
            'A' => return out.push_str(weekday),
            'a' => return out.push_str(&weekday[..3]),
            'p' => return out.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            '%' => return out.push('%'),
            'F' => return self.write_all("%Y-%m-%d", out),
            'T' | 'X' => return self.write_all("%H:%M:%S", out),
            'R' => return self.write_all("%H:%M", out),
            'D' | 'x' => return self.write_all("%m/%d/%y", out),
            'c' => return self.write_all("%a %b %e %H:%M:%S %Y", out),
            // Python's `now()` has no time zone.
            'Z' | 'z' => return,
            _ => {
                out.push('%');
                out.extend(flag);
                return out.push(code);
            }
        };
        let written = match (flag, fill) {
            (Some(_), _) => write!(out, "{number}"),
            (None, ' ') => write!(out, "{number:width$}"),
            (None, _) => write!(out, "{number:0width$}"),
        };
        written.expect("a String takes every write");
    }

    fn write_all(&self, format: &str, out: &mut String) {
        let mut chars = format.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                out.push(char);
                continue;
            }
            match chars.next() {
                Some('-') => match chars.next() {
                    Some(code) => self.write(Some('-'), code, out),
                    None => out.push_str("%-"),
                },
                Some(code) => self.write(None, code, out),
                None => out.push('%'),
            }
        }
    }
}

/// Days that `year` has beyond 365.
fn leap(year: u64) -> u64 {
    u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)))
}

/// `time` in UTC as `format` says; `%-d` leaves out the padding, unknown codes stay as they are.
pub fn strftime(time: SystemTime, format: &str) -> String {
    let mut out = String::new();
    Moment::new(time).write_all(format, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn format(seconds: u64, format: &str) -> String {
        strftime(UNIX_EPOCH + Duration::from_secs(seconds), format)
    }

    #[test]
    fn dates_are_as_in_python() {
        // Made with datetime.fromtimestamp(seconds, UTC).strftime(...).
        let all = "%Y-%m-%d %H:%M:%S %j %a %A %b %B %p %I %y %u %w %-d %e %%";
        let cases = [
            (0, "1970-01-01 00:00:00 001 Thu Thursday Jan January AM 12 70 4 4 1  1 %"),
            (951_782_400, "2000-02-29 00:00:00 060 Tue Tuesday Feb February AM 12 00 2 2 29 29 %"),
            (1_230_768_000, "2009-01-01 00:00:00 001 Thu Thursday Jan January AM 12 09 4 4 1  1 %"),
            (1_262_476_799, "2010-01-02 23:59:59 002 Sat Saturday Jan January PM 11 10 6 6 2  2 %"),
            (4_102_444_799, "2099-12-31 23:59:59 365 Thu Thursday Dec December PM 11 99 4 4 31 31 %"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(format(seconds, all), expected);
        }
        assert_eq!(
            format(0, "%F %T %R %D %c"),
            "1970-01-01 00:00:00 00:00 01/01/70 Thu Jan  1 00:00:00 1970"
        );
    }

    #[test]
    fn weeks_are_as_in_python() {
        // Made with datetime.fromtimestamp(seconds, UTC).strftime(...).
        let all = "%U %W %V %G %g %C %k %l %P %r %f %s";
        let cases = [
            (0, "00 00 01 1970 70 19  0 12 am 12:00:00 AM 000000 0"),
            (951_782_400, "09 09 09 2000 00 20  0 12 am 12:00:00 AM 000000 951782400"),
            (1_230_768_000, "00 00 01 2009 09 20  0 12 am 12:00:00 AM 000000 1230768000"),
            (1_262_476_799, "00 00 53 2009 09 20 23 11 pm 11:59:59 PM 000000 1262476799"),
            (4_102_444_799, "52 52 53 2099 99 20 23 11 pm 11:59:59 PM 000000 4102444799"),
            (1_420_000_000, "52 52 01 2015 15 20  4  4 am 04:26:40 AM 000000 1420000000"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(format(seconds, all), expected);
        }
    }

    #[test]
    fn unknown_codes_stay_as_they_are() {
        assert_eq!(format(0, "%Q %-Q é% %-"), "%Q %-Q é% %-");
        assert_eq!(format(u64::MAX >> 2, "%Y"), "9999");
    }
}
