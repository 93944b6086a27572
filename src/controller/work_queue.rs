//! Whose turn it is to be looked at: first come, first served, never one pool twice at a time.
//!
//! `kube::runtime`'s applier takes whatever is ready in the order of a hash table. With more pools than can be looked at, it
//! serves some of them again and again and others never. Here a pool that asks again goes to the end of the line.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::PoolKey;

/// When a pool is to be looked at again, if nothing asks for it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// Not before something asks for it.
    WhenAsked,
    /// After this long.
    After(Duration),
}

/// What a pool that is being looked at asked for meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    AnotherLook,
}

/// The queue, whoever is being looked at, and who comes later. At most one place for each pool.
#[derive(Debug, Default)]
pub struct WorkQueue {
    line: VecDeque<PoolKey>,
    in_line: HashSet<PoolKey>,
    served: HashMap<PoolKey, Meanwhile>,
    later: BTreeSet<(Instant, PoolKey)>,
    due: HashMap<PoolKey, Instant>,
}

impl WorkQueue {
    /// A pool asks for a look: at the end of the line, unless it stands there. What it had put off is done with that.
    pub fn ask(&mut self, pool: PoolKey) {
        self.forget_later(&pool);
        if let Some(meanwhile) = self.served.get_mut(&pool) {
            *meanwhile = Meanwhile::AnotherLook;
        } else if self.in_line.insert(pool.clone()) {
            self.line.push_back(pool);
        }
    }

    /// The next one.
    pub fn take(&mut self) -> Option<PoolKey> {
        let pool = self.line.pop_front()?;
        self.in_line.remove(&pool);
        self.served.insert(pool.clone(), Meanwhile::Nothing);
        Some(pool)
    }

    /// The look at a pool has ended.
    pub fn done(&mut self, pool: PoolKey, again: Requeue, now: Instant) {
        let meanwhile = self.served.remove(&pool);
        match again {
            _ if meanwhile == Some(Meanwhile::AnotherLook) => self.ask(pool),
            Requeue::WhenAsked => {}
            Requeue::After(pause) if pause.is_zero() => self.ask(pool),
            Requeue::After(pause) => {
                let due = now + pause;
                self.due.insert(pool.clone(), due);
                self.later.insert((due, pool));
            }
        }
    }

    /// Puts those into the line whose time has come.
    pub fn wake(&mut self, now: Instant) {
        while let Some((due, pool)) = self.later.first().filter(|(due, _)| *due <= now).cloned() {
            self.later.remove(&(due, pool.clone()));
            self.due.remove(&pool);
            self.ask(pool);
        }
    }

    /// When the next one comes back by itself.
    pub fn next_due(&self) -> Option<Instant> {
        self.later.first().map(|(due, _)| *due)
    }

    /// How many are being looked at.
    pub fn served(&self) -> usize {
        self.served.len()
    }

    fn forget_later(&mut self, pool: &PoolKey) {
        if let Some(due) = self.due.remove(pool) {
            self.later.remove(&(due, pool.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(number: usize) -> PoolKey {
        PoolKey::new("ns", format!("pool-{number}"))
    }

    #[test]
    fn whoever_asks_again_and_again_keeps_nobody_from_a_look() {
        let mut queue = WorkQueue::default();
        let now = Instant::now();
        for number in 0..1000 {
            queue.ask(pool(number));
        }
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            let taken = queue.take().expect("somebody waits");
            seen.insert(taken.clone());
            queue.done(taken, Requeue::After(Duration::ZERO), now);
        }
        assert_eq!(seen.len(), 1000);
    }

    #[test]
    fn a_pool_that_asks_while_it_is_looked_at_is_looked_at_again_afterwards() {
        let mut queue = WorkQueue::default();
        queue.ask(pool(1));
        let taken = queue.take().expect("it asked");
        queue.ask(pool(1));
        assert_eq!(queue.take(), None, "never twice at a time");
        queue.done(taken, Requeue::WhenAsked, Instant::now());
        assert_eq!(queue.take(), Some(pool(1)));
    }

    #[test]
    fn a_pause_ends_by_itself_or_when_it_is_asked_for_before() {
        let mut queue = WorkQueue::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for number in [1, 2] {
            queue.ask(pool(number));
            let taken = queue.take().expect("it asked");
            queue.done(taken, Requeue::After(second), now);
        }
        assert_eq!(queue.next_due(), Some(now + second));
        queue.ask(pool(2));
        assert_eq!(queue.take(), Some(pool(2)));
        queue.wake(now + second / 2);
        assert_eq!(queue.take(), None);
        queue.wake(now + second);
        assert_eq!(queue.take(), Some(pool(1)));
        assert_eq!((queue.take(), queue.next_due()), (None, None), "the pause of the other is over too");
    }

    proptest! {
        #[test]
        fn nobody_who_asks_is_lost_and_nobody_is_served_twice_at_a_time(steps in prop::collection::vec((0..4_u8, 0..5_usize), 1..200)) {
            let mut queue = WorkQueue::default();
            let mut now = Instant::now();
            let mut owed: HashSet<PoolKey> = HashSet::new();
            let mut served: Vec<PoolKey> = Vec::new();
            for (step, number) in steps {
                match step {
                    0 => {
                        owed.insert(pool(number));
                        queue.ask(pool(number));
                    }
                    1 => if let Some(taken) = queue.take() {
                        prop_assert!(!served.contains(&taken));
                        owed.remove(&taken);
                        served.push(taken);
                    },
                    2 => if !served.is_empty() {
                        let ended = served.swap_remove(number % served.len());
                        let again = [Requeue::WhenAsked, Requeue::After(Duration::ZERO), Requeue::After(Duration::from_secs(1))][number % 3];
                        if again != Requeue::WhenAsked {
                            owed.insert(ended.clone());
                        }
                        queue.done(ended, again, now);
                    },
                    _ => {
                        now += Duration::from_millis(400);
                        queue.wake(now);
                    }
                }
                prop_assert_eq!(queue.served(), served.len());
            }
            for ended in served {
                queue.done(ended, Requeue::WhenAsked, now);
            }
            queue.wake(now + Duration::from_secs(1));
            while let Some(taken) = queue.take() {
                owed.remove(&taken);
                queue.done(taken, Requeue::WhenAsked, now);
            }
            prop_assert!(owed.is_empty(), "{owed:?}");
        }
    }
}
