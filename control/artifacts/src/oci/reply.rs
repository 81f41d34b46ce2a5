//! Building responses.

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};

use super::failure::Failure;

/// The body of a response.
pub type Body = BoxBody<Bytes, std::io::Error>;

pub(super) type Reply = Result<Response<Body>, Failure>;

pub(super) fn reply(status: StatusCode, headers: &[(&'static str, &str)], body: Body) -> Reply {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    set(response.headers_mut(), "docker-distribution-api-version", "registry/2.0");
    for (name, value) in headers {
        set(response.headers_mut(), name, value);
    }
    Ok(response)
}

pub(super) fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Values are made of digests, names and numbers; one that is no header value would be a media type with a line
    // break in it, and is left out.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

pub(super) fn json_response(
    status: StatusCode,
    media_type: &'static str,
    body: &serde_json::Value,
) -> Response<Body> {
    let mut response = Response::new(full(body.to_string().into()));
    *response.status_mut() = status;
    set(response.headers_mut(), "docker-distribution-api-version", "registry/2.0");
    set(response.headers_mut(), "content-type", media_type);
    response
}

pub(super) fn link(response: &mut Response<Body>, path: &str, next: Option<String>) {
    if let Some(query) = next {
        set(response.headers_mut(), "link", &format!("<{path}?{query}>; rel=\"next\""));
    }
}

pub(super) fn full(content: Bytes) -> Body {
    Full::new(content).map_err(|never| match never {}).boxed()
}

pub(super) fn empty() -> Body {
    full(Bytes::new())
}
