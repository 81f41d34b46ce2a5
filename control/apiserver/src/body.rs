//! Reading a request's body.

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use lichen_api::{Resource, Status, protobuf};

use crate::parse::{self, Parsed};

/// Most bytes of a body, Kubernetes' own limit.
pub(crate) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Media types of objects in requests.
const OBJECT_TYPES: [&str; 3] = ["application/json", "application/yaml", PROTOBUF];
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Reads a whole body.
pub(crate) async fn read(body: Incoming) -> Result<Bytes, Status> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(BODY_BYTES_MAX)),
        Err(error) => Err(Status::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// The media type of a body, without parameters, in lower case; empty if not given.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Refuses a body in a media type that no object can be read from, before it is read.
pub(crate) fn check_object_type(media: &str) -> Result<(), Status> {
    match media {
        "" | "application/json" | "application/yaml" | PROTOBUF => Ok(()),
        _ => Err(Status::unsupported_media_type(&OBJECT_TYPES)),
    }
}

/// Parses a body by its media type; without one it is JSON.
pub(crate) fn parse(bytes: &[u8], media: &str) -> Result<Parsed, String> {
    match media {
        "application/yaml" => parse::yaml(bytes),
        PROTOBUF => match protobuf::decode(bytes) {
            Ok(value) => Ok(Parsed { value, duplicates: Vec::new() }),
            Err(error) => Err(error.to_string()),
        },
        _ => parse::json(bytes),
    }
}

/// Parses a configuration to apply: YAML, of which JSON is the part that is usual.
pub(crate) fn configuration(bytes: &[u8]) -> Result<Parsed, String> {
    parse::json(bytes).or_else(|_| parse::yaml(bytes))
}

/// Parses an object of a kind.
pub(crate) fn object(bytes: &[u8], media: &str, resource: &Resource) -> Result<Parsed, Status> {
    let kind = resource.kind;
    let unrecognized = |why: &str| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; {why}"
        ))
    };
    let parsed = parse(bytes, media).map_err(|why| match media {
        "application/yaml" | PROTOBUF => unrecognized(&why),
        _ => unrecognized(&format!("json parse error: {why}")),
    })?;
    if !parsed.value.is_object() {
        return Err(unrecognized("json parse error: it is no object"));
    }
    Ok(parsed)
}
