//! Server-side apply: what a manager wants, merged into the object as it is, under the rules of ownership.
//!
//! An applied configuration is part of an object. What is in it becomes its manager's; what the manager owned before and left out this
//! time goes, unless somebody else owns it too; what it would change of another manager's is a conflict, which only `force` resolves, by
//! taking the field over. Pure: configuration and object give an object with its managedFields. Deliberately absent: the migration of
//! `kubectl.kubernetes.io/last-applied-configuration`, which kubectl does itself.

mod merge;
mod prune;
mod typed;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::managed::{self, Entry, FieldSet};
use crate::names::rfc3339;
use crate::resource::Resource;
use crate::status::{Cause, Status};

/// Who is said to own what an object without any managers has.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// A configuration that was found to fit its kind.
#[derive(Clone, Debug)]
pub struct Config {
    /// The fields that were given, in canonical form.
    value: Value,
    /// The fields that its manager will own.
    owns: FieldSet,
}

/// Who applies, and how.
#[derive(Clone, Copy, Debug)]
pub struct Applier<'a> {
    /// The manager's name.
    pub manager: &'a str,
    /// Whether conflicts are resolved by taking the fields over.
    pub force: bool,
    /// The subresource, empty for the main resource.
    pub subresource: &'a str,
    /// When.
    pub now: Timestamp,
}

impl Config {
    /// Reads a configuration for the object `name`.
    ///
    /// What the (sub)resource does not write is taken out: the status of the main resource, all but the status of `status`.
    pub fn read(
        resource: &Resource,
        name: &str,
        subresource: &str,
        mut value: Value,
    ) -> Result<Self, Status> {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let object_type = text_of_type(text("/apiVersion"), text("/kind"));
        if text("/apiVersion") != resource.api_version() || text("/kind") != resource.kind {
            return Err(Status::bad_request(format!("invalid object type: {object_type}")));
        }
        let own = text("/metadata/name");
        if !own.is_empty() && own != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({name})"
            )));
        }
        if value.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let about = format!("{}/{own}; {object_type}", text("/metadata/namespace"));
        let misfit =
            |why: &str| Status::bad_request(format!("failed to create typed patch object ({about}): {why}"));
        typed::check(resource, &value).map_err(|why| misfit(&why))?;
        let decoded =
            resource.strategy.decode(value.clone(), &mut |_| {}).map_err(|error| misfit(&error.message))?;
        if let Some(fields) = value.as_object_mut() {
            let status = resource.has_subresource("status");
            fields.retain(|field, _| match (subresource, field.as_str()) {
                (_, "apiVersion" | "kind" | "metadata") => true,
                ("status", field) => field == "status",
                (_, field) => field != "status" || !status,
            });
        }
        let value = typed::canonical(&value, &decoded);
        let owns = typed::owned(resource, &value);
        Ok(Self { value, owns })
    }

    /// The object as the configuration has it: part of one.
    pub fn value(&self) -> &Value {
        &self.value
    }
}

/// Applies a configuration to an object; without one it is what a new object is made from.
///
/// The result is neither defaulted nor validated. Its managedFields are those to store, an empty list for none.
pub fn apply(
    resource: &Resource,
    live: Option<&Value>,
    config: &Config,
    by: &Applier<'_>,
) -> Result<Value, Status> {
    let mut own = Entry {
        manager: by.manager.to_owned(),
        operation: managed::APPLY.to_owned(),
        api_version: resource.api_version(),
        time: rfc3339(by.now),
        subresource: by.subresource.to_owned(),
        fields: config.owns.clone(),
    };
    let Some(live) = live else {
        let mut object = config.value.clone();
        object["metadata"]["managedFields"] = managed::to_json(vec![own]);
        return Ok(object);
    };
    let mut others = managed::entries(live);
    if others.is_empty() {
        others.extend(before_first_apply(resource, live, by.now));
    }
    let last = others.iter().position(|entry| entry.is_same_owner(&own)).map(|index| others.remove(index));

    let mut object = merge::merge(resource, live, &config.value);
    if let Some(last) = &last {
        let mut owned = own.fields.clone();
        for other in &others {
            owned.union(&other.fields);
        }
        prune::prune(resource, &mut object, &last.fields, &owned);
    }

    let changes = managed::changes(resource, Some(live), &object);
    let conflicts: Vec<FieldSet> =
        others.iter().map(|other| other.fields.intersection(&changes.set)).collect();
    if !by.force && conflicts.iter().any(|conflict| !conflict.is_empty()) {
        return Err(refusal(&others, &conflicts));
    }
    for (other, conflict) in others.iter_mut().zip(&conflicts) {
        other.fields.subtract(conflict);
        other.fields.subtract(&changes.removed);
    }
    if changes.is_empty() {
        // The time is that of a change, and there was none.
        own.time = last.map(|last| last.time).unwrap_or_default();
    }
    others.push(own);
    object["metadata"]["managedFields"] = managed::to_json(others);
    Ok(object)
}

/// `apps/v1, Kind=Deployment`, with the slash even where there is no group.
fn text_of_type(api_version: &str, kind: &str) -> String {
    match api_version.contains('/') {
        true => format!("{api_version}, Kind={kind}"),
        false => format!("/{api_version}, Kind={kind}"),
    }
}

/// The owner of all that an object has whose managers were taken out.
fn before_first_apply(resource: &Resource, live: &Value, now: Timestamp) -> Option<Entry> {
    let fields = managed::changes(resource, None, live).set;
    (!fields.is_empty()).then(|| Entry {
        manager: BEFORE_FIRST_APPLY.to_owned(),
        operation: managed::UPDATE.to_owned(),
        api_version: resource.api_version(),
        time: rfc3339(now),
        subresource: String::new(),
        fields,
    })
}

/// The refusal that names each field and whose it is.
fn refusal(owners: &[Entry], conflicts: &[FieldSet]) -> Status {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for (owner, conflict) in owners.iter().zip(conflicts) {
        if !conflict.is_empty() {
            let mut text = json!(owner.manager).to_string();
            if !owner.subresource.is_empty() {
                text = format!("{text} with subresource {}", json!(owner.subresource));
            }
            if owner.operation == managed::UPDATE {
                text = format!("{text} using {}", owner.api_version);
            }
            all.push((text, conflict.paths()));
        }
    }
    all.sort();
    let causes: Vec<Cause> = all
        .iter()
        .flat_map(|(owner, paths)| paths.iter().map(move |path| (owner, path)))
        .map(|(owner, path)| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {owner}"),
            field: path.clone(),
        })
        .collect();
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => {
            let mut lines = Vec::new();
            for (owner, paths) in &all {
                lines.push(format!("conflicts with {owner}:"));
                lines.extend(paths.iter().map(|path| format!("- {path}")));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    let mut status = Status::new(409, "Conflict", message);
    status.details_mut().causes = causes;
    status
}

#[cfg(test)]
mod tests;
