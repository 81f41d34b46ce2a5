//! Requests that only the member that leads can answer: what nodes say, and when they were last heard of.
//!
//! Every member serves the whole API. What is in the store it serves by itself; the rest it passes on, with the user's name
//! and groups beside the request, as a front proxy of Kubernetes does. Only reads are passed on, so that one whose answer
//! got lost may be asked again. A read that is content with any state (`resourceVersion=0`) stays here, and a watch tells of
//! writes only, which every member has.

use std::sync::Weak;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use lichen_api::{Resource, Status, kinds};
use lichen_registry::{Identity, NODE_LEASE_NAMESPACE};

use crate::path::Target;
use crate::query::Query;
use crate::respond::{self, Body};
use crate::router::{self, App};

/// Who asks, in a request that was passed on.
const USER_HEADER: HeaderName = HeaderName::from_static("x-remote-user");
/// A group of who asks; there may be several.
const GROUP_HEADER: HeaderName = HeaderName::from_static("x-remote-group");
/// What of a request's head goes with it.
const HEADERS: [HeaderName; 2] = [ACCEPT, USER_AGENT];

/// The way to the member that leads.
///
/// Obligations: only members can use it, since what arrives is believed; the reply comes as it is sent, not when it is
/// whole.
pub trait Forward: Send + Sync + 'static {
    /// Passes a request on. `None` if this member is the one to answer it.
    fn forward(&self, request: Request<()>) -> BoxFuture<'_, Option<Result<Response<Body>, Status>>>;
}

/// Answers what other members pass on, for as long as the server runs.
#[derive(Clone, Debug)]
pub struct Forwarded(pub(crate) Weak<App>);

impl Forwarded {
    /// Answers a request of a member, whose path is that of the API again.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(app) = self.0.upgrade() else {
            return respond::status(&Status::service_unavailable("the server has ended"));
        };
        let headers = request.headers();
        let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).ok();
        let Some(user) = headers.get(USER_HEADER).and_then(text) else {
            return respond::status(&Status::bad_request("the request does not say who asks"));
        };
        let groups = headers.get_all(GROUP_HEADER).iter().filter_map(text).collect();
        router::answer(app, Identity { user, groups }, request, false).await
    }
}

/// The request to pass on, if the member that leads has to answer.
pub(crate) fn to_leader(
    identity: &Identity,
    target: &Target,
    verb: &str,
    query: &Query,
    request: &Request<Incoming>,
) -> Option<Result<Request<()>, Status>> {
    let wanted = *request.method() == Method::GET && is_the_leaders(target, verb, query);
    wanted.then(|| passed_on(identity, request).map_err(Status::internal))
}

/// Whether the member that leads has to answer.
fn is_the_leaders(target: &Target, verb: &str, query: &Query) -> bool {
    let current = query.get("resourceVersion").is_none_or(str::is_empty);
    match target.sub.as_deref() {
        Some("log") => verb == "get" && is(target, &kinds::pod::RESOURCE),
        None | Some("status") => matches!(verb, "get" | "list") && current && shows_presence(target),
        Some(_) => false,
    }
}

/// Whether what is known of nodes and not written is shown in it.
fn shows_presence(target: &Target) -> bool {
    let everywhere = target.namespace.as_deref().is_none_or(|namespace| namespace == NODE_LEASE_NAMESPACE);
    is(target, &kinds::node::RESOURCE) || (is(target, &kinds::lease::RESOURCE) && everywhere)
}

fn is(target: &Target, resource: &Resource) -> bool {
    (&*target.group, &*target.plural) == (resource.group, resource.plural)
}

fn passed_on(identity: &Identity, request: &Request<Incoming>) -> Result<Request<()>, hyper::http::Error> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut passed = Request::builder().method(request.method()).uri(path);
    for name in HEADERS {
        if let Some(value) = request.headers().get(&name) {
            passed = passed.header(name, value);
        }
    }
    passed = passed.header(USER_HEADER, HeaderValue::from_bytes(identity.user.as_bytes())?);
    for group in &identity.groups {
        passed = passed.header(GROUP_HEADER, HeaderValue::from_bytes(group.as_bytes())?);
    }
    passed.body(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{self, Path};

    #[test]
    fn what_only_the_leader_knows() {
        let check = |path: &str, verb: &str, query: &str, expect: bool| {
            let Some(Path::Resource(target)) = path::parse(path) else { panic!("{path}") };
            let got = is_the_leaders(&target, verb, &Query::parse(query));
            assert_eq!(got, expect, "{verb} {path}?{query}");
        };
        check("/api/v1/nodes", "list", "", true);
        check("/api/v1/nodes/n", "get", "", true);
        check("/api/v1/nodes/n/status", "get", "", true);
        check("/api/v1/nodes", "list", "limit=500&continue=x", true);
        check("/api/v1/nodes", "list", "resourceVersion=0", false);
        check("/api/v1/nodes", "watch", "watch=1", false);
        check("/api/v1/nodes/n", "patch", "", false);
        check("/api/v1/namespaces/a/pods/p/log", "get", "follow=true", true);
        check("/api/v1/namespaces/a/pods/p", "get", "", false);
        check("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n", "get", "", true);
        check("/apis/coordination.k8s.io/v1/leases", "list", "", true);
        check("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", "list", "", false);
    }
}
