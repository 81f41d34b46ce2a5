//! Writes events: what happened once is an object, what happens again counts up on it.
//!
//! Events are told on the side. They have a bounded queue of their own, and are dropped when it is full: nothing that
//! matters waits for an event.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use lichen_api::Status;
use lichen_api::kinds::event::RESOURCE as EVENT;
use lichen_controllers::{Event, Severity};
use lichen_registry::{Identity, Patch, Registry, WriteOptions};
use lichen_store::Term;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// Events that wait to be written.
const QUEUE_MAX: usize = 4096;
/// Writes of events at once.
const WRITES_MAX: usize = 16;
/// Different events whose repetitions are counted; the oldest are forgotten, and then begin anew.
const KNOWN_MAX: usize = 4096;
/// Events about one object at once, after which only one more every [`REFILL`] is written.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(5 * 60);
/// Where events about objects of the cluster are kept.
const CLUSTER_NAMESPACE: &str = "default";

/// An event and who tells it.
type Told = (&'static str, Event);

/// Where to tell events. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Told>,
}

impl Recorder {
    /// Starts to write, under the term of a leader. The task ends when every recorder is dropped and all is written.
    pub(crate) fn start(registry: Registry, term: Term) -> (Recorder, JoinHandle<()>) {
        let (queue, told) = mpsc::channel(QUEUE_MAX);
        (Recorder { queue }, tokio::spawn(write_all(registry, term, told)))
    }

    /// Tells an event in the name of `component`.
    pub(crate) fn record(&self, component: &'static str, event: Event) {
        if let Err(mpsc::error::TrySendError::Full((_, event))) = self.queue.try_send((component, event)) {
            tracing::warn!(regarding = %event.regarding.id, reason = event.reason, "an event was dropped: too many");
        }
    }
}

async fn write_all(registry: Registry, term: Term, mut told: mpsc::Receiver<Told>) {
    let mut known = Known::default();
    let mut writes = JoinSet::new();
    while let Some((component, event)) = told.recv().await {
        while writes.len() >= WRITES_MAX {
            writes.join_next().await;
        }
        let now = registry.now();
        if let Some(write) = known.note(component, &event, now) {
            let registry = registry.clone();
            writes.spawn(async move {
                let regarding = event.regarding.id.clone();
                if let Err(status) = write_one(&registry, term, component, event, write, now).await {
                    tracing::debug!(%regarding, error = %status.message, "an event was not written");
                }
            });
        }
        while writes.try_join_next().is_some() {}
    }
    while writes.join_next().await.is_some() {}
}

async fn write_one(
    registry: &Registry,
    term: Term,
    component: &'static str,
    event: Event,
    write: Write,
    now: Timestamp,
) -> Result<(), Status> {
    let identity = Identity::component(format!("system:{component}"));
    let options = WriteOptions {
        field_manager: Some(component.to_owned()),
        fence: Some(term),
        ..WriteOptions::default()
    };
    let namespace = namespace(&event);
    let again = write.count > 1;
    if again {
        let patch = Patch::Merge(json!({ "count": write.count, "lastTimestamp": rfc3339(now) }));
        match registry.patch(&identity, &EVENT, Some(namespace), &write.name, &patch, None, &options).await {
            // It was forgotten, or is not written yet.
            Err(status) if status.code == 404 => {}
            done => return done.map(drop),
        }
    }
    let object = object(component, &event, &write, now);
    registry.create(&identity, &EVENT, Some(namespace), object, &options).await.map(drop)
}

fn object(component: &str, event: &Event, write: &Write, now: Timestamp) -> Value {
    let about = &event.regarding;
    let (key, kind) = (&about.id.key, about.id.kind);
    let mut involved = json!({
        "apiVersion": kind.api_version(), "kind": kind.kind, "name": key.name, "uid": about.uid,
        "resourceVersion": about.resource_version,
    });
    if !key.namespace.is_empty() {
        involved["namespace"] = json!(key.namespace);
    }
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "namespace": namespace(event), "name": write.name },
        "involvedObject": involved,
        "reason": event.reason,
        "message": event.message,
        "type": match event.severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
        "count": write.count,
        "firstTimestamp": rfc3339(write.first),
        "lastTimestamp": rfc3339(now),
        "source": { "component": component },
        "reportingComponent": component,
        "reportingInstance": "",
    })
}

fn namespace(event: &Event) -> &str {
    let namespace = &event.regarding.id.key.namespace;
    if namespace.is_empty() { CLUSTER_NAMESPACE } else { namespace }
}

fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// How to write an event.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    name: String,
    count: u32,
    first: Timestamp,
}

struct Bucket {
    tokens: u32,
    filled: Timestamp,
}

/// What was told before.
#[derive(Default)]
struct Known {
    events: BTreeMap<Told, Write>,
    order: VecDeque<Told>,
    buckets: BTreeMap<(&'static str, String), Bucket>,
}

impl Known {
    /// How to write an event; `None` if its object has had too many.
    fn note(&mut self, component: &'static str, event: &Event, now: Timestamp) -> Option<Write> {
        if !self.admit(component, &event.regarding.uid, now) {
            return None;
        }
        // Another version of the object does not make another event.
        let mut same = (component, event.clone());
        same.1.regarding.resource_version = String::new();
        if let Some(write) = self.events.get_mut(&same) {
            write.count = write.count.saturating_add(1);
            return Some(write.clone());
        }
        if self.order.len() >= KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.events.remove(&oldest);
        }
        let name = format!("{}.{:x}", event.regarding.id.key.name, unique(now, &mut self.events));
        let write = Write { name, count: 1, first: now };
        self.order.push_back(same.clone());
        self.events.insert(same, write.clone());
        Some(write)
    }

    fn admit(&mut self, component: &'static str, uid: &str, now: Timestamp) -> bool {
        if self.buckets.len() >= KNOWN_MAX {
            // Full buckets know nothing.
            self.buckets.retain(|_, bucket| !refill(bucket, now));
        }
        let bucket =
            self.buckets.entry((component, uid.to_owned())).or_insert(Bucket { tokens: BURST, filled: now });
        refill(bucket, now);
        let admitted = bucket.tokens > 0;
        bucket.tokens = bucket.tokens.saturating_sub(1);
        admitted
    }
}

/// Fills a bucket up; says whether it is full.
fn refill(bucket: &mut Bucket, now: Timestamp) -> bool {
    let passed = Duration::try_from(now.duration_since(bucket.filled)).unwrap_or_default();
    let earned = u32::try_from(passed.as_secs() / REFILL.as_secs()).unwrap_or(BURST);
    if earned > 0 {
        bucket.tokens = bucket.tokens.saturating_add(earned).min(BURST);
        bucket.filled = now;
    }
    bucket.tokens >= BURST
}

/// A number for the end of an event's name: the time, moved on until no known event was told at it.
fn unique(now: Timestamp, events: &mut BTreeMap<Told, Write>) -> i128 {
    // Two events of one object may be told within one tick of a coarse clock; the count of known events sets them
    // apart.
    now.as_nanosecond() + i128::try_from(events.len()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use lichen_api::view::{Kind, ObjectId};
    use lichen_controllers::Regarding;

    use super::*;

    fn event(name: &str, version: &str, message: &str) -> Event {
        Event {
            regarding: Regarding {
                id: ObjectId::new(Kind::POD, "default", name),
                uid: format!("uid-{name}"),
                resource_version: version.to_owned(),
            },
            severity: Severity::Normal,
            reason: "Testing",
            message: message.to_owned(),
        }
    }

    #[test]
    fn what_happens_again_counts_up() {
        let mut known = Known::default();
        let mut note = |event: Event| known.note("tester", &event, Timestamp::UNIX_EPOCH).unwrap();
        let first = note(event("a", "1", "x"));
        let again = note(event("a", "2", "x"));
        let other = note(event("a", "2", "y"));
        assert_eq!((first.count, again.count, other.count), (1, 2, 1));
        assert_eq!(first.name, again.name);
        assert_ne!(first.name, other.name);
    }

    #[test]
    fn too_many_about_one_object_are_left_out_for_a_while() {
        let mut known = Known::default();
        let now = Timestamp::UNIX_EPOCH;
        let mut count = |name: &str, now| {
            (0..100).filter(|_| known.note("t", &event(name, "1", "x"), now).is_some()).count()
        };
        assert_eq!(count("a", now), 25);
        assert_eq!(count("b", now), 25);
        assert_eq!(count("a", now + jiff::SignedDuration::from_secs(601)), 2);
    }
}
