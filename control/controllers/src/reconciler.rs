//! What a controller is: a pure function from a view and a key to the writes that bring the cluster closer to what
//! its objects ask for.

use std::time::Duration;

use jiff::Timestamp;
use lichen_api::view::{Change, ObjectId, View};
use serde_json::Value;

/// A controller.
///
/// Obligations of an implementation:
///
/// - it is pure: the same view, key and time give the same outcome, and nothing else is read;
/// - it is level-triggered: the outcome follows from the view alone, never from which change led to the call;
/// - it rests: applied to a view in which everything is as it should be, it returns no step, so that an idle
///   cluster writes nothing;
/// - it never asks the driver to remember: what has to be known later is in an object, or follows from one.
///
/// Obligations of the driver: one key of one reconciler is never run twice at once, and after steps were taken the
/// key runs again only with a view that has seen them. Therefore no reconciler has to reckon with writes of its own
/// that it cannot see yet.
pub trait Reconciler: Send + Sync {
    /// The controller's name, as in `system:controller:<name>`, its identity, and as the source of its events.
    fn name(&self) -> &'static str;

    /// The keys to reconcile because of a change. `view` has the change already.
    fn interest(&self, view: &View, change: &Change) -> Vec<Interest>;

    /// What to do for that key.
    fn reconcile(&self, view: &View, id: &ObjectId, now: Timestamp) -> Outcome;
}

/// A key to reconcile, now or later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interest {
    /// The key.
    pub id: ObjectId,
    /// How long to wait first.
    pub after: Duration,
}

impl From<ObjectId> for Interest {
    fn from(id: ObjectId) -> Interest {
        Interest { id, after: Duration::ZERO }
    }
}

/// What a reconciler wants done. If a step fails, the key is tried again after a back-off.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The steps, at most one for each object. They do not build upon each other: they may be taken in any order or
    /// together, and one may succeed where another fails.
    pub steps: Vec<Step>,
    /// When to look at this key again even if nothing changes.
    pub requeue_after: Option<Duration>,
}

impl Outcome {
    /// Nothing to do.
    pub fn done() -> Outcome {
        Outcome::default()
    }

    /// An outcome of one action that tells no one.
    pub fn of(action: Action) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.push(action);
        outcome
    }

    /// Adds an action that tells no one.
    pub fn push(&mut self, action: Action) {
        self.steps.push(action.into());
    }

    /// Looks at the key again after `wait` at the latest.
    pub fn requeue(&mut self, wait: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(wait, |before| before.min(wait)));
    }
}

/// An action and the events that tell how it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The write.
    pub action: Action,
    /// An object that the write was decided by: it happens only while that is as it was. For updates and patches.
    pub given: Option<Regarding>,
    /// The event to record when it succeeded.
    pub done: Option<Event>,
    /// The event to record when it failed; the error is appended to its message.
    pub failed: Option<Event>,
}

impl From<Action> for Step {
    /// A step that tells no one.
    fn from(action: Action) -> Step {
        Step { action, given: None, done: None, failed: None }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create an object.
    Create {
        /// Kind, namespace and name of the object.
        id: ObjectId,
        /// The object.
        object: Value,
    },
    /// Replace an object, or one of its subresources. The object carries the resourceVersion it was read at.
    Update {
        /// Kind, namespace and name of the object.
        id: ObjectId,
        /// The object.
        object: Value,
        /// `status`, `finalize`, or `None` for the object itself.
        subresource: Option<&'static str>,
    },
    /// Apply a merge patch. It carries the resourceVersion it was made for in its metadata.
    Patch {
        /// Kind, namespace and name of the object.
        id: ObjectId,
        /// The merge patch.
        patch: Value,
    },
    /// Delete an object.
    Delete {
        /// Kind, namespace and name of the object.
        id: ObjectId,
        /// Only the incarnation with this UID.
        uid: String,
        /// Only at this resourceVersion, where given.
        resource_version: Option<String>,
        /// What becomes of its dependents; the kind's default where not given.
        propagation: Option<Propagation>,
        /// Seconds to end in, where not the object's own; 0 removes at once.
        grace_seconds: Option<i64>,
    },
    /// Only record an event.
    Record(Event),
}

impl Action {
    /// The object it writes; of an event, the object that the event is about.
    pub fn id(&self) -> &ObjectId {
        match self {
            Action::Create { id, .. }
            | Action::Update { id, .. }
            | Action::Patch { id, .. }
            | Action::Delete { id, .. } => id,
            Action::Record(event) => &event.regarding.id,
        }
    }
}

/// What becomes of the dependents of an object that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay, and lose the reference.
    Orphan,
}

/// Whether an event is good or bad news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// `Normal`.
    Normal,
    /// `Warning`.
    Warning,
}

/// The object an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regarding {
    /// Kind, namespace and name.
    pub id: ObjectId,
    /// The incarnation.
    pub uid: String,
    /// The version the controller saw.
    pub resource_version: String,
}

/// An event to record. Whoever records it adds the time, and counts repetitions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// What it is about.
    pub regarding: Regarding,
    /// Good or bad.
    pub severity: Severity,
    /// A CamelCase word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}
