//! The table of kinds: everything the API layer knows about a kind, as one entry.
//!
//! Invariant: a new kind is one file under `kinds/` and one line in [`RESOURCES`]; nothing else in the API layer names a kind. HTTP and
//! storage are deliberately absent.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use crate::field::FieldError;
use crate::kinds;
use crate::schema::{Kind, Schema};

/// One kind that the API serves.
pub struct Resource {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version, `v1`.
    pub version: &'static str,
    /// The kind, `Pod`.
    pub kind: &'static str,
    /// The resource's plural name as in paths, `pods`.
    pub plural: &'static str,
    /// The singular name, `pod`.
    pub singular: &'static str,
    /// Short names, `po`.
    pub short_names: &'static [&'static str],
    /// Categories, `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether the whole collection can be deleted in one request.
    pub delete_collection: bool,
    /// Whether PUT on an absent name creates the object.
    pub create_on_update: bool,
    /// Whether an update must carry a resourceVersion.
    pub update_needs_version: bool,
    /// Names of the subresources, `status`, `scale`, `log`.
    pub subresources: &'static [&'static str],
    /// Columns of the server-side Table.
    pub columns: &'static [Column],
    /// Cells of one object, one for each column.
    pub row: fn(&Value, Timestamp) -> Vec<Value>,
    /// Fields that a field selector may name beside `metadata.name` and `metadata.namespace`.
    pub fields: &'static [FieldSelector],
    /// Decoding, defaulting, validation.
    pub strategy: &'static dyn Strategy,
    /// Whose objects these are, if they are stored as another kind's.
    pub stored_as: Option<&'static StoredAs>,
    /// What every client is told that still uses the kind.
    pub deprecation: Option<&'static str>,
}

/// How a kind is another form of a kind that is stored: clients of both see the same objects.
pub struct StoredAs {
    /// The kind that is stored.
    pub home: &'static Resource,
    /// From this kind's form to the stored one, `apiVersion` included.
    pub to_home: fn(&mut Value),
    /// From the stored form to this kind's.
    pub from_home: fn(&mut Value),
    /// The selectable fields, and what the stored kind calls them.
    pub fields: &'static [(&'static str, &'static str)],
}

/// One column of a Table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The header as kubectl knows it.
    pub name: &'static str,
    /// JSON type: `string`, `integer`.
    pub kind: &'static str,
    /// `name` for the column that holds the name.
    pub format: &'static str,
    /// What the column shows.
    pub description: &'static str,
    /// 0 always, 1 with `-o wide`.
    pub priority: i32,
}

/// One field that a field selector may name.
#[derive(Clone, Copy)]
pub struct FieldSelector {
    /// The path, `spec.nodeName`.
    pub name: &'static str,
    /// Its value as text; absent fields are empty.
    pub get: fn(&Value) -> String,
}

/// Why a JSON value is no object of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// JSON path of the offending value; empty for the object itself.
    pub path: String,
    /// What is wrong, path included.
    pub message: String,
}

/// What differs from kind to kind on a write. The phases of a create: decode, default, (managedFields), prepare_create, validate. Those of an
/// update: decode, prepare_update, default, validate_update, (managedFields).
///
/// Implementations are pure: no clock, no randomness, no knowledge of other objects.
pub trait Strategy: Send + Sync {
    /// Checks types and drops what the kind does not know; each dropped field's path goes to `on_unknown`.
    fn decode(&self, object: Value, on_unknown: &mut dyn FnMut(&str)) -> Result<Value, DecodeError>;
    /// Fills in what the client left out. Idempotent.
    fn default(&self, object: &mut Value);
    /// Makes what the server and not the client decides on create: the first status and generation, what admission adds.
    fn prepare_create(&self, object: &mut Value);
    /// Carries over from `old` what this request may not change: `sub` is None for the main resource or Some("status"). Bumps the
    /// generation when the desired state changed.
    fn prepare_update(&self, new: &mut Value, old: &Value, sub: Option<&str>);
    /// Every rule that a single object can break, metadata included.
    fn validate(&self, object: &Value) -> Vec<FieldError>;
    /// Rules about the change from `old` to `new` (immutability), those of [`Strategy::validate`] included.
    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError>;
    /// Hints for the client that go into `Warning` headers.
    fn warnings(&self, object: &Value) -> Vec<String>;
    /// Adds the kind's types to the schema.
    fn trace(&self, schema: &mut Schema);
    /// The kind's own type in the schema.
    fn kind(&self) -> Kind;
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `pods` or `deployments.apps`: how messages name the resource.
    pub fn qualified_plural(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether the subresource exists.
    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.contains(&name)
    }

    /// Whether its objects are questions, which are answered and never stored.
    pub fn is_review(&self) -> bool {
        kinds::review::REVIEWS.iter().any(|review| std::ptr::eq(*review, self))
    }

    /// The kind under whose name objects of this one are stored: itself, for most.
    pub fn home(&self) -> &Self {
        self.stored_as.map_or(self, |stored| stored.home)
    }

    /// The object in the form in which it is stored.
    pub fn to_home<'o>(&self, object: &'o Value) -> Cow<'o, Value> {
        let Some(stored) = self.stored_as else { return Cow::Borrowed(object) };
        let mut object = object.clone();
        (stored.to_home)(&mut object);
        Cow::Owned(object)
    }

    /// A stored object in this kind's form.
    pub fn from_home(&self, mut object: Value) -> Value {
        if let Some(stored) = self.stored_as {
            (stored.from_home)(&mut object);
        }
        object
    }

    /// All selectable fields of an object with their values, `metadata.name` and `metadata.namespace` first.
    pub fn field_values(&self, object: &Value) -> Vec<(String, String)> {
        let mut values = Vec::with_capacity(self.fields.len() + 2);
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        values.push(("metadata.name".to_owned(), text("/metadata/name")));
        if self.namespaced {
            values.push(("metadata.namespace".to_owned(), text("/metadata/namespace")));
        }
        values.extend(self.fields.iter().map(|field| (field.name.to_owned(), (field.get)(object))));
        values
    }

    /// Whether a field selector may name this field.
    pub fn selects_by(&self, field: &str) -> bool {
        field == "metadata.name"
            || (self.namespaced && field == "metadata.namespace")
            || self.fields.iter().any(|known| known.name == field)
            || self.stored_as.is_some_and(|stored| stored.fields.iter().any(|(own, _)| *own == field))
    }
}

/// Every kind that the API serves.
pub static RESOURCES: &[&Resource] = &[
    &kinds::configmap::RESOURCE,
    &kinds::endpoints::RESOURCE,
    &kinds::event::RESOURCE,
    &kinds::namespace::RESOURCE,
    &kinds::node::RESOURCE,
    &kinds::pod::RESOURCE,
    &kinds::secret::RESOURCE,
    &kinds::service::RESOURCE,
    &kinds::serviceaccount::RESOURCE,
    &kinds::deployment::RESOURCE,
    &kinds::replicaset::RESOURCE,
    &kinds::lease::RESOURCE,
    &kinds::endpointslice::RESOURCE,
    &kinds::event_v1::RESOURCE,
];

/// Every kind that a client may send: those that are stored, then reviews.
pub(crate) fn sendable() -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().chain(kinds::review::REVIEWS).copied()
}

/// Finds a kind by the names in a path.
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    named(RESOURCES, group, version, plural)
}

/// Finds a review by the names in a path.
pub fn review_by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    named(kinds::review::REVIEWS, group, version, plural)
}

fn named(all: &[&'static Resource], group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    all.iter()
        .copied()
        .find(|resource| resource.plural == plural && resource.group == group && resource.version == version)
}

/// Finds a kind by an object's `apiVersion` and `kind`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    RESOURCES
        .iter()
        .copied()
        .find(|resource| resource.kind == kind && resource.group == group && resource.version == version)
}
