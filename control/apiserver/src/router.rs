//! From a request to the handler that answers it.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderMap, USER_AGENT};
use hyper::{Method, Request, Response};
use lichen_api::{RESOURCES, Resource, Status, by_plural, review_by_plural};
use lichen_registry::{Identity, NodePresence, NodeStreams, Registry};
use lichen_store::Record;
use tokio::sync::{Semaphore, watch};

use crate::forward::{self, Forward};
use crate::negotiate::{self, Encoding, Format};
use crate::path::{self, Path, Target};
use crate::query::Query;
use crate::respond::{self, Body};
use crate::{auth, collection, discovery, health, object, reviews};

/// Requests that are worked on at once, watches and logs aside. The rest is told to come back.
const IN_FLIGHT_MAX: usize = 512;
/// Seconds after which who was sent away may come back.
const BUSY_RETRY_SECONDS: u32 = 1;

/// Something else that is served on the API's port, to those who may use the API.
pub trait Mount: Send + Sync + 'static {
    /// Whether everybody may ask, and the mount itself finds out who it is.
    fn is_open(&self) -> bool {
        false
    }

    /// Answers a request whose path is under the mount's prefix. The identity is of `system:masters`, unless the mount is
    /// open.
    fn handle(&self, identity: Identity, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>>;
}

impl<F, A> Mount for F
where
    F: Fn(Identity, Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    fn handle(&self, identity: Identity, request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(self(identity, request))
    }
}

/// Everything that handlers share.
pub(crate) struct App {
    pub(crate) registry: Registry,
    pub(crate) streams: Option<Arc<dyn NodeStreams>>,
    pub(crate) presence: Option<Arc<dyn NodePresence>>,
    pub(crate) forward: Option<Arc<dyn Forward>>,
    pub(crate) mounts: Vec<(String, Arc<dyn Mount>)>,
    pub(crate) documents: crate::documents::Documents,
    pub(crate) in_flight: Arc<Semaphore>,
    /// Turns true when the server drains: whatever has no end of its own then ends.
    pub(crate) draining: watch::Receiver<bool>,
}

impl App {
    pub(crate) fn permits() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(IN_FLIGHT_MAX))
    }

    /// A record as clients see it: with what is known of nodes and not written.
    pub(crate) fn shown(&self, resource: &Resource, record: Record) -> Record {
        match &self.presence {
            Some(presence) => self.registry.present(resource, record, &**presence),
            None => record,
        }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// One request about a resource that exists.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) identity: Identity,
    pub(crate) resource: &'static Resource,
    pub(crate) namespace: Option<String>,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) query: Query,
    pub(crate) watch: bool,
}

impl Call {
    /// The namespace of the path, as the registry takes it.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The form in which objects are to be sent.
    pub(crate) fn format(&self) -> Result<Format, Status> {
        let mut format = negotiate::objects(text(&self.headers, &ACCEPT))?;
        if self.query.get("pretty").is_some()
            && self.query.flag("pretty")
            && format.encoding == Encoding::Json
        {
            format.encoding = Encoding::Pretty;
        }
        format.include = match self.query.get("includeObject") {
            Some("None") => lichen_api::table::IncludeObject::None,
            Some("Object") => lichen_api::table::IncludeObject::Object,
            _ => lichen_api::table::IncludeObject::Metadata,
        };
        Ok(format)
    }

    /// The program that the client says it is.
    pub(crate) fn user_agent(&self) -> Option<&str> {
        text(&self.headers, &USER_AGENT)
    }
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &hyper::header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Answers a request, or lets the member that leads answer it, if it `may` be passed on.
pub(crate) async fn answer(
    app: Arc<App>,
    identity: Identity,
    request: Request<Incoming>,
    may_forward: bool,
) -> Response<Body> {
    match route(app, identity, request, may_forward).await {
        Ok(response) => response,
        Err(status) => respond::status(&status),
    }
}

async fn route(
    app: Arc<App>,
    identity: Identity,
    request: Request<Incoming>,
    may_forward: bool,
) -> Result<Response<Body>, Status> {
    auth::check_headers(request.headers())?;
    let raw_path = request.uri().path().to_owned();
    let path =
        path::parse(&raw_path).ok_or_else(|| Status::bad_request("the path is not percent-encoded text"))?;
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let verb = verb(request.method(), &path, &query);
    let mount = app.mounts.iter().find(|(prefix, _)| under(&raw_path, prefix)).map(|(_, mount)| mount);
    if !mount.is_some_and(|mount| mount.is_open()) {
        auth::authorize(&identity, &path, verb, &raw_path)?;
    }
    if let Some(mount) = mount {
        return Ok(mount.handle(identity, request).await);
    }
    match path {
        Path::Resource(target) => {
            let endless = verb == "watch" || target.sub.as_deref() == Some("log");
            let permit = match endless {
                true => None,
                false => Some(app.in_flight.clone().try_acquire_owned().map_err(|_| {
                    Status::too_many_requests(
                        "Too many requests, please try again later.",
                        BUSY_RETRY_SECONDS,
                    )
                })?),
            };
            let forward = app.forward.as_ref().filter(|_| may_forward);
            if let Some(forward) = forward
                && let Some(passed) = forward::to_leader(&identity, &target, verb, &query, &request)
                && let Some(reply) = forward.forward(passed?).await
            {
                return Ok(respond::until(reply?, app.draining.clone()));
            }
            let (parts, body) = request.into_parts();
            let response = resource(app, identity, target, query, parts, body).await;
            drop(permit);
            response
        }
        Path::Health => health::answer(&app, &identity, &request).await,
        other => discovery::answer(&app, &other, &request),
    }
}

fn under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The verb of a request, as authorisation names it.
fn verb(method: &Method, path: &Path, query: &Query) -> &'static str {
    let Path::Resource(target) = path else {
        return match *method {
            Method::GET => "get",
            Method::POST => "post",
            Method::PUT => "put",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            Method::HEAD => "head",
            _ => "options",
        };
    };
    let named = target.name.is_some();
    match *method {
        Method::GET | Method::HEAD if named && !target.watch => "get",
        Method::GET if target.watch || query.flag("watch") => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "options",
    }
}

async fn resource(
    app: Arc<App>,
    identity: Identity,
    target: Target,
    query: Query,
    parts: hyper::http::request::Parts,
    body: Incoming,
) -> Result<Response<Body>, Status> {
    let (group, version, plural) = (&target.group, &target.version, &target.plural);
    let review = review_by_plural(group, version, plural);
    let Some(resource) = by_plural(group, version, plural).or(review) else {
        return match RESOURCES.iter().any(|known| known.group == target.group) {
            true => Err(Status::unknown_path()),
            false => Ok(respond::page_not_found()),
        };
    };
    let misplaced = matches!(
        (resource.namespaced, &target.namespace, &target.name),
        (false, Some(_), _) | (true, None, Some(_))
    );
    if misplaced {
        return Err(Status::unknown_path());
    }
    let call = Call {
        app,
        identity,
        resource,
        namespace: target.namespace,
        method: parts.method,
        headers: parts.headers,
        watch: target.watch || query.flag("watch"),
        query,
    };
    let answer = match (target.name, target.sub) {
        (name, _) if review.is_some() => reviews::answer(call, name.is_some(), body).await,
        (Some(name), Some(sub)) => object::subresource(call, &name, &sub, body).await,
        (Some(name), None) if target.watch => collection::watch_one(call, &name).await,
        (Some(name), None) => object::answer(call, &name, body).await,
        (None, _) => collection::answer(call, body).await,
    };
    let mut response = answer.unwrap_or_else(|status| respond::status(&status));
    respond::warn(&mut response, resource.deprecation.as_slice());
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs() {
        let cases = [
            (Method::GET, "/api/v1/pods", "", "list"),
            (Method::GET, "/api/v1/pods", "watch=1", "watch"),
            (Method::GET, "/api/v1/namespaces/a/pods/p", "", "get"),
            (Method::GET, "/api/v1/watch/namespaces/a/pods/p", "", "watch"),
            (Method::POST, "/api/v1/namespaces/a/pods", "", "create"),
            (Method::PUT, "/api/v1/namespaces/a/pods/p", "", "update"),
            (Method::PATCH, "/api/v1/namespaces/a/pods/p/status", "", "patch"),
            (Method::DELETE, "/api/v1/namespaces/a/pods/p", "", "delete"),
            (Method::DELETE, "/api/v1/namespaces/a/pods", "", "deletecollection"),
            (Method::GET, "/metrics", "", "get"),
        ];
        for (method, path, query, expect) in cases {
            let parsed = path::parse(path).unwrap();
            assert_eq!(verb(&method, &parsed, &Query::parse(query)), expect, "{method} {path}?{query}");
        }
    }

    #[test]
    fn mounts_cover_whole_segments() {
        for (path, expect) in
            [("/v2", true), ("/v2/", true), ("/v2/a/b", true), ("/v22", false), ("/", false)]
        {
            assert_eq!(under(path, "/v2/"), expect, "{path}");
        }
    }
}
