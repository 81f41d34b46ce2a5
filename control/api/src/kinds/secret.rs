//! Secret: a ConfigMap for what nobody else may see. Its values never go into a message.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::check::At;
use crate::field::FieldError;
use crate::kinds::configmap::{DATA_BYTES_MAX, decoded_bytes, immutable, key_rules};
use crate::resource::{FieldSelector, Resource};
use crate::strategy::{Hooks, Typed, set};
use crate::table;

/// The table entry of Secret.
pub static RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    delete_collection: true,
    create_on_update: false,
    update_needs_version: false,
    subresources: &[],
    columns: &[
        table::NAME,
        table::column("Type", "What the keys mean."),
        table::column("Data", "How many keys the object has."),
        table::AGE,
    ],
    row: |object, now| {
        let keys = table::entries(object, "/data");
        vec![table::name(object), json!(table::text(object, "/type")), json!(keys), table::age(object, now)]
    },
    fields: &[FieldSelector { name: "type", get: |object| table::text(object, "/type").to_owned() }],
    strategy: &STRATEGY,
    stored_as: None,
    deprecation: None,
};

/// The type of a Secret that is a token with which nodes join.
pub const BOOTSTRAP_TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The namespace in which bootstrap tokens count.
pub const BOOTSTRAP_TOKEN_NAMESPACE: &str = "kube-system";

/// When a bootstrap token ends: none if it never does or the Secret is none, the beginning of time if its end cannot be
/// read.
pub fn token_expiry(secret: &Secret) -> Option<Timestamp> {
    if secret.type_.as_deref() != Some(BOOTSTRAP_TOKEN_TYPE) {
        return None;
    }
    let text = &secret.data.as_ref()?.get("expiration")?.0;
    Some(str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::MIN))
}

static STRATEGY: Typed<Secret> = Typed::new(Hooks { default, validate, validate_update, ..Hooks::NONE });

/// The keys that a type demands.
const REQUIRED: [(&str, &[&str]); 5] = [
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/basic-auth", &[]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

fn default(object: &mut Value) {
    set(object, "type", "Opaque");
    let Some(fields) = object.as_object_mut() else { return };
    if let Some(Value::Object(texts)) = fields.remove("stringData") {
        set(object, "data", json!({}));
        for (key, text) in texts {
            object["data"][key] = json!(STANDARD.encode(text.as_str().unwrap_or_default()));
        }
    }
}

fn validate(object: &At<'_>, errors: &mut Vec<FieldError>) {
    let data = object.field("data");
    let mut bytes = 0;
    for (key, value) in data.entries() {
        bytes += decoded_bytes(value.value);
        key_rules(key, &value, errors);
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError::too_long("data", DATA_BYTES_MAX));
    }
    let kind = object.field("type");
    for key in REQUIRED.iter().find(|(known, _)| *known == kind.text()).map_or(&[][..], |(_, keys)| keys) {
        match data.value.get(key) {
            None => errors.push(FieldError::required(format!("data[{key}]"), "")),
            Some(value) if key.starts_with(".docker") && !is_json(value) => errors.push(FieldError::invalid(
                format!("data[{key}]"),
                "<secret contents redacted>",
                "invalid JSON",
            )),
            Some(_) => {}
        }
    }
    let has = |key: &str| data.value.get(key).is_some();
    if kind.text() == "kubernetes.io/basic-auth" && !has("username") && !has("password") {
        errors.push(FieldError::required("data[username]", ""));
        errors.push(FieldError::required("data[password]", ""));
    }
}

fn is_json(value: &Value) -> bool {
    let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok()
}

fn validate_update(new: &At<'_>, old: &At<'_>, errors: &mut Vec<FieldError>) {
    new.field("type").immutable(&old.field("type"), errors);
    immutable(new, old, &["data"], errors);
}
