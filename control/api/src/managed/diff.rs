//! What a write set and removed, in terms of fields that can be owned.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::FieldSet;
use crate::merge_keys::{self, ListType, Rules};
use crate::resource::Resource;
use crate::schema::{Kind, schema};

/// What a write did.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Fields that were added or got another value.
    pub set: FieldSet,
    /// Fields that are gone.
    pub removed: FieldSet,
}

impl Changes {
    /// Whether nothing that can be owned changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }

    fn insert(&mut self, step: String, below: Self) {
        self.set.insert(step.clone(), below.set);
        self.removed.insert(step, below.removed);
    }
}

/// Metadata that only the server sets.
const UNOWNED: [&str; 10] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Structs that every object has in Kubernetes even when nothing is in them, so that nobody can add them.
const ALWAYS_THERE: [(&str, &str); 9] = [
    ("DeploymentSpec", "strategy"),
    ("DeploymentSpec", "template"),
    ("Event", "source"),
    ("NodeStatus", "daemonEndpoints"),
    ("NodeStatus", "nodeInfo"),
    ("PodSpec", "containers"),
    ("PodTemplateSpec", "metadata"),
    ("PodTemplateSpec", "spec"),
    ("ReplicaSetSpec", "template"),
];

/// The difference between two versions of an object; `old` is None for a new one.
pub fn changes(resource: &Resource, old: Option<&Value>, new: &Value) -> Changes {
    let kind = resource.strategy.kind();
    let mut all = Changes::default();
    let Kind::Struct(id) = &kind else { return all };
    let Some(root) = schema().get(id) else { return all };
    for (name, field) in &root.fields {
        if matches!(*name, "apiVersion" | "kind") {
            continue;
        }
        let (old, new) = (old.and_then(|old| present(old, name)), present(new, name));
        let mut below = if *name == "metadata" {
            let (old, new) = (old.map(owned_metadata), new.map(owned_metadata));
            difference(&field.kind, field.rules, old.as_ref(), new.as_ref(), true)
        } else {
            let always = matches!(*name, "spec" | "status") || ALWAYS_THERE.contains(&(root.name, *name));
            difference(&field.kind, field.rules, old, new, always)
        };
        if matches!(*name, "metadata" | "spec" | "status") {
            below.removed.here = false;
        }
        all.insert(format!("f:{name}"), below);
    }
    all
}

/// Metadata without what only the server sets.
pub(crate) fn owned_metadata(metadata: &Value) -> Value {
    let mut owned = metadata.clone();
    if let Some(fields) = owned.as_object_mut() {
        fields.retain(|name, _| !UNOWNED.contains(&name.as_str()));
    }
    owned
}

fn present<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// `phantom`: the old value counts as there even if it is not.
fn difference(kind: &Kind, rules: Rules, old: Option<&Value>, new: Option<&Value>, phantom: bool) -> Changes {
    let mut all = match kind {
        Kind::Struct(id) => match schema().get(id) {
            Some(known) if !known.atomic && !rules.atomic_map => {
                let mut all = Changes::default();
                for (name, field) in &known.fields {
                    let (old_field, new_field) =
                        (old.and_then(|old| present(old, name)), new.and_then(|new| present(new, name)));
                    if old_field.is_none() && new_field.is_none() {
                        continue;
                    }
                    let always = (old.is_some() || phantom) && ALWAYS_THERE.contains(&(known.name, name));
                    let below = difference(&field.kind, field.rules, old_field, new_field, always);
                    all.insert(format!("f:{name}"), below);
                }
                all
            }
            _ => return whole(old, new),
        },
        Kind::Map(value) if !rules.atomic_map => each(value, &keyed(old), &keyed(new)),
        Kind::List(_) if rules.list == ListType::Atomic => return whole(old, new),
        Kind::List(item) => {
            let step = |item: &Value| item_step(rules.list, item);
            each(item, &listed(old, step), &listed(new, step))
        }
        _ => return whole(old, new),
    };
    all.set.here = new.is_some() && old.is_none() && !phantom;
    all.removed.here = old.is_some() && new.is_none();
    all
}

/// The value is one field.
fn whole(old: Option<&Value>, new: Option<&Value>) -> Changes {
    let mut all = Changes::default();
    all.set.here = new.is_some() && old != new;
    all.removed.here = old.is_some() && new.is_none();
    all
}

fn keyed(map: Option<&Value>) -> BTreeMap<String, &Value> {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries.map(|(key, value)| (format!("f:{key}"), value)).collect()
}

fn listed(list: Option<&Value>, step: impl Fn(&Value) -> String) -> BTreeMap<String, &Value> {
    list.and_then(Value::as_array).into_iter().flatten().map(|item| (step(item), item)).collect()
}

fn each(kind: &Kind, old: &BTreeMap<String, &Value>, new: &BTreeMap<String, &Value>) -> Changes {
    let mut all = Changes::default();
    for (step, value) in new {
        let below = difference(kind, Rules::default(), old.get(step).copied(), Some(value), false);
        all.insert(step.clone(), below);
    }
    for (step, value) in old.iter().filter(|(step, _)| !new.contains_key(*step)) {
        all.insert(step.clone(), difference(kind, Rules::default(), Some(value), None, false));
    }
    all
}

/// The step from a list to one of its items. An atomic list has none.
pub(crate) fn item_step(list: ListType, item: &Value) -> String {
    match list {
        ListType::Atomic => String::new(),
        ListType::Set => format!("v:{item}"),
        ListType::Map(keys) => format!("k:{}", identity(item, keys)),
    }
}

/// The keys of a list item as JSON.
fn identity(item: &Value, keys: &[&str]) -> Value {
    keys.iter()
        .filter_map(|key| {
            let value = present(item, key).cloned();
            let value = value.or_else(|| merge_keys::key_default(key).map(Value::from))?;
            Some(((*key).to_owned(), value))
        })
        .collect::<Map<_, _>>()
        .into()
}
