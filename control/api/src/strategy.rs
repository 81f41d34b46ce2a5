//! The one implementation of [`Strategy`]: a k8s-openapi type gives the codec, a table of functions gives the rules.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::check::At;
use crate::codec;
use crate::field::FieldError;
use crate::metadata;
use crate::resource::{DecodeError, Strategy};
use crate::schema::{self, Kind, Schema};
use crate::validation::{self, Rule};

/// What a kind does beyond what every kind does.
pub struct Hooks {
    /// The rule for names.
    pub name: fn(&str) -> Rule,
    /// Whether the object has a status that only the status subresource may change.
    pub has_status: bool,
    /// Whether the object counts changes of its desired state in `metadata.generation`.
    pub has_generation: bool,
    /// Fills in what the client left out.
    pub default: fn(&mut Value),
    /// Clears what a client may not set on create.
    pub prepare_create: fn(&mut Value),
    /// Carries over what an update of the main resource may not change.
    pub prepare_update: fn(&mut Value, &Value),
    /// Rules on one object.
    pub validate: fn(&At<'_>, &mut Vec<FieldError>),
    /// Rules on a change of the main resource, new and old.
    pub validate_update: fn(&At<'_>, &At<'_>, &mut Vec<FieldError>),
    /// Hints for the client.
    pub warnings: fn(&At<'_>, &mut Vec<String>),
}

impl Hooks {
    /// Nothing beyond what every kind does.
    pub const NONE: Self = Self {
        name: validation::dns_subdomain_name,
        has_status: false,
        has_generation: false,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
        warnings: |_, _| {},
    };
}

/// The strategy of a kind that a k8s-openapi type describes.
pub struct Typed<T> {
    hooks: Hooks,
    kind: PhantomData<fn() -> T>,
}

impl<T> Typed<T> {
    /// A strategy with these rules beyond those of every object.
    pub const fn new(hooks: Hooks) -> Self {
        Self { hooks, kind: PhantomData }
    }
}

impl<T: DeserializeOwned + Serialize> Strategy for Typed<T> {
    fn decode(&self, object: Value, on_unknown: &mut dyn FnMut(&str)) -> Result<Value, DecodeError> {
        codec::normalize::<T>(object, on_unknown)
    }

    fn default(&self, object: &mut Value) {
        (self.hooks.default)(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.hooks.has_generation {
            object["metadata"]["generation"] = json!(1);
        }
        (self.hooks.prepare_create)(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, sub: Option<&str>) {
        metadata::carry_over(new, old);
        if sub == Some("status") {
            keep_all_but_status(new, old);
            return;
        }
        if self.hooks.has_status {
            copy(new, old, "status");
        }
        (self.hooks.prepare_update)(new, old);
        // What a client left out is no change of the desired state.
        (self.hooks.default)(new);
        if self.hooks.has_generation && desired_state_differs(new, old) {
            let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
            new["metadata"]["generation"] = json!(generation + 1);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let at = At::root(object);
        metadata::validate(&at.field("metadata"), self.hooks.name, &mut errors);
        (self.hooks.validate)(&at, &mut errors);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (new, old) = (At::root(new), At::root(old));
        metadata::validate(&new.field("metadata"), self.hooks.name, &mut errors);
        metadata::validate_update(&new.field("metadata"), &old.field("metadata"), &mut errors);
        if sub.is_none() {
            (self.hooks.validate)(&new, &mut errors);
            (self.hooks.validate_update)(&new, &old, &mut errors);
        }
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let mut warnings = Vec::new();
        (self.hooks.warnings)(&At::root(object), &mut warnings);
        warnings
    }

    fn trace(&self, schema: &mut Schema) {
        schema.trace::<T>();
    }

    fn kind(&self) -> Kind {
        Kind::Struct(schema::openapi_id(std::any::type_name::<T>()))
    }
}

/// Makes `new[key]` what `old[key]` is, absence included.
pub(crate) fn copy(new: &mut Value, old: &Value, key: &str) {
    if let Some(object) = new.as_object_mut() {
        match old.get(key) {
            Some(value) => object.insert(key.to_owned(), value.clone()),
            None => object.remove(key),
        };
    }
}

/// Sets a field that is absent.
pub(crate) fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(object) = object.as_object_mut() {
        let slot = object.entry(key).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value.into();
        }
    }
}

/// The field as a mutable value, if it is there.
pub(crate) fn get<'o>(object: &'o mut Value, key: &str) -> Option<&'o mut Value> {
    object.get_mut(key).filter(|value| !value.is_null())
}

/// The items of a list field; none if it is absent.
pub(crate) fn items<'o>(object: &'o mut Value, key: &str) -> impl Iterator<Item = &'o mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

fn keep_all_but_status(new: &mut Value, old: &Value) {
    let Some(fields) = old.as_object() else { return };
    let kept: Vec<&String> =
        fields.keys().filter(|key| !matches!(key.as_str(), "metadata" | "status")).collect();
    if let Some(object) = new.as_object_mut() {
        object.retain(|key, _| matches!(key.as_str(), "metadata" | "status"));
    }
    for key in kept {
        copy(new, old, key);
    }
    copy(&mut new["metadata"], &old["metadata"], "ownerReferences");
}

fn desired_state_differs(new: &Value, old: &Value) -> bool {
    let desired = |object: &Value| -> Option<serde_json::Map<String, Value>> {
        let mut fields = object.as_object()?.clone();
        fields.retain(|key, _| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
        Some(fields)
    };
    desired(new) != desired(old)
}
