//! Writing objects and lists of them: bytes copied from records wherever the client takes them as they are.

use bytes::Bytes;
use hyper::Response;
use jiff::Timestamp;
use lichen_api::{Resource, Status, table};
use lichen_registry::{List, object_of};
use lichen_store::Record;
use serde_json::{Map, Value, json};

use crate::negotiate::{Encoding, Format, Shape};
use crate::respond::{self, Body, BodyError};

/// Bytes of a list that are written at once; the rest waits until the client has taken them.
const CHUNK_BYTES: usize = 64 * 1024;

/// Whether a client gets a record's bytes as they are.
pub(crate) fn as_stored(resource: &Resource, format: Format) -> bool {
    (format.shape, format.encoding) == (Shape::Object, Encoding::Json) && resource.stored_as.is_none()
}

/// One object.
pub(crate) fn one(
    code: u16,
    resource: &Resource,
    record: &Record,
    format: Format,
    now: Timestamp,
) -> Result<Response<Body>, Status> {
    if as_stored(resource, format) {
        return Ok(respond::full(code, "application/json", record.json()));
    }
    let object = object_of(resource, record)?;
    let value = match format.shape {
        Shape::Object => object,
        Shape::Table => {
            let metadata = json!({"resourceVersion": record.revision().to_string()});
            table::to_table(resource, &[object], metadata, format.include, true, now)
        }
        Shape::Partial => table::partial(&object),
    };
    Ok(respond::value(code, &value, format.encoding))
}

/// A list of objects.
pub(crate) fn list(
    resource: &'static Resource,
    list: List,
    format: Format,
    now: Timestamp,
) -> Result<Response<Body>, Status> {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), json!(list.revision.to_string()));
    if let Some(token) = list.continue_token {
        metadata.insert("continue".to_owned(), json!(token));
    }
    if let Some(remaining) = list.remaining {
        metadata.insert("remainingItemCount".to_owned(), json!(remaining));
    }
    let metadata = Value::Object(metadata);
    if as_stored(resource, format) {
        return Ok(whole(resource, list.items, &metadata));
    }
    let objects = list
        .items
        .iter()
        .map(|record| object_of(resource, record))
        .collect::<Result<Vec<Value>, Status>>()?;
    drop(list.items);
    let value = match format.shape {
        Shape::Object => json!({
            "kind": resource.list_kind(), "apiVersion": resource.api_version(), "metadata": metadata, "items": objects,
        }),
        Shape::Table => table::to_table(resource, &objects, metadata, format.include, true, now),
        Shape::Partial => table::partial_list(&objects, metadata),
    };
    Ok(respond::value(200, &value, format.encoding))
}

/// A list as its records' bytes: in one piece if it is small, else piece by piece.
fn whole(resource: &Resource, items: Vec<Record>, metadata: &Value) -> Response<Body> {
    let mut head = Vec::with_capacity(CHUNK_BYTES / 8);
    let kind = resource.list_kind();
    let version = resource.api_version();
    head.extend_from_slice(
        format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[")
            .as_bytes(),
    );
    let mut pieces = Pieces { left: items.into_iter(), first: true, head: Some(head) };
    let Some(first) = pieces.next() else { return respond::full(200, "application/json", "") };
    match pieces.next() {
        None => respond::full(200, "application/json", first),
        Some(second) => {
            let all = [first, second].into_iter().chain(pieces);
            respond::stream(200, "application/json", futures_util::stream::iter(all.map(Ok::<_, BodyError>)))
        }
    }
}

struct Pieces {
    left: std::vec::IntoIter<Record>,
    first: bool,
    /// What the next piece begins with; `None` once the list is closed.
    head: Option<Vec<u8>>,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = self.head.take()?;
        while out.len() < CHUNK_BYTES {
            let Some(record) = self.left.next() else {
                out.extend_from_slice(b"]}");
                return Some(Bytes::from(out));
            };
            if !self.first {
                out.push(b',');
            }
            self.first = false;
            record.write_json(&mut out, true);
        }
        self.head = Some(Vec::with_capacity(CHUNK_BYTES + 1024));
        Some(Bytes::from(out))
    }
}
