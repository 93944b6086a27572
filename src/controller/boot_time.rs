//! A clock that goes on while the machine is suspended.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment by `CLOCK_BOOTTIME`.
///
/// `std` and tokio read `CLOCK_MONOTONIC`, which stands still while a machine is suspended. Whoever slept through the end of its
/// lease would by that clock still hold it when it wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Now.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
        Self(Duration::new(seconds, nanoseconds))
    }

    /// The time that has passed since `earlier`; zero before it.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_from_the_start_of_the_machine_and_counts_the_time_of_a_suspension() {
        // the kernel's own account: seconds since the start, suspensions included
        let uptime = || {
            let text = std::fs::read_to_string("/proc/uptime").expect("a kernel that tells it");
            text.split('.').next().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs).expect("seconds")
        };
        let (before, now, after) = (uptime(), BootTime::now().0, uptime() + Duration::from_secs(1));
        assert!(before <= now && now <= after, "{before:?} {now:?} {after:?}");
    }
}
