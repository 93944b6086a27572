//! Lists of whole namespaces that serve all their pools: of those who ask at once one lists for all, a list of the last seconds is used
//! again, and after one that failed none is made for a while, each time longer.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use crate::controller::backoff::pause_after;

/// Pause after a list that failed; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause after a list that failed.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// Whose news is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListSince {
    /// A list that begins after this question.
    Now,
    /// One of the last seconds will do.
    Lately,
}

/// What a list found, or why it did not: whoever waited for it learns the same.
pub type ListOutcome<T, E> = Result<Arc<T>, Arc<E>>;

/// A list that has ended.
struct Listing<T, E> {
    began: Instant,
    outcome: ListOutcome<T, E>,
    /// How many failed in a row, this one the last.
    failed: u32,
    /// Not before this is another made: a failure is told again until then.
    again_at: Instant,
}

impl<T, E> Listing<T, E> {
    fn after(before: Option<&Self>, began: Instant, outcome: ListOutcome<T, E>) -> Self {
        let failed = match (&outcome, before) {
            (Ok(_), _) => 0,
            (Err(_), before) => before.map_or(0, |before| before.failed).saturating_add(1),
        };
        let now = Instant::now();
        let again_at = if failed == 0 { now } else { now + pause_after(failed, FIRST_PAUSE, LONGEST_PAUSE) };
        Self { began, outcome, failed, again_at }
    }

    fn is_pausing(&self) -> bool {
        Instant::now() < self.again_at
    }

    fn is_recent(&self, reused_for: Duration) -> bool {
        self.began.elapsed() < reused_for
    }

    /// Whether the next one depends on it: a failure is remembered for as long as the longest pause.
    fn is_used(&self, reused_for: Duration) -> bool {
        self.is_recent(reused_for) || (self.failed > 0 && self.again_at.elapsed() < LONGEST_PAUSE)
    }
}

/// The last list of one namespace; locked by whoever makes the next.
type LastListing<T, E> = Arc<tokio::sync::Mutex<Option<Listing<T, E>>>>;

/// The last lists of all namespaces.
pub struct NamespaceLists<T, E> {
    namespaces: Mutex<HashMap<String, LastListing<T, E>>>,
    turns: Semaphore,
    reused_for: Duration,
}

impl<T, E> NamespaceLists<T, E> {
    /// None was made yet. `at_once`: lists under way at once, of all namespaces; a list that began less than `reused_for` ago serves who
    /// asks for [`ListSince::Lately`].
    pub fn new(at_once: usize, reused_for: Duration) -> Self {
        Self { namespaces: Mutex::default(), turns: Semaphore::new(at_once), reused_for }
    }

    /// The list of a namespace, which `make` makes if none serves, with a deadline of its own.
    ///
    /// # Errors
    /// What `make` failed with, also the last time if that is too short ago to try again.
    pub async fn of<L>(&self, namespace: &str, since: ListSince, make: impl FnOnce() -> L) -> ListOutcome<T, E>
    where
        L: Future<Output = Result<T, E>>,
    {
        let asked = Instant::now();
        let place = self.place(namespace);
        let mut last = place.lock().await;
        let serves = |listing: &&Listing<T, E>| {
            listing.is_pausing()
                || match since {
                    ListSince::Now => listing.began >= asked,
                    ListSince::Lately => listing.is_recent(self.reused_for),
                }
        };
        if let Some(listing) = last.as_ref().filter(serves) {
            return listing.outcome.clone();
        }
        // nobody closes the semaphore: it always gives a turn
        let turn = self.turns.acquire().await;
        let began = Instant::now();
        let outcome = make().await.map(Arc::new).map_err(Arc::new);
        drop(turn);
        *last = Some(Listing::after(last.as_ref(), began, outcome.clone()));
        outcome
    }

    /// The place of a namespace. What is old in the others, nobody will read again.
    fn place(&self, namespace: &str) -> LastListing<T, E> {
        let mut namespaces = self.namespaces.lock();
        namespaces.retain(|_, place| {
            let is_used = |last: Option<&Listing<T, E>>| last.is_some_and(|listing| listing.is_used(self.reused_for));
            Arc::strong_count(place) > 1 || place.try_lock().is_ok_and(|last| is_used(last.as_ref()))
        });
        namespaces.entry(namespace.to_owned()).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::{task::yield_now, time::advance};

    use super::*;

    const REUSED_FOR: Duration = Duration::from_secs(5);

    /// Lists that all end the same, and how many were made.
    struct Counted {
        lists: NamespaceLists<(), String>,
        outcome: Result<(), String>,
        made: AtomicUsize,
    }

    impl Counted {
        fn new(outcome: Result<(), String>) -> Self {
            Self { lists: NamespaceLists::new(2, REUSED_FOR), outcome, made: AtomicUsize::new(0) }
        }

        async fn of(&self, namespace: &str, since: ListSince) -> ListOutcome<(), String> {
            let list = || async {
                self.made.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
                self.outcome.clone()
            };
            self.lists.of(namespace, since, list).await
        }

        fn made(&self) -> usize {
            self.made.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_who_ask_one_lists_for_all() {
        let counted = Counted::new(Ok(()));
        let all = |since| join_all((0..1000).map(|_| counted.of("ns", since)).collect::<Vec<_>>());
        assert!(all(ListSince::Now).await.iter().all(Result::is_ok));
        assert!(
            counted.made() <= 2,
            "those who came while the first list was made share the second: {}",
            counted.made()
        );
        let before = counted.made();
        all(ListSince::Lately).await;
        assert_eq!(counted.made(), before);
        advance(REUSED_FOR).await;
        all(ListSince::Lately).await;
        assert_eq!(counted.made(), before + 1);
        assert!(counted.of("other", ListSince::Lately).await.is_ok());
        assert_eq!(counted.made(), before + 2, "another namespace is another list");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_fails_is_an_error_to_all_who_waited_and_is_not_repeated_for_each() {
        let counted = Counted::new(Err("refused".to_owned()));
        let all = join_all((0..100).map(|_| counted.of("ns", ListSince::Lately)).collect::<Vec<_>>()).await;
        assert!(all.into_iter().all(|outcome| *outcome.expect_err("it was refused") == "refused"));
        assert_eq!(counted.made(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_never_succeeds_is_made_ever_more_rarely_whoever_asks() {
        let counted = Counted::new(Err("refused".to_owned()));
        let began = Instant::now();
        let mut made = Vec::new();
        while began.elapsed() < Duration::from_hours(1) {
            let before = counted.made();
            for since in [ListSince::Lately, ListSince::Now] {
                assert!(counted.of("ns", since).await.is_err());
            }
            if counted.made() > before {
                made.push(began.elapsed().as_secs());
            }
            counted.of("other", ListSince::Lately).await.expect_err("another namespace has its own pauses");
            advance(Duration::from_secs(10)).await;
        }
        assert_eq!(made[..7], [0, 10, 30, 70, 150, 310, 630]);
        assert!(made[7..].windows(2).all(|pair| pair[1] - pair[0] == 600), "{made:?}");
        assert!(made.len() <= 13, "{made:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_namespace_that_nobody_asks_about_any_more_nothing_is_kept() {
        let second = Duration::from_secs(1);
        for (outcome, kept_for) in [(Ok(()), REUSED_FOR), (Err("refused".to_owned()), FIRST_PAUSE + LONGEST_PAUSE)] {
            let counted = Counted::new(outcome);
            let _ = counted.of("gone", ListSince::Now).await;
            advance(kept_for.saturating_sub(second)).await;
            let _ = counted.of("ns", ListSince::Now).await;
            assert_eq!(counted.lists.namespaces.lock().len(), 2);
            advance(second).await;
            let _ = counted.of("ns", ListSince::Now).await;
            assert_eq!(counted.lists.namespaces.lock().len(), 1);
        }
    }
}
