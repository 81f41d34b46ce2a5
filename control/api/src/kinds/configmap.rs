//! ConfigMap: configuration as texts and bytes.

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::resource::Resource;
use crate::strategy::{Hooks, Typed};
use crate::{table, validation};

/// The most that the data of one ConfigMap or Secret may weigh.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;

/// The table entry of ConfigMap.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &[],
    columns: &[table::NAME, table::column("Data", "How many keys the object has."), table::AGE],
    row: |object, now| {
        let keys = table::entries(object, "/data") + table::entries(object, "/binaryData");
        vec![table::name(object), json!(keys), table::age(object, now)]
    },
    fields: &[],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

static STRATEGY: Typed<ConfigMap> = Typed::new(Hooks {
    validate,
    validate_update: |new, old, errors| immutable(new, old, &["data", "binaryData"], errors),
    ..Hooks::NONE
});

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    let (data, binary) = (object.field("data"), object.field("binaryData"));
    let mut bytes = 0;
    for (key, value) in data.entries() {
        bytes += value.text().len();
        key_rules(key, &value, errors);
        if binary.value.get(key).is_some() {
            value_duplicates(key, &value, errors);
        }
    }
    for (key, value) in binary.entries() {
        bytes += decoded_bytes(value.value);
        key_rules(key, &value, errors);
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError::too_long("[]", DATA_BYTES_MAX));
    }
}

fn value_duplicates(key: &str, value: &At<'_>, errors: &mut Vec<FieldError>) {
    errors.push(FieldError::invalid(
        &value.path,
        key,
        format!("duplicate of key present in binaryData: {key}"),
    ));
}

/// A key becomes a file's name.
pub(super) fn key_rules(key: &str, value: &At<'_>, errors: &mut Vec<FieldError>) {
    for reason in validation::config_key(key).err().into_iter().flatten() {
        errors.push(FieldError::invalid(&value.path, key, reason));
    }
}

/// How many bytes a text in base64 stands for.
pub(super) fn decoded_bytes(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default().trim_end_matches('=');
    text.len() * 3 / 4
}

/// Once `immutable` is set, it and the data stay as they are.
pub(super) fn immutable(new: &At<'_>, old: &At<'_>, data: &[&str], errors: &mut Vec<FieldError>) {
    const WHY: &str = "field is immutable when `immutable` is set";
    if !old.field("immutable").is_true() {
        return;
    }
    if !new.field("immutable").is_true() {
        errors.push(FieldError::forbidden("immutable", WHY));
    }
    for field in data {
        if new.field(field).value != old.field(field).value {
            errors.push(FieldError::forbidden(*field, WHY));
        }
    }
}
