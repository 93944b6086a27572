//! PURE: how many server connections were opened and how many clients arrived, from PgBouncer's numbering.
//!
//! PgBouncer has no counter of either, but numbers every socket of a process, to clients and to servers alike, from 1.
//! Opens are numbers of servers not seen before; a server that lives shorter than the readings are apart is missed as an
//! open and counted as a client. Clients are what remains of the numbers.

use std::collections::BTreeSet;

/// Counts within one process of the pooler.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// Servers at the last reading.
    servers: BTreeSet<u64>,
    /// Largest number seen when clients were counted last.
    newest: u64,
    /// Opens since then.
    opened: u64,
}

impl Arrivals {
    /// A new process begins to number from 1.
    pub fn restarted(&mut self) {
        *self = Self::default();
    }

    /// Server connections opened since the last reading, from the numbers of those that are open.
    pub fn opens(&mut self, open: impl IntoIterator<Item = u64>) -> u64 {
        let open: BTreeSet<u64> = open.into_iter().collect();
        let new = open.difference(&self.servers).count() as u64;
        self.servers = open;
        self.opened += new;
        new
    }

    /// Clients that arrived since the last count, from the largest number of all sockets.
    pub fn clients(&mut self, newest: u64) -> u64 {
        let newest = newest.max(self.newest).max(self.servers.last().copied().unwrap_or(0));
        let arrived = (newest - self.newest).saturating_sub(self.opened);
        (self.newest, self.opened) = (newest, 0);
        arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_servers_are_clients() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.opens([2]), 1);
        assert_eq!(arrivals.clients(6), 5);
        assert_eq!(arrivals.opens([2, 7, 9]), 2);
        assert_eq!(arrivals.opens([9]), 0);
        assert_eq!(arrivals.clients(9), 1);
        arrivals.restarted();
        assert_eq!((arrivals.opens([1]), arrivals.clients(1)), (1, 0));
    }
}
