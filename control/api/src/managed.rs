//! `metadata.managedFields`: who set which field.
//!
//! A write through create, update or patch makes its manager the owner of what it added or changed, and takes what it removed from
//! everybody. Ownership follows [`crate::schema`]: atomic structs, maps and lists are one field, lists with keys are one field an item.

mod diff;
mod set;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::names::rfc3339;
use crate::resource::Resource;

pub use diff::{Changes, changes};
pub(crate) use diff::{item_step, owned_metadata};
pub use set::FieldSet;
pub(crate) use set::path_step;

/// The operation of creates, updates and patches.
pub(crate) const UPDATE: &str = "Update";
/// The operation of server-side apply.
pub(crate) const APPLY: &str = "Apply";

/// Entries of updates that are kept apart; older ones are merged into one.
const UPDATE_ENTRIES_MAX: usize = 10;
/// The manager of what was merged.
const ANCIENT: &str = "ancient-changes";

/// One manager's part of an object.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) manager: String,
    pub(crate) operation: String,
    pub(crate) api_version: String,
    /// Empty when the entry was made without a change of the object.
    pub(crate) time: String,
    pub(crate) subresource: String,
    pub(crate) fields: FieldSet,
}

/// The managers of an object.
pub(crate) fn entries(object: &Value) -> Vec<Entry> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries.into_iter().flatten().map(Entry::from_json).collect()
}

/// Managers as they are stored: those that own something, in Kubernetes' order.
pub(crate) fn to_json(mut entries: Vec<Entry>) -> Value {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| a.order().cmp(&b.order()));
    entries.iter().map(Entry::to_json).collect()
}

/// Whether two objects have the same managers that own the same, whenever they came to it.
pub fn same_owners(one: &Value, other: &Value) -> bool {
    let owners = |object: &Value| -> Vec<Value> {
        let timeless = entries(object).into_iter().map(|entry| Entry { time: String::new(), ..entry });
        match to_json(timeless.collect()) {
            Value::Array(all) => all,
            _ => Vec::new(),
        }
    };
    owners(one) == owners(other)
}

/// Brings `new.metadata.managedFields` up to date after an update (or create, with `old` = None) by `manager`.
///
/// What the client sent as managedFields is ignored: entries come from `old` and from the difference between `old` and `new`.
/// `subresource` is empty for the main resource. Call it on create before the server adds what the client did not ask for (status,
/// addresses), or the client would own that.
pub fn update(
    resource: &Resource,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    now: Timestamp,
    subresource: &str,
) {
    let before = old.and_then(|old| old.pointer("/metadata/managedFields"));
    let mut changes = changes(resource, old, new);
    if old.is_none() && resource.has_subresource("status") {
        // A create does not take a status from its client.
        changes.set.remove("f:status");
    }
    let entries = match changes.is_empty() {
        true => before.cloned(),
        false => {
            let mut entries: Vec<Entry> =
                before.and_then(Value::as_array).into_iter().flatten().map(Entry::from_json).collect();
            apply(&mut entries, changes, resource, manager, now, subresource);
            (!entries.is_empty()).then(|| entries.iter().map(Entry::to_json).collect())
        }
    };
    if let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        match entries {
            Some(entries) => metadata.insert("managedFields".to_owned(), entries),
            None => metadata.remove("managedFields"),
        };
    }
}

fn apply(
    entries: &mut Vec<Entry>,
    changes: Changes,
    resource: &Resource,
    manager: &str,
    now: Timestamp,
    subresource: &str,
) {
    let api_version = resource.api_version();
    let mut own = Entry {
        manager: manager.to_owned(),
        operation: UPDATE.to_owned(),
        api_version,
        time: rfc3339(now),
        subresource: subresource.to_owned(),
        fields: FieldSet::default(),
    };
    for mut entry in std::mem::take(entries) {
        entry.fields.subtract(&changes.removed);
        if entry.is_same_owner(&own) {
            own.fields = entry.fields;
            if changes.set.is_empty() {
                own.time = entry.time;
            }
            continue;
        }
        entry.fields.subtract(&changes.set);
        if !entry.fields.is_empty() {
            entries.push(entry);
        }
    }
    own.fields.union(&changes.set);
    if !own.fields.is_empty() {
        entries.push(own);
    }
    merge_oldest(entries);
    entries.sort_by(|a, b| a.order().cmp(&b.order()));
}

fn merge_oldest(entries: &mut Vec<Entry>) {
    let mut updates: Vec<usize> =
        (0..entries.len()).filter(|index| entries[*index].operation == UPDATE).collect();
    if updates.len() <= UPDATE_ENTRIES_MAX {
        return;
    }
    updates.sort_by(|a, b| entries[*a].time.cmp(&entries[*b].time));
    updates.truncate(updates.len() - UPDATE_ENTRIES_MAX + 1);
    updates.sort_unstable();
    let mut merged: Option<Entry> = None;
    for index in updates.into_iter().rev() {
        let entry = entries.remove(index);
        match &mut merged {
            Some(ancient) => {
                ancient.fields.union(&entry.fields);
                ancient.time = std::mem::take(&mut ancient.time).max(entry.time);
            }
            None => {
                merged = Some(Entry { manager: ANCIENT.to_owned(), subresource: String::new(), ..entry });
            }
        }
    }
    entries.extend(merged);
}

impl Entry {
    /// Whether both are of one manager. Who applies is the same at whatever version.
    pub(crate) fn is_same_owner(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && (self.api_version == other.api_version || self.operation == APPLY)
            && self.subresource == other.subresource
    }

    fn order(&self) -> (bool, &str, &str, &str, &str) {
        (self.operation != APPLY, &self.time, &self.manager, &self.api_version, &self.subresource)
    }

    fn from_json(entry: &Value) -> Self {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            manager: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            time: text("time"),
            subresource: text("subresource"),
            fields: FieldSet::from_json(entry.get("fieldsV1").unwrap_or(&Value::Null)),
        }
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        if !self.time.is_empty() {
            entry["time"] = json!(self.time);
        }
        if !self.subresource.is_empty() {
            entry["subresource"] = json!(self.subresource);
        }
        entry
    }
}

#[cfg(test)]
mod tests;
