//! Maintenance windows.

use k8s_openapi::jiff::{SignedDuration, Timestamp, civil::Weekday, tz::TimeZone};
use leno_crds::meshinstall::MaintenanceWindow;

/// Whether one of the windows is open; without any it always is.
pub fn open(windows: &[MaintenanceWindow], now: Timestamp) -> bool {
    windows.is_empty() || windows.iter().any(|window| is_in(window, now))
}

fn is_in(window: &MaintenanceWindow, now: Timestamp) -> bool {
    let Some((hours, minutes)) = window.start.split_once(':') else { return false };
    let (Ok(hours), Ok(minutes)) = (hours.parse::<i64>(), minutes.parse::<i64>()) else { return false };
    // It may have begun on any of the last seven days.
    (0..=7).any(|days| {
        let day = (now - SignedDuration::from_hours(24 * days)).to_zoned(TimeZone::UTC);
        let Ok(midnight) = day.start_of_day() else { return false };
        let begins = midnight.timestamp() + SignedDuration::from_mins(hours * 60 + minutes);
        let ends = begins + SignedDuration::from_mins(window.minutes.into());
        let on_this_day = window.days.is_empty() || window.days.iter().any(|name| *name == short(day.weekday()));
        on_this_day && begins <= now && now < ends
    })
}

fn short(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => "Mon",
        Weekday::Tuesday => "Tue",
        Weekday::Wednesday => "Wed",
        Weekday::Thursday => "Thu",
        Weekday::Friday => "Fri",
        Weekday::Saturday => "Sat",
        Weekday::Sunday => "Sun",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(days: &[&str], start: &str, minutes: i32, now: &str) -> bool {
        let days = days.iter().map(|day| (*day).to_owned()).collect();
        open(&[MaintenanceWindow { days, start: start.to_owned(), minutes }], now.parse().unwrap())
    }

    #[test]
    fn window_when_it_crosses_midnight_then_belongs_to_the_day_on_which_it_begins() {
        // 2026-11-26 is a Thursday.
        assert!(is_open(&["Thu"], "22:30", 240, "2026-11-26T22:30:00Z"));
        assert!(is_open(&["Thu"], "22:30", 240, "2026-11-27T02:29:59Z"));
        assert!(!is_open(&["Thu"], "22:30", 240, "2026-11-27T02:30:00Z"));
        assert!(!is_open(&["Fri"], "22:30", 240, "2026-11-27T02:00:00Z"));
        assert!(is_open(&[], "00:00", 1440, "2026-11-27T12:00:00Z"));
    }

    #[test]
    fn window_when_there_is_none_then_it_is_always_time() {
        assert!(open(&[], Timestamp::UNIX_EPOCH));
    }
}
