//! Requests that a member passes on to the one that leads, and how that one answers them.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, Uri};
use lichen_api::Status;
use lichen_apiserver::{Body, Forward, Forwarded};
use lichen_peers::{Handler, Peers, RequestError};
use tokio::time::Instant;

use crate::leading::Owner;

/// Where members pass requests on to each other.
pub(crate) const PREFIX: &str = "/forwarded";
/// How long a request may look for the leader. Longer than two elections.
const LEADER_MAX: Duration = Duration::from_secs(8);
/// How long it waits before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The answer of a member that does not lead.
const NOT_LEADER: StatusCode = StatusCode::MISDIRECTED_REQUEST;

/// The way to the member that leads.
pub(crate) struct ToLeader {
    pub(crate) peers: Peers,
    pub(crate) owner: Owner,
}

impl Forward for ToLeader {
    fn forward(&self, request: Request<()>) -> BoxFuture<'_, Option<Result<Response<Body>, Status>>> {
        Box::pin(async move {
            let until = Instant::now() + LEADER_MAX;
            // Only reads are passed on: one that was not answered is asked again, wherever the lead went.
            loop {
                if self.owner.is_here() {
                    return None;
                }
                let why = match self.ask(&request).await {
                    Ok(reply) if reply.status() != NOT_LEADER => {
                        return Some(Ok(lichen_apiserver::boxed(reply)));
                    }
                    Ok(_) => "no member has taken over the nodes yet".to_owned(),
                    Err(error) => error.to_string(),
                };
                if Instant::now() >= until {
                    let why = format!("the member that leads does not answer: {why}");
                    return Some(Err(Status::service_unavailable(why)));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        })
    }
}

impl ToLeader {
    async fn ask(&self, request: &Request<()>) -> Result<Response<Incoming>, RequestError> {
        let body = Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
        let mut passed = Request::new(body);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        // A prefix before a path that was a path leaves one.
        *passed.uri_mut() = format!("{PREFIX}{path}").parse().unwrap_or_default();
        *passed.method_mut() = request.method().clone();
        *passed.headers_mut() = request.headers().clone();
        self.peers.request_leader(passed).await
    }
}

/// Answers what other members pass on, while this one leads.
pub(crate) struct FromMembers {
    pub(crate) api: Forwarded,
    pub(crate) owner: Owner,
}

impl Handler for FromMembers {
    fn handle(&self, _: u64, mut request: Request<Incoming>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            if !self.owner.is_here() {
                let body = Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
                let mut response = Response::new(body);
                *response.status_mut() = NOT_LEADER;
                return response;
            }
            *request.uri_mut() = without_prefix(request.uri());
            self.api.answer(request).await
        })
    }
}

fn without_prefix(uri: &Uri) -> Uri {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    path.strip_prefix(PREFIX).and_then(|path| path.parse().ok()).unwrap_or_default()
}
