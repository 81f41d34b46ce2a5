//! Requests about a whole collection: list, watch, create, delete.

use hyper::body::Incoming;
use hyper::{Method, Response};
use lichen_api::Status;

use crate::respond::{self, Body};
use crate::router::Call;
use crate::{body, delete, lists, options, watches};

/// Answers a request about a collection.
pub(crate) async fn answer(call: Call, body: Incoming) -> Result<Response<Body>, Status> {
    match call.method {
        Method::GET if call.watch => watches::answer(call, None).await,
        Method::GET => list(call).await,
        Method::POST if call.resource.namespaced == call.namespace.is_some() => create(call, body).await,
        Method::DELETE
            if call.resource.delete_collection && call.resource.namespaced == call.namespace.is_some() =>
        {
            delete::collection(call, body).await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

/// Answers a watch of one object by its path.
pub(crate) async fn watch_one(call: Call, name: &str) -> Result<Response<Body>, Status> {
    match call.method {
        Method::GET => watches::answer(call, Some(name.to_owned())).await,
        _ => Err(Status::method_not_allowed()),
    }
}

async fn list(call: Call) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let asked = options::list(&call.query, false)?;
    let mut list = call.app.registry.list(call.resource, call.namespace(), &asked.list).await?;
    list.items = list.items.into_iter().map(|record| call.app.shown(call.resource, record)).collect();
    lists::list(call.resource, list, format, call.app.registry.now())
}

async fn create(call: Call, incoming: Incoming) -> Result<Response<Body>, Status> {
    let format = call.format()?;
    let media = body::media_type(&call.headers);
    body::check_object_type(&media)?;
    let mut asked = options::write(&call.query, call.user_agent(), "CreateOptions")?;
    let bytes = body::read(incoming).await?;
    let parsed = body::object(&bytes, &media, call.resource)?;
    drop(bytes);
    asked.duplicate_fields = parsed.duplicates;
    let written = call
        .app
        .registry
        .create(&call.identity, call.resource, call.namespace(), parsed.value, &asked)
        .await?;
    let mut response = lists::one(201, call.resource, &written.record, format, call.app.registry.now())?;
    respond::warn(&mut response, &written.warnings);
    Ok(response)
}
