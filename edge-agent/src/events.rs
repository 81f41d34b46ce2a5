//! Events, counted: the same again is one Event with a higher count.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Event, EventSource, ObjectReference};
use lichen_api::k8s::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

/// Most different events that are remembered to be counted.
const REMEMBERED_MAX: usize = 1024;
/// What an event's component says.
const COMPONENT: &str = "lichen-agent";

/// What makes two events the same.
type Identity = (String, String, String, String);

/// Makes Events.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    known: BTreeMap<Identity, Known>,
    order: u64,
    /// The least number that no Event's name has.
    number: i128,
}

#[derive(Debug)]
struct Known {
    name: String,
    count: i32,
    first: Timestamp,
    order: u64,
}

impl Recorder {
    /// The Event for something that happened to an object, with its key. Names rise with time, so that events of
    /// the same second are listed in their order.
    pub(crate) fn record(
        &mut self,
        about: ObjectReference,
        (kind, reason, message): (&str, &str, String),
        host: &str,
        now: Timestamp,
    ) -> (String, Event) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let identity = (
            text(&about.uid) + &text(&about.name),
            text(&about.field_path),
            reason.to_owned(),
            message.clone(),
        );
        self.order += 1;
        let order = self.order;
        let number = now.as_nanosecond().max(self.number);
        let known = self.known.entry(identity).or_insert_with(|| Known {
            name: format!("{}.{number:016x}", text(&about.name)),
            count: 0,
            first: now,
            order,
        });
        self.number = number + 1;
        known.count = known.count.saturating_add(1);
        known.order = order;
        // A cluster-scoped object's events lie in the default namespace.
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let key = format!("{namespace}/{}", known.name);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(known.name.clone()),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: about,
            type_: Some(kind.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            count: Some(known.count),
            first_timestamp: Some(Time(known.first)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(host.to_owned()) }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(host.to_owned()),
            ..Default::default()
        };
        if self.known.len() > REMEMBERED_MAX {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.order).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        (key, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_again_is_counted() {
        let mut recorder = Recorder::default();
        let now = Timestamp::UNIX_EPOCH;
        let about = ObjectReference {
            name: Some("p".into()),
            namespace: Some("ns".into()),
            uid: Some("u".into()),
            ..Default::default()
        };
        let mut record = |message: &str| {
            recorder.record(about.clone(), ("Normal", "Started", message.to_owned()), "n", now)
        };
        let (first_key, first) = record("a");
        assert_eq!(first.count, Some(1));
        let (key, again) = record("a");
        assert_eq!((&key, again.count), (&first_key, Some(2)));
        let (key, other) = record("b");
        assert_eq!(other.count, Some(1));
        assert!(key > first_key, "names rise");
        for i in 0..2 * REMEMBERED_MAX {
            record(&i.to_string());
        }
        assert_eq!(record("a").1.count, Some(1), "what was forgotten begins anew");
    }
}
