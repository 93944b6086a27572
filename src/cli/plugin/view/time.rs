//! How long something has been so, as kubectl says it.

use k8s_openapi::jiff::Timestamp;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// The time from `since` to `now`: 90s, 4m12s, 45m, 3h10m, 30h, 3d4h, 40d, 2y10d. A time that lies ahead is none yet.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    span(now.as_second().saturating_sub(since.as_second()))
}

/// So many seconds, as kubectl says them: the longer, the coarser.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let both = |large: i64, letter: char, small: i64, small_letter: char| match seconds % large / small {
        0 => format!("{}{letter}", seconds / large),
        rest => format!("{}{letter}{rest}{small_letter}", seconds / large),
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => both(MINUTE, 'm', 1, 's'),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => both(HOUR, 'h', MINUTE, 'm'),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => both(DAY, 'd', HOUR, 'h'),
        691_200..63_072_000 => format!("{}d", seconds / DAY),
        63_072_000.. => both(YEAR, 'y', DAY, 'd'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_it_is_the_coarser_it_is_said() {
        let cases = [
            (-5, "0s"),
            (119, "119s"),
            (252, "4m12s"),
            (300, "5m"),
            (2700, "45m"),
            (11_400, "3h10m"),
            (108_000, "30h"),
            (273_600, "3d4h"),
            (3_456_000, "40d"),
            (63_936_000, "2y10d"),
        ];
        for (seconds, said) in cases {
            assert_eq!(span(seconds), said, "{seconds}");
        }
    }
}
