//! Raft's messages: what the store says, carried as it is.

use std::io;
use std::sync::Weak;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::http::Method;
use hyper::{Request, Response, Uri};
use lichen_store::{Network, Store};

use crate::client::{self, Lane};
use crate::{Body, Inner, RequestError};

/// Where raft's messages go.
pub(crate) const PATH: &str = "/raft";
/// Bytes of a message: more than the entries that raft sends at once.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of a message that takes raft's own connection. A larger one, such as a piece of a snapshot, would keep heartbeats
/// waiting on a slow link.
const QUICK_BYTES_MAX: usize = 64 * 1024;

/// The network as the store sees it. Does not keep the members alive, which keep the store.
pub(crate) struct Calls(pub(crate) Weak<Inner>);

impl Network for Calls {
    fn call<'a>(&'a self, member: u64, address: &'a str, request: Bytes) -> BoxFuture<'a, io::Result<Bytes>> {
        Box::pin(async move {
            let inner = self.0.upgrade().ok_or_else(|| io::Error::other("this member has ended"))?;
            let lane = if request.len() > QUICK_BYTES_MAX { Lane::Requests } else { Lane::Calls };
            let mut call = Request::new(whole(request));
            *call.method_mut() = Method::POST;
            *call.uri_mut() = Uri::from_static(PATH);
            let reply = client::send(&inner, member, lane, Some(address), call).await.map_err(|error| {
                let kind = if error.was_sent() { io::ErrorKind::Other } else { io::ErrorKind::NotConnected };
                io::Error::new(kind, error)
            })?;
            let body = Limited::new(reply.into_body(), MESSAGE_BYTES_MAX);
            let broken = |why: String| io::Error::other(RequestError::Broken { member, why });
            Ok(body.collect().await.map_err(|error| broken(error.to_string()))?.to_bytes())
        })
    }
}

/// Answers a message of another member.
pub(crate) async fn answer(store: &Store, member: u64, request: Request<Incoming>) -> Response<Body> {
    match Limited::new(request.into_body(), MESSAGE_BYTES_MAX).collect().await {
        Ok(body) => Response::new(whole(store.serve(member, body.to_bytes()).await)),
        Err(error) => crate::server::text(hyper::StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// A body that is there as a whole.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
