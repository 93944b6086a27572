//! `sluice-agent drain`: what a gateway's pod does first when it is to end.
//!
//! New clients are led elsewhere by the Service, some seconds after the deletion; those that are connected are served on. The wait
//! is over when nobody is connected any more and nobody comes, or when its time is: then the pooler is told to end, and
//! clients that are still there are disconnected after their transaction.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    agent::commands::probe,
    contract::metrics::{CLIENT_CONNECTIONS, CLIENT_LOGINS},
};

/// Between two looks: the agent takes a reading each second.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row at which nobody is there. A Service takes a moment to tell every node.
const QUIET_LOOKS: u32 = 5;

/// Waits until the last client has left, at most so long.
pub fn drain(port: u16, longest: Duration) {
    let begin = Instant::now();
    let mut quiet = Calm::default();
    while begin.elapsed() < longest {
        sleep(LOOK.min(longest.saturating_sub(begin.elapsed())));
        // whoever does not answer may have clients
        let page = probe::get(port, "/metrics").ok().filter(|answer| probe::is_ok(answer));
        if quiet.see(page.as_deref()) {
            return;
        }
    }
}

/// How long nobody has been there.
#[derive(Debug, Default)]
struct Calm {
    looks: u32,
    logins: Option<f64>,
}

impl Calm {
    /// Takes in a page of metrics. True once nobody has been there for long enough.
    fn see(&mut self, page: Option<&str>) -> bool {
        let clients = page.and_then(|page| sum(page, CLIENT_CONNECTIONS));
        let logins = page.and_then(|page| sum(page, CLIENT_LOGINS));
        let nobody_came = logins.is_some() && self.logins.is_none_or(|before| logins == Some(before));
        self.logins = logins.or(self.logins);
        self.looks = if clients == Some(0.0) && nobody_came { self.looks + 1 } else { 0 };
        self.looks >= QUIET_LOOKS
    }
}

/// The sum of a metric over its labels. None: it is not there.
fn sum(page: &str, name: &str) -> Option<f64> {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(active: u32, logins: u32) -> String {
        format!(
            "HTTP/1.0 200 OK\r\n\r\n# TYPE {CLIENT_CONNECTIONS} gauge\n{CLIENT_CONNECTIONS}{{pool=\"a b\",state=\"active\"}} {active}\n\
             {CLIENT_CONNECTIONS}{{pool=\"a b\",state=\"waiting\"}} 0\n{CLIENT_LOGINS}{{pool=\"a b\"}} {logins}\n# EOF\n"
        )
    }

    #[test]
    fn the_wait_is_over_when_nobody_is_there_and_nobody_has_come_for_some_looks() {
        let mut quiet = Calm::default();
        let looks: Vec<bool> = [(1, 7), (0, 7), (0, 7), (0, 8), (0, 8), (0, 8), (0, 8), (0, 8), (0, 8)]
            .map(|(active, logins)| quiet.see(Some(&page(active, logins))))
            .into();
        assert_eq!(looks.iter().position(|over| *over), Some(8), "{looks:?}");
    }

    #[test]
    fn an_agent_that_does_not_answer_or_says_nothing_may_have_clients() {
        let mut quiet = Calm::default();
        for _ in 0..20 {
            assert!(!quiet.see(None) && !quiet.see(Some("HTTP/1.0 200 OK\r\n\r\n# EOF\n")));
        }
        (0..4).for_each(|_| assert!(!quiet.see(Some(&page(0, 3)))));
        assert!(!quiet.see(None), "and it counts anew");
        (0..4).for_each(|_| assert!(!quiet.see(Some(&page(0, 3)))));
        assert!(quiet.see(Some(&page(0, 3))));
    }
}
