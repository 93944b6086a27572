//! Events, written by hand: the aggregation of kube's `Recorder` keeps the first note and would show old numbers.
//!
//! Conditions flap: of those at most one event per pool and reason a minute. What was done is done once, and nobody tells of it later: of
//! that as many as [`MOST_AT_ONCE`] follow each other, and one a minute from then on. The same words are not told again for ten minutes.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, Resource, ResourceExt, api::PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    api::FIELD_MANAGER,
    controller::apply::writer::{WriteError, Writer},
    decide::plan::{EventKind, EventNote},
    http::WriteKind,
};

/// Least time between two events of a condition, of one pool and reason; and in which one more of what was done may follow.
const SPACING: Duration = Duration::from_mins(1);
/// Least time between two events of one pool and reason with the same note.
const SAME_NOTE_SPACING: Duration = Duration::from_mins(10);
/// So many events of what was done, of one pool and reason, follow each other at most.
const MOST_AT_ONCE: u32 = 20;
/// Longest note, in bytes.
const NOTE_BYTES: usize = 1024;
/// Pools and reasons that are remembered; the oldest are forgotten.
const REMEMBERED: usize = 4096;

struct PublishedEvent {
    note: String,
    at: Instant,
    /// How many of what was done may follow at once, as of then.
    left: u32,
}

impl PublishedEvent {
    /// How many may follow at once by now: another one with each minute.
    fn left(&self, now: Instant) -> u32 {
        let minutes = (now - self.at).as_secs() / SPACING.as_secs();
        self.left.saturating_add(u32::try_from(minutes).unwrap_or(u32::MAX)).min(MOST_AT_ONCE)
    }
}

/// Publishes events.
pub struct Events {
    client: Client,
    instance: String,
    published: Mutex<HashMap<(String, String), PublishedEvent>>,
}

impl Events {
    /// Events under the name of this process.
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance, published: Mutex::default() }
    }

    /// Publishes an event about an object. A failure is logged: telling must not keep anything from being done.
    pub async fn publish<K>(&self, writer: &Writer, about: &K, event: EventNote)
    where
        K: Resource<DynamicType = ()> + Sync,
    {
        let uid = about.uid().unwrap_or_default();
        if !self.is_news(&uid, &event) {
            return;
        }
        if let Err(error) = self.create(writer, about, &event).await {
            tracing::warn!(%error, reason = event.reason, "publishing an event");
            self.published.lock().remove(&(uid, event.reason));
        }
    }

    /// Whether an event is worth publishing now; if so, it counts as told.
    fn is_news(&self, uid: &str, event: &EventNote) -> bool {
        let now = Instant::now();
        let mut published = self.published.lock();
        let key = (uid.to_owned(), event.reason.clone());
        let last = published.get(&key);
        let left = last.map_or(MOST_AT_ONCE, |last| last.left(now));
        if let Some(last) = last {
            let age = now - last.at;
            let is_told = last.note == event.note && age < SAME_NOTE_SPACING;
            let is_too_soon = if event.is_of_condition() { age < SPACING } else { left == 0 };
            if is_told || is_too_soon {
                return false;
            }
        }
        if published.len() >= REMEMBERED {
            make_room(&mut published, now);
        }
        let left = if event.is_of_condition() { left } else { left.saturating_sub(1) };
        published.insert(key, PublishedEvent { note: event.note.clone(), at: now, left });
        true
    }

    async fn create<K>(&self, writer: &Writer, about: &K, event: &EventNote) -> Result<(), WriteError>
    where
        K: Resource<DynamicType = ()> + Sync,
    {
        let uid = about.uid().unwrap_or_default();
        let name = format!("sluice.{:x}.{}", Timestamp::now().as_nanosecond(), uid.get(..8).unwrap_or(&uid));
        let mut note = event.note.clone();
        note.truncate(note.floor_char_boundary(NOTE_BYTES));
        let object = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace(about)), ..ObjectMeta::default() },
            event_time: Some(MicroTime(Timestamp::now())),
            action: Some(event.action.to_owned()),
            reason: Some(event.reason.clone()),
            note: Some(note),
            type_: Some(match event.kind {
                EventKind::Normal => "Normal".to_owned(),
                EventKind::Warning => "Warning".to_owned(),
            }),
            regarding: Some(reference(about)),
            reporting_controller: Some(FIELD_MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace(about));
        let what = format!("event {} about {}", event.reason, about.name_any());
        writer.write(WriteKind::Event, what, events.create(&PostParams::default(), &object)).await.map(|_| ())
    }
}

/// Forgets what bars nothing any more, and where that is not enough the older half: objects come and go under new uids.
fn make_room(published: &mut HashMap<(String, String), PublishedEvent>, now: Instant) {
    published.retain(|_, last| now - last.at < SAME_NOTE_SPACING);
    if published.len() >= REMEMBERED {
        let mut times: Vec<Instant> = published.values().map(|last| last.at).collect();
        times.sort_unstable();
        let middle = times[times.len() / 2];
        // of those that came at one moment as many go as must
        let mut surplus = times.len() / 2;
        published.retain(|_, last| {
            let goes = surplus > 0 && last.at <= middle;
            surplus -= usize::from(goes);
            !goes
        });
    }
}

/// Events about objects without a namespace live in `default`.
fn namespace<K: Resource<DynamicType = ()>>(about: &K) -> String {
    about.namespace().unwrap_or_else(|| "default".to_owned())
}

fn reference<K: Resource<DynamicType = ()>>(about: &K) -> ObjectReference {
    ObjectReference { resource_version: None, ..about.object_ref(&()) }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::api::conditions::SCALING_ACTIVE;

    /// Of a condition that turned.
    fn note(reason: &str, text: &str) -> EventNote {
        EventNote { kind: EventKind::Warning, reason: reason.to_owned(), action: SCALING_ACTIVE, note: text.to_owned() }
    }

    /// Of something that was done.
    fn deed(reason: &str, text: &str) -> EventNote {
        EventNote { kind: EventKind::Normal, action: "Test", ..note(reason, text) }
    }

    fn events() -> Events {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let nobody = kube::Config::new(http::Uri::from_static("http://127.0.0.1:9"));
        Events::new(Client::try_from(nobody).unwrap(), "operator".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_was_done_is_told_however_soon_it_follows_and_a_flood_of_it_is_bounded() {
        let events = events();
        for reason in ["SpecChanged", "RevisionCreated", "TargetChanged", "RolloutCommand"] {
            assert!(events.is_news("a", &deed(reason, "from 5 to 9")));
            assert!(events.is_news("a", &deed(reason, "from 9 to 5")), "the second {reason} of a minute");
            assert!(!events.is_news("a", &deed(reason, "from 9 to 5")), "the same look, again");
            assert!(events.is_news("a", &deed(reason, "from 5 to 9")), "there and back, and there again");
        }
        let flood = |number: u32| events.is_news("b", &deed("TargetChanged", &format!("decision {number}")));
        assert_eq!((0..1000).filter(|number| flood(*number)).count(), 20);
        assert!(events.is_news("b", &deed("RolloutCommand", "promote 7")), "it floods no other reason");
        advance(Duration::from_secs(59)).await;
        assert!(!flood(1000));
        advance(Duration::from_secs(1)).await;
        assert_eq!((1001..2000).filter(|number| flood(*number)).count(), 1, "one a minute");
        advance(Duration::from_hours(1)).await;
        assert_eq!((2000..3000).filter(|number| flood(*number)).count(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_pool_and_condition_one_event_a_minute_is_published_and_the_same_words_once_in_ten() {
        let events = events();
        assert!(events.is_news("a", &note("StaleMetrics", "16 s old")));
        assert!(events.is_news("b", &note("StaleMetrics", "16 s old")), "another pool's");
        assert!(events.is_news("a", &note("NoMetrics", "none")), "another reason");
        for _ in 0..59 {
            advance(Duration::from_secs(1)).await;
            assert!(!events.is_news("a", &note("StaleMetrics", "17 s old")));
        }
        advance(Duration::from_secs(1)).await;
        assert!(events.is_news("a", &note("StaleMetrics", "76 s old")));
        advance(Duration::from_mins(9)).await;
        assert!(!events.is_news("a", &note("StaleMetrics", "76 s old")), "told nine minutes ago");
        advance(Duration::from_mins(1)).await;
        assert!(events.is_news("a", &note("StaleMetrics", "76 s old")));
    }

    #[tokio::test(start_paused = true)]
    async fn of_however_many_objects_that_come_and_go_so_many_are_remembered_and_the_latest_of_them() {
        let events = events();
        for object in 0..3 * REMEMBERED {
            assert!(events.is_news(&object.to_string(), &note("TargetChanged", "from 1 to 2")));
            assert!(events.published.lock().len() <= REMEMBERED);
            if object % 100 == 0 {
                advance(Duration::from_millis(1)).await;
            }
        }
        for object in 3 * REMEMBERED - 100..3 * REMEMBERED {
            assert!(!events.is_news(&object.to_string(), &note("TargetChanged", "from 1 to 2")), "told a moment ago");
        }
    }
}
