//! Rules on `metadata`, the same for every kind.

use serde_json::Value;

use crate::check::At;
use crate::field::FieldError;
use crate::strategy::copy;
use crate::validation::{self, Rule};

/// All annotations of an object together, keys and values.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Carries over what no update may change. A uid that the client left out is filled in; another one is for validation to refuse.
pub fn carry_over(new: &mut Value, old: &Value) {
    let Some(old) = old.get("metadata") else { return };
    let Some(new) = new.get_mut("metadata") else { return };
    for key in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        copy(new, old, key);
    }
    if new.get("uid").is_none() {
        copy(new, old, "uid");
    }
}

/// Rules on one object's metadata.
pub fn validate(metadata: &At<'_>, name_rule: fn(&str) -> Rule, errors: &mut Vec<FieldError>) {
    let generate_name = metadata.field("generateName");
    if !generate_name.is_empty() {
        // The random part follows, so that a prefix may end with a dash.
        if let Err(reasons) = name_rule(&mask_trailing_dash(generate_name.text())) {
            for reason in reasons.into_iter().filter(|reason| !reason.starts_with("must be no more than")) {
                generate_name.invalid(reason, errors);
            }
        }
    }
    let name = metadata.field("name");
    if name.is_empty() {
        errors.push(FieldError::required(&name.path, "name or generateName is required"));
    } else {
        name.obeys(name_rule, errors);
    }
    let namespace = metadata.field("namespace");
    if !namespace.is_empty() {
        namespace.obeys(validation::dns_label, errors);
    }
    metadata.field("generation").not_negative(errors);
    labels(&metadata.field("labels"), errors);
    annotations(&metadata.field("annotations"), errors);
    owner_references(&metadata.field("ownerReferences"), errors);
    for finalizer in metadata.field("finalizers").items() {
        finalizer.obeys(validation::qualified_name, errors);
    }
}

fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) => format!("{rest}a"),
        None => prefix.to_owned(),
    }
}

/// Rules on a change of metadata.
pub fn validate_update(new: &At<'_>, old: &At<'_>, errors: &mut Vec<FieldError>) {
    for key in ["name", "namespace", "uid"] {
        let (new, old) = (new.field(key), old.field(key));
        if !old.is_absent() {
            new.immutable(&old, errors);
        }
    }
    if !old.field("deletionTimestamp").is_absent() {
        let known: Vec<&str> = old.field("finalizers").items().map(|item| item.text()).collect();
        let finalizers = new.field("finalizers");
        let added: Vec<String> = finalizers
            .items()
            .filter(|item| !known.contains(&item.text()))
            .map(|item| format!("{:?}", item.text()))
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                &finalizers.path,
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            ));
        }
    }
}

/// Rules on a map of labels. Errors name the map, as Kubernetes has it.
pub fn labels(labels: &At<'_>, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.entries() {
        let mut report = |shown: &str, rule: Rule| {
            for reason in rule.err().into_iter().flatten() {
                errors.push(FieldError::invalid(&labels.path, shown, reason));
            }
        };
        report(key, validation::qualified_name(key));
        report(value.text(), validation::label_value(value.text()));
    }
}

/// Rules on a map of annotations.
pub fn annotations(annotations: &At<'_>, errors: &mut Vec<FieldError>) {
    let mut bytes = 0;
    for (key, value) in annotations.entries() {
        bytes += key.len() + value.text().len();
        for reason in validation::qualified_name(&key.to_lowercase()).err().into_iter().flatten() {
            errors.push(FieldError::invalid(&annotations.path, key, reason));
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(&annotations.path, ANNOTATIONS_BYTES_MAX));
    }
}

fn owner_references(references: &At<'_>, errors: &mut Vec<FieldError>) {
    let mut controllers = 0;
    for reference in references.items() {
        for key in ["apiVersion", "kind", "name", "uid"] {
            let field = reference.field(key);
            if field.is_empty() {
                field.invalid("must not be empty", errors);
            }
        }
        controllers += usize::from(reference.field("controller").is_true());
    }
    if controllers > 1 {
        references.invalid("Only one reference can have Controller set to true.", errors);
    }
}
