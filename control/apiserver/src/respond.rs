//! Building responses.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use lichen_api::Status;
use serde_json::Value;
use tokio::sync::watch;

use crate::negotiate::Encoding;

/// Why a body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A response's body, whole or streamed.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Warnings that one response carries at most.
const WARNINGS_MAX: usize = 32;
/// Bytes of one warning's text at most.
const WARNING_BYTES_MAX: usize = 256;

/// A response of another handler, as this server sends it.
pub fn boxed<B>(response: Response<B>) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

/// A response with a whole body.
pub(crate) fn full(code: u16, media: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed_unsync();
    with_headers(code, media, body)
}

/// A response whose body comes piece by piece.
pub(crate) fn stream<S>(code: u16, media: &'static str, pieces: S) -> Response<Body>
where
    S: Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
{
    use futures_util::StreamExt as _;
    let body = StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync();
    with_headers(code, media, body)
}

fn with_headers(code: u16, media: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A response of another server, which ends when this one drains.
pub(crate) fn until(response: Response<Body>, mut draining: watch::Receiver<bool>) -> Response<Body> {
    use futures_util::StreamExt as _;
    let drained = async move {
        // An error means that the server is gone, which ends the response as well.
        let _ = draining.wait_for(|draining| *draining).await;
    };
    let pieces = |body: Body| body.into_data_stream().map(|piece| piece.map(Frame::data));
    response.map(|body| StreamBody::new(pieces(body).take_until(Box::pin(drained))).boxed_unsync())
}

/// A response with a JSON value in the encoding that was agreed on.
pub(crate) fn value(code: u16, value: &Value, encoding: Encoding) -> Response<Body> {
    match encoding {
        Encoding::Json => full(code, "application/json", value.to_string()),
        Encoding::Pretty => {
            let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
            text.push('\n');
            full(code, "application/json", text)
        }
        Encoding::Yaml => match serde_yaml_ng::to_string(value) {
            Ok(text) => full(code, "application/yaml", text),
            Err(error) => self::status(&Status::internal(error)),
        },
    }
}

/// A refusal.
pub(crate) fn status(status: &Status) -> Response<Body> {
    let mut response = full(status.code, "application/json", status.to_json().to_string());
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The success of something that yields no object.
pub(crate) fn success(code: u16) -> Response<Body> {
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code,
    });
    value(code, &status, Encoding::Json)
}

/// What Kubernetes says of a path that it does not have at all.
pub(crate) fn page_not_found() -> Response<Body> {
    full(404, "text/plain; charset=utf-8", "404 page not found\n")
}

/// Adds `Warning` headers.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[impl AsRef<str>]) {
    for warning in warnings.iter().take(WARNINGS_MAX).map(AsRef::as_ref) {
        let mut text = String::with_capacity(warning.len());
        for letter in warning.chars() {
            match letter {
                '"' | '\\' => text.extend(['\\', letter]),
                letter if letter.is_control() => text.push(' '),
                letter => text.push(letter),
            }
            if text.len() >= WARNING_BYTES_MAX {
                break;
            }
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()) {
            response.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
}
