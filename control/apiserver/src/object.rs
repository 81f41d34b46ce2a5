//! Requests about one object and its subresources.

use hyper::body::Incoming;
use hyper::{Method, Response};
use lichen_api::k8s::api::autoscaling::v1::Scale;
use lichen_api::k8s::api::policy::v1::Eviction;
use lichen_api::{Resource, Status, k8s};
use lichen_registry::{Binding, Configuration, Patch, Written};
use lichen_store::Revision;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::respond::{self, Body};
use crate::router::Call;
use crate::{body, delete, lists, logs, options};

/// Media types of patches that are supported.
const PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

/// The media type of a server-side apply.
const APPLY_TYPE: &str = "application/apply-patch+yaml";

/// Answers a request about an object.
pub(crate) async fn answer(call: Call, name: &str, body: Incoming) -> Result<Response<Body>, Status> {
    match call.method {
        Method::GET => get(call, name).await,
        Method::PUT => update(call, name, None, body).await,
        Method::PATCH => patch(call, name, None, body).await,
        Method::DELETE => delete::one(call, name, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Answers a request about a subresource.
pub(crate) async fn subresource(
    call: Call,
    name: &str,
    sub: &str,
    body: Incoming,
) -> Result<Response<Body>, Status> {
    if !call.resource.has_subresource(sub) {
        return Err(absent(call.resource, sub));
    }
    match (sub, &call.method) {
        ("status", &Method::GET) => get(call, name).await,
        ("status", &Method::PUT) => update(call, name, Some("status"), body).await,
        ("status", &Method::PATCH) => patch(call, name, Some("status"), body).await,
        ("finalize", &Method::PUT) => update(call, name, Some("finalize"), body).await,
        ("scale", &Method::GET | &Method::PUT | &Method::PATCH) => scale(call, name, body).await,
        ("log", &Method::GET) => logs::answer(call, name).await,
        ("binding", &Method::POST) => bind(call, name, body).await,
        ("eviction", &Method::POST) => evict(call, name, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// The refusal of a subresource that is not served. Of one that Kubernetes has it says why.
fn absent(resource: &Resource, sub: &str) -> Status {
    let mut status = Status::unknown_path();
    let why = match (resource.kind, sub) {
        ("Pod", "attach" | "exec" | "portforward" | "proxy") => "nodes open no streams into containers yet",
        ("Pod", "ephemeralcontainers") => "containers cannot be added to a pod that runs",
        ("ServiceAccount", "token") => "no tokens are issued yet; clients authenticate with certificates",
        _ => return status,
    };
    status.message = format!("{}/{sub} is not served: {why}", resource.plural);
    status
}

async fn get(call: Call, name: &str) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let registry = &call.app.registry;
    let record = match options::revision(&call.query)? {
        None => registry.get(call.resource, call.namespace(), name).await?,
        Some(asked) => {
            registry.reach(Revision(asked)).await?;
            registry.get_local(call.resource, call.namespace(), name)?
        }
    };
    let record = call.app.shown(call.resource, record);
    lists::one(200, call.resource, &record, format, registry.now())
}

fn written(call: &Call, written: &Written) -> Result<Response<Body>, Status> {
    let code = if written.created { 201 } else { 200 };
    let record = call.app.shown(call.resource, written.record.clone());
    let mut response = lists::one(code, call.resource, &record, call.format()?, call.app.registry.now())?;
    respond::warn(&mut response, &written.warnings);
    Ok(response)
}

async fn update(
    call: Call,
    name: &str,
    sub: Option<&str>,
    incoming: Incoming,
) -> Result<Response<Body>, Status> {
    call.format()?;
    let media = body::media_type(&call.headers);
    body::check_object_type(&media)?;
    let mut asked = options::write(&call.query, call.user_agent(), "UpdateOptions")?;
    let bytes = body::read(incoming).await?;
    let parsed = body::object(&bytes, &media, call.resource)?;
    drop(bytes);
    asked.duplicate_fields = parsed.duplicates;
    let done = call
        .app
        .registry
        .update(&call.identity, call.resource, call.namespace(), name, parsed.value, sub, &asked)
        .await?;
    written(&call, &done)
}

async fn patch(
    call: Call,
    name: &str,
    sub: Option<&str>,
    incoming: Incoming,
) -> Result<Response<Body>, Status> {
    call.format()?;
    if body::media_type(&call.headers) == APPLY_TYPE {
        return apply(call, name, sub, incoming).await;
    }
    let (patch, asked) = read_patch(&call, incoming).await?;
    let done = call
        .app
        .registry
        .patch(&call.identity, call.resource, call.namespace(), name, &patch, sub, &asked)
        .await?;
    written(&call, &done)
}

async fn apply(
    call: Call,
    name: &str,
    sub: Option<&str>,
    incoming: Incoming,
) -> Result<Response<Body>, Status> {
    let (mut asked, force) = options::apply(&call.query)?;
    let bytes = body::read(incoming).await?;
    let parsed = body::configuration(&bytes)
        .map_err(|why| Status::bad_request(format!("error decoding YAML: {why}")))?;
    drop(bytes);
    asked.duplicate_fields = parsed.duplicates;
    let configuration = Configuration { value: parsed.value, force };
    let done = call
        .app
        .registry
        .apply(&call.identity, call.resource, call.namespace(), name, &configuration, sub, &asked)
        .await?;
    written(&call, &done)
}

async fn read_patch(
    call: &Call,
    incoming: Incoming,
) -> Result<(Patch, lichen_registry::WriteOptions), Status> {
    let media = body::media_type(&call.headers);
    match media.as_str() {
        media if PATCH_TYPES.contains(&media) => {}
        APPLY_TYPE => {
            let why = "this subresource cannot be applied to; patch it, or apply to the object itself";
            return Err(Status::new(415, "UnsupportedMediaType", why));
        }
        _ => {
            let mut status = Status::new(415, "UnsupportedMediaType", "415: Unsupported Media Type");
            status.details_mut();
            return Err(status);
        }
    }
    let mut asked = options::write(&call.query, call.user_agent(), "PatchOptions")?;
    let bytes = body::read(incoming).await?;
    let parsed =
        body::parse(&bytes, "").map_err(|why| Status::bad_request(format!("error decoding patch: {why}")))?;
    asked.duplicate_fields = parsed.duplicates;
    let value = parsed.value;
    let wrong = |expected: &str| {
        Err(Status::bad_request(format!("error decoding patch: json: it must be {expected}")))
    };
    let patch = match media.as_str() {
        "application/json-patch+json" if value.is_array() => Patch::Json(value),
        "application/json-patch+json" => return wrong("an array of operations"),
        _ if !value.is_object() => return wrong("an object"),
        "application/merge-patch+json" => Patch::Merge(value),
        _ => Patch::Strategic(value),
    };
    Ok((patch, asked))
}

async fn scale(call: Call, name: &str, incoming: Incoming) -> Result<Response<Body>, Status> {
    let registry = &call.app.registry;
    let (resource, namespace) = (call.resource, call.namespace());
    let scale = match call.method {
        Method::GET => registry.scale(resource, namespace, name).await?,
        Method::PUT => {
            let media = body::media_type(&call.headers);
            body::check_object_type(&media)?;
            let asked = options::write(&call.query, call.user_agent(), "UpdateOptions")?;
            let bytes = body::read(incoming).await?;
            let mut object = body::object(&bytes, &media, resource)?.value;
            check_shape::<Scale>(&mut object, "Scale", "autoscaling/v1")?;
            registry.update_scale(&call.identity, resource, namespace, name, &object, &asked).await?
        }
        _ => {
            let (patch, asked) = read_patch(&call, incoming).await?;
            registry.patch_scale(&call.identity, resource, namespace, name, &patch, &asked).await?
        }
    };
    Ok(respond::value(200, &scale, call.format()?.encoding))
}

/// Refuses an object that is not of the kind that the subresource takes, and of its shape: what this server does not
/// read as it was meant must not pass for absent.
fn check_shape<T: DeserializeOwned>(object: &mut Value, kind: &str, version: &str) -> Result<(), Status> {
    let Some(fields) = object.as_object_mut() else {
        return Err(Status::bad_request(format!("it is no {kind}")));
    };
    let mut expect = |field: &str, expected: &str| {
        let given = fields.entry(field).or_insert_with(|| Value::from(expected));
        match given.as_str() {
            Some(given) if given == expected => Ok(()),
            _ => {
                Err(Status::bad_request(format!("{field} {given} cannot be handled as {kind} of {version}")))
            }
        }
    };
    expect("kind", kind)?;
    expect("apiVersion", version)?;
    T::deserialize(&*object).map(drop).map_err(|error| {
        Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {error}"))
    })
}

/// Reads the object that is posted to a pod's subresource.
async fn posted<T: DeserializeOwned>(
    call: &Call,
    incoming: Incoming,
    kind: &str,
    version: &str,
) -> Result<Value, Status> {
    let media = body::media_type(&call.headers);
    body::check_object_type(&media)?;
    let bytes = body::read(incoming).await?;
    let mut object = body::object(&bytes, &media, call.resource)?.value;
    check_shape::<T>(&mut object, kind, version)?;
    Ok(object)
}

async fn bind(call: Call, name: &str, incoming: Incoming) -> Result<Response<Body>, Status> {
    let asked = options::write(&call.query, call.user_agent(), "CreateOptions")?;
    let object = posted::<k8s::api::core::v1::Binding>(&call, incoming, "Binding", "v1").await?;
    let metadata = &object["metadata"];
    if metadata["name"].as_str().is_some_and(|own| !own.is_empty() && own != name) {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let text = |field: &str| metadata[field].as_str().filter(|text| !text.is_empty());
    let revision = match text("resourceVersion").map(str::parse) {
        None => None,
        Some(Ok(revision)) => Some(Revision(revision)),
        Some(Err(_)) => return Err(Status::bad_request("metadata.resourceVersion: must be a number")),
    };
    let binding = Binding {
        node: object["target"]["name"].as_str().unwrap_or_default().to_owned(),
        uid: text("uid").map(str::to_owned),
        revision,
        annotations: metadata["annotations"].as_object().cloned().unwrap_or_else(Map::new),
    };
    let namespace = call.namespace().unwrap_or_default();
    call.app.registry.bind(&call.identity, namespace, name, &binding, &asked).await?;
    Ok(respond::success(201))
}

async fn evict(call: Call, name: &str, incoming: Incoming) -> Result<Response<Body>, Status> {
    let object = posted::<Eviction>(&call, incoming, "Eviction", "policy/v1").await?;
    if object["metadata"]["name"].as_str().is_some_and(|own| !own.is_empty() && own != name) {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let deletion = object.get("deleteOptions").filter(|options| options.is_object());
    let mut asked = options::delete(&call.query, deletion)?;
    asked.dry_run |= call.query.all("dryRun").iter().any(|value| value == "All");
    let namespace = call.namespace().unwrap_or_default();
    call.app.registry.evict(&call.identity, namespace, name, &asked).await?;
    Ok(respond::success(201))
}
