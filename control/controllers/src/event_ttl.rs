//! Forgets events an hour after they last happened.

use std::time::Duration;

use jiff::Timestamp;
use lichen_api::view::{Change, Kind, Object, ObjectId, View};

use crate::meta::{created, is_deleting, uid};
use crate::{Action, Interest, Outcome, Reconciler};

/// How long an event is kept after it last happened.
pub(crate) const EVENT_TTL: Duration = Duration::from_secs(60 * 60);

/// See the module.
pub(crate) struct EventTtlController;

impl Reconciler for EventTtlController {
    fn name(&self) -> &'static str {
        "event-ttl-controller"
    }

    fn interest(&self, _: &View, change: &Change) -> Vec<Interest> {
        // A new event cannot be due; one that is repeated is looked at when it would have been due before.
        if change.id.kind != Kind::EVENT || change.old.is_some() {
            return Vec::new();
        }
        vec![Interest { id: change.id.clone(), after: Duration::ZERO }]
    }

    fn reconcile(&self, view: &View, id: &ObjectId, now: Timestamp) -> Outcome {
        let Some(Object::Other(event)) = view.get(id) else { return Outcome::done() };
        // Many kinds are held as this one is: which it is, only the key says.
        if id.kind != Kind::EVENT || is_deleting(&event.metadata) {
            return Outcome::done();
        }
        let last = event.last_seen.unwrap_or(Timestamp::MIN).max(created(&event.metadata));
        let age = Duration::try_from(now.duration_since(last)).unwrap_or_default();
        if age < EVENT_TTL {
            let mut outcome = Outcome::done();
            outcome.requeue(EVENT_TTL - age);
            return outcome;
        }
        Outcome::of(Action::Delete {
            id: id.clone(),
            uid: uid(&event.metadata).to_owned(),
            resource_version: event.metadata.resource_version.clone(),
            propagation: None,
            grace_seconds: None,
        })
    }
}
