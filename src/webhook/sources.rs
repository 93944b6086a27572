//! What one source of requests may take of what few can have at once. Whoever reaches the port may ask for it; what is left over, others
//! get.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// Places of which no source gets one more than are left: one alone has half of them, the next one half of the rest.
pub struct SourceShares {
    most: usize,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A place, until it is dropped.
pub struct SourceShare {
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
    source: IpAddr,
}

impl SourceShares {
    /// So many, all free.
    pub fn new(most: usize) -> Self {
        Self { most, held: Arc::default() }
    }

    /// A place for this source, if it has fewer than are left.
    pub fn take(&self, source: IpAddr) -> Option<SourceShare> {
        let mut held = self.held.lock();
        let left = self.most.saturating_sub(held.values().sum());
        let own = held.entry(source).or_default();
        if *own < left {
            *own += 1;
            return Some(SourceShare { held: self.held.clone(), source });
        }
        if *own == 0 {
            held.remove(&source);
        }
        None
    }
}

impl Drop for SourceShare {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(own) = held.get_mut(&self.source) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                held.remove(&self.source);
            }
        }
    }
}

/// Lets one request of each source stand in a line at a time: who has sent a hundred waits as one.
#[derive(Default)]
pub struct SourceTurns {
    sources: Mutex<HashMap<IpAddr, Arc<tokio::sync::Mutex<()>>>>,
}

impl SourceTurns {
    /// Waits until no other request of this source stands in the line.
    pub async fn take(&self, source: IpAddr) -> OwnedMutexGuard<()> {
        let own = {
            let mut sources = self.sources.lock();
            // of whom nobody waits and nobody stands in the line nothing is kept
            sources.retain(|_, own| Arc::strong_count(own) > 1);
            sources.entry(source).or_default().clone()
        };
        own.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn from(host: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, host])
    }

    #[test]
    fn one_source_alone_has_half_of_the_places_and_however_many_come_there_is_one_for_another() {
        let shares = SourceShares::new(64);
        let fill = |source| std::iter::from_fn(|| shares.take(source)).collect::<Vec<_>>();
        let taken: Vec<Vec<SourceShare>> = (1..=5).map(|host| fill(from(host))).collect();
        assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [32, 16, 8, 4, 2]);
        assert!(shares.take(from(9)).is_some());
        drop(taken);
        assert!(shares.held.lock().is_empty(), "of whoever has gone nothing is kept");
    }

    #[tokio::test]
    async fn whoever_has_sent_many_stands_in_the_line_once_and_others_beside_it() {
        let turns = SourceTurns::default();
        let first = turns.take(from(1)).await;
        assert!(turns.take(from(1)).now_or_never().is_none());
        let other = turns.take(from(2)).now_or_never().expect("it is another one's");
        drop(first);
        assert!(turns.take(from(1)).now_or_never().is_some());
        drop(other);
        drop(turns.take(from(3)).await);
        assert_eq!(turns.sources.lock().len(), 1, "of whoever has gone nothing is kept");
    }
}
