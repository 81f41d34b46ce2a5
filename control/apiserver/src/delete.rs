//! Deletions.

use hyper::Response;
use hyper::body::Incoming;
use lichen_api::{Resource, Status};
use lichen_registry::DeleteOptions;

use crate::respond::{self, Body};
use crate::router::Call;
use crate::{body, lists, options};

async fn read_options(call: &Call, incoming: Incoming) -> Result<DeleteOptions, Status> {
    let media = body::media_type(&call.headers);
    body::check_object_type(&media)?;
    let bytes = body::read(incoming).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return options::delete(&call.query, None);
    }
    let parsed = body::parse(&bytes, &media)
        .map_err(|why| Status::bad_request(format!("couldn't get version/kind; {why}")))?;
    if !parsed.value.is_object() {
        return Err(Status::bad_request("couldn't get version/kind; DeleteOptions must be an object"));
    }
    options::delete(&call.query, Some(&parsed.value))
}

/// Whether a deletion answers with the object even when it is gone, as Kubernetes does for these.
fn returns_object(resource: &Resource) -> bool {
    resource.group.is_empty() && matches!(resource.kind, "Pod" | "Service" | "ServiceAccount")
}

/// Deletes an object.
pub(crate) async fn one(call: Call, name: &str, incoming: Incoming) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let asked = read_options(&call, incoming).await?;
    let registry = &call.app.registry;
    let deleted = registry.delete(&call.identity, call.resource, call.namespace(), name, &asked).await?;
    if deleted.gone && !returns_object(call.resource) {
        let status = Status::deleted(call.resource, name, deleted.record.uid());
        return Ok(respond::value(200, &status, format.encoding));
    }
    lists::one(200, call.resource, &deleted.record, format, registry.now())
}

/// Deletes every object that the selectors select.
pub(crate) async fn collection(call: Call, incoming: Incoming) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let filter = options::filter(&call.query)?;
    let asked = read_options(&call, incoming).await?;
    let registry = &call.app.registry;
    let list =
        registry.delete_collection(&call.identity, call.resource, call.namespace(), &filter, &asked).await?;
    lists::list(call.resource, list, format, registry.now())
}
