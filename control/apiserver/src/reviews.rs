//! Reviews: who asks, and what is allowed. The answers come from the very rules that every request is judged by.

use hyper::body::Incoming;
use hyper::{Method, Response};
use lichen_api::kinds::review;
use lichen_api::{FieldError, Resource, Status, names};
use lichen_registry::{FieldValidation, Identity, MASTERS_GROUP};
use serde_json::{Value, json};

use crate::auth::{self, AUTHENTICATED_GROUP};
use crate::path::{self, Path, Target};
use crate::respond::{self, Body};
use crate::router::Call;
use crate::{body, options};

/// Answers a review.
pub(crate) async fn answer(call: Call, named: bool, incoming: Incoming) -> Result<Response<Body>, Status> {
    let resource = call.resource;
    if call.method != Method::POST || named || resource.namespaced != call.namespace.is_some() {
        return Err(Status::method_not_allowed());
    }
    let encoding = call.format()?.encoding;
    let media = body::media_type(&call.headers);
    body::check_object_type(&media)?;
    let asked = options::write(&call.query, call.user_agent(), "CreateOptions")?;
    let bytes = body::read(incoming).await?;
    let parsed = body::object(&bytes, &media, resource)?;
    let (mut object, warnings) = decoded(resource, parsed, asked.field_validation)?;
    let status = match resource {
        one if std::ptr::eq(one, &review::SELF_SUBJECT) => {
            object["metadata"] = json!({"creationTimestamp": names::rfc3339(call.app.registry.now())});
            json!({"userInfo": {"username": call.identity.user, "groups": call.identity.groups}})
        }
        one if std::ptr::eq(one, &review::TOKEN) => token(&object)?,
        one if std::ptr::eq(one, &review::SELF_SUBJECT_RULES) => rules(&call.identity),
        _ => access(&call, &object)?,
    };
    object["status"] = status;
    let mut response = respond::value(201, &object, encoding);
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// The review as its kind has it. Fields that the kind does not have are refused or told, as was asked for.
fn decoded(
    resource: &Resource,
    parsed: crate::parse::Parsed,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    let mut object = parsed.value;
    for (field, own) in [("apiVersion", resource.api_version()), ("kind", resource.kind.to_owned())] {
        let given = object[field].as_str().unwrap_or_default();
        if given.is_empty() {
            object[field] = json!(own);
        } else if given != own {
            return Err(Status::bad_request(format!("{field} {given:?} is not the {own:?} of the path")));
        }
    }
    let mut complaints: Vec<String> =
        parsed.duplicates.iter().map(|path| format!("duplicate field \"{path}\"")).collect();
    let cannot = |why: &str| {
        let kind = resource.kind;
        Status::bad_request(format!("{kind} in version \"v1\" cannot be handled as a {kind}: {why}"))
    };
    let object = resource
        .strategy
        .decode(object, &mut |path| complaints.push(format!("unknown field \"{path}\"")))
        .map_err(|error| cannot(&error.message))?;
    match validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            Err(cannot(&format!("strict decoding error: {}", complaints.join(", "))))
        }
        FieldValidation::Warn => Ok((object, complaints)),
        _ => Ok((object, Vec::new())),
    }
}

/// This server knows no tokens: clients authenticate with certificates.
fn token(object: &Value) -> Result<Value, Status> {
    match object.pointer("/spec/token").and_then(Value::as_str) {
        None | Some("") => Err(Status::bad_request("token is required for TokenReview in authentication")),
        Some(_) => Ok(json!({"user": {}, "error": "invalid bearer token"})),
    }
}

/// Whether somebody may do something: the asker, or whoever the review names.
fn access(call: &Call, object: &Value) -> Result<Value, Status> {
    let spec = &object["spec"];
    let own = std::ptr::eq(call.resource, &review::SELF_SUBJECT_ACCESS);
    let errors = invalid(call, object, own);
    if !errors.is_empty() {
        return Err(Status::invalid(call.resource, "", errors));
    }
    let other;
    let identity = if own {
        &call.identity
    } else {
        let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
        other = Identity::new(text(spec, "user"), groups);
        &other
    };
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let allowed = if resource.is_object() {
        let some = |name: &str| Some(text(resource, name).to_owned()).filter(|text| !text.is_empty());
        let target = Target {
            group: text(resource, "group").to_owned(),
            version: text(resource, "version").to_owned(),
            plural: text(resource, "resource").to_owned(),
            namespace: some("namespace"),
            name: some("name"),
            sub: some("subresource"),
            watch: false,
        };
        auth::authorize(identity, &Path::Resource(target), text(resource, "verb"), "").is_ok()
    } else {
        let raw = text(path, "path");
        let parsed = path::parse(raw).unwrap_or(Path::Other);
        auth::authorize(identity, &parsed, text(path, "verb"), raw).is_ok()
    };
    Ok(json!({"allowed": allowed}))
}

fn invalid(call: &Call, object: &Value, own: bool) -> Vec<FieldError> {
    let spec = &object["spec"];
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Vec::new();
    match (resource.is_object(), path.is_object()) {
        (true, true) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            path.clone(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let nobody = text(spec, "user").is_empty() && spec["groups"].as_array().is_none_or(Vec::is_empty);
    if !own && nobody {
        let why = "at least one of user or group must be specified";
        errors.push(FieldError::invalid("spec.user", "", why));
    }
    if let Some(namespace) = call.namespace() {
        if path.is_object() {
            let why = "disallowed on this kind of request";
            errors.push(FieldError::invalid("spec.nonResourceAttributes", path.clone(), why));
        }
        let asked = text(resource, "namespace");
        if resource.is_object() && asked != namespace {
            let why = "must match metadata.namespace";
            errors.push(FieldError::invalid("spec.resourceAttributes.namespace", asked, why));
        }
    }
    errors
}

/// What an identity may do, as [`auth::authorize`] judges.
fn rules(identity: &Identity) -> Value {
    let resource = |verbs: &[&str], groups: &[&str], resources: &[&str]| json!({"verbs": verbs, "apiGroups": groups, "resources": resources});
    let urls = |verbs: &[&str], urls: &[&str]| json!({"verbs": verbs, "nonResourceURLs": urls});
    let (mut resources, mut paths) = (Vec::new(), vec![urls(&["get"], auth::OPEN_URLS)]);
    if identity.groups.iter().any(|group| group == AUTHENTICATED_GROUP || group == MASTERS_GROUP) {
        for own in auth::OWN_REVIEWS {
            resources.push(resource(&["create"], &[own.group], &[own.plural]));
        }
    }
    if identity.is_master() {
        resources.push(resource(&["*"], &["*"], &["*"]));
        paths.push(urls(&["*"], &["*"]));
    }
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}
