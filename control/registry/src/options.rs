//! What callers may ask of a read or a write.

use lichen_api::{fields, labels};
use lichen_store::{Key, Record, Revision, Term};

/// What happens to fields that a kind does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// The write is refused.
    Strict,
    /// They are dropped, and each yields a warning.
    Warn,
    /// They are dropped.
    #[default]
    Ignore,
}

/// How a create, update or patch is done.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Who owns the fields that are set; by default [`crate::Identity::default_manager`].
    pub field_manager: Option<String>,
    /// Everything but the write itself.
    pub dry_run: bool,
    /// What happens to unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Paths that occurred twice in the body, which only its parser can see.
    pub duplicate_fields: Vec<String>,
    /// The write happens only under the leader of this term. Controllers and the scheduler set it.
    pub fence: Option<Term>,
    /// The object is changed only while this other one is at its revision. Not for creating.
    pub only_while: Option<(Key, Revision)>,
}

/// A patch, in one of the three formats.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 7386, `application/merge-patch+json`.
    Merge(serde_json::Value),
    /// Kubernetes' strategic merge patch.
    Strategic(serde_json::Value),
    /// RFC 6902, `application/json-patch+json`.
    Json(serde_json::Value),
}

/// A configuration to apply, `application/apply-patch+yaml`.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The part of the object that its manager wants.
    pub value: serde_json::Value,
    /// Whether fields of other managers are taken over.
    pub force: bool,
}

/// What happens to an object's dependents when it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go after it: the garbage collector sees that their owner is gone.
    Background,
    /// They go first: the object stays, with a finalizer, until they are gone.
    Foreground,
    /// They stay: the object stays, with a finalizer, until they have been released.
    Orphan,
}

/// How a deletion is done.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Only the object with this uid.
    pub uid: Option<String>,
    /// Only the object at this revision.
    pub revision: Option<Revision>,
    /// Seconds that a pod gets to end; by default what the pod says.
    pub grace_seconds: Option<i64>,
    /// What happens to dependents; by default [`Propagation::Background`].
    pub propagation: Option<Propagation>,
    /// Everything but the deletion itself.
    pub dry_run: bool,
    /// The deletion happens only under the leader of this term.
    pub fence: Option<Term>,
}

/// Which objects of a collection are meant. Matched against what lies beside a record's body, never by parsing it.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// By labels.
    pub labels: labels::Selector,
    /// By the fields that the kind declares selectable.
    pub fields: fields::Selector,
    /// By name.
    pub name: Option<String>,
}

/// How the revision that a list names is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RevisionMatch {
    /// The newest state.
    #[default]
    Newest,
    /// Whatever this member has, if it is no older.
    NotOlderThan(Revision),
    /// The state as it was then.
    Exact(Revision),
}

/// How a list is done.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Which objects.
    pub filter: Filter,
    /// Most items; the list then carries a token to continue with.
    pub limit: Option<usize>,
    /// The token of the list before.
    pub continue_token: Option<String>,
    /// Which state.
    pub revision: RevisionMatch,
}

/// A list, read at one revision.
#[derive(Clone, Debug)]
pub struct List {
    /// The revision at which it was read: where a watch goes on.
    pub revision: Revision,
    /// The objects, ordered by namespace and name.
    pub items: Vec<Record>,
    /// The token for the rest, if there is one.
    pub continue_token: Option<String>,
    /// How many objects the rest has, if no selector makes that unknown.
    pub remaining: Option<u64>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchStart {
    /// With every object that exists, as ADDED, then a bookmark that says so, then the changes.
    #[default]
    Initial,
    /// With the changes after a revision.
    After(Revision),
    /// With the next change.
    Now,
}

/// How a watch is done.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Which objects.
    pub filter: Filter,
    /// Where it begins.
    pub start: WatchStart,
}

/// A write that was done, or would have been.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as it is now.
    pub record: Record,
    /// Hints for the client.
    pub warnings: Vec<String>,
    /// Whether the write made the object.
    pub created: bool,
    /// Whether anything was written: what changes nothing costs no revision.
    pub changed: bool,
}

/// A deletion that was done, begun, or would have been.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object as it last was (under the deletion's revision), or as it waits for its end.
    pub record: Record,
    /// Whether the object is gone.
    pub gone: bool,
}
