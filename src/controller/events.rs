//! Events, written by hand: the aggregation of kube's `Recorder` keeps the first note and would show old numbers.
//!
//! At most one event per pool and reason a minute. The same note again becomes a series of the event that told it.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::apply::{WriteError, Writer};
use crate::{
    api::FIELD_MANAGER,
    decide::plan::{EventKind, EventNote},
    http::WriteKind,
};

/// Least time between two events of one pool and reason.
const SPACING: Duration = Duration::from_mins(1);
/// After this long the API server may have dropped the event of a series.
const SERIES_LIFE: Duration = Duration::from_mins(30);
/// Longest note, in bytes.
const NOTE_BYTES: usize = 1024;
/// Pools and reasons that are remembered; the oldest are forgotten.
const REMEMBERED: usize = 4096;

struct Told {
    note: String,
    event: String,
    count: i32,
    first: Instant,
    at: Instant,
}

/// Publishes events.
pub struct Events {
    client: Client,
    instance: String,
    told: Mutex<HashMap<(String, String), Told>>,
}

/// What becomes of a note.
enum Step {
    Drop,
    Create(String),
    Count(String, i32),
}

impl Events {
    /// Events under the name of this process.
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance, told: Mutex::default() }
    }

    /// Publishes an event about an object. A failure is logged: telling must not keep anything from being done.
    pub async fn publish<K>(&self, writer: &Writer, about: &K, event: EventNote)
    where
        K: Resource<DynamicType = ()> + Sync,
    {
        let uid = about.uid().unwrap_or_default();
        let published = match self.step(&uid, &event) {
            Step::Drop => return,
            Step::Create(name) => self.create(writer, about, &event, name).await,
            Step::Count(name, count) => self.count(writer, about, &name, count).await,
        };
        if let Err(error) = published {
            tracing::warn!(%error, reason = event.reason, "publishing an event");
            self.told.lock().remove(&(uid, event.reason));
        }
    }

    fn step(&self, uid: &str, event: &EventNote) -> Step {
        let now = Instant::now();
        let mut told = self.told.lock();
        if told.len() >= REMEMBERED {
            told.retain(|_, told| now - told.at < SERIES_LIFE);
        }
        let key = (uid.to_owned(), event.reason.clone());
        if let Some(told) = told.get_mut(&key) {
            if now - told.at < SPACING {
                return Step::Drop;
            }
            if told.note == event.note && now - told.first < SERIES_LIFE {
                told.at = now;
                told.count += 1;
                return Step::Count(told.event.clone(), told.count);
            }
        }
        let name = format!("sluice.{:x}.{}", Timestamp::now().as_nanosecond(), uid.get(..8).unwrap_or(uid));
        let fresh = Told { note: event.note.clone(), event: name.clone(), count: 1, first: now, at: now };
        told.insert(key, fresh);
        Step::Create(name)
    }

    async fn create<K>(&self, writer: &Writer, about: &K, event: &EventNote, name: String) -> Result<(), WriteError>
    where
        K: Resource<DynamicType = ()> + Sync,
    {
        let mut note = event.note.clone();
        let mut end = note.len().min(NOTE_BYTES);
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
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

    async fn count<K>(&self, writer: &Writer, about: &K, name: &str, count: i32) -> Result<(), WriteError>
    where
        K: Resource<DynamicType = ()> + Sync,
    {
        let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace(about));
        let body = json!({ "series": series });
        let what = format!("series of event {name}");
        let patch = Patch::Merge(&body);
        writer.write(WriteKind::Event, what, events.patch(name, &PatchParams::default(), &patch)).await.map(|_| ())
    }
}

/// Events about objects without a namespace live in `default`.
fn namespace<K: Resource<DynamicType = ()>>(about: &K) -> String {
    about.namespace().unwrap_or_else(|| "default".to_owned())
}

fn reference<K: Resource<DynamicType = ()>>(about: &K) -> ObjectReference {
    ObjectReference { resource_version: None, ..about.object_ref(&()) }
}
