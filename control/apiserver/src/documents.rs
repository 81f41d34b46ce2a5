//! Documents that never change while the server runs: written down once, with their entity tags.

use std::sync::OnceLock;

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use serde_json::Value;

/// A document and its entity tag.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) bytes: Bytes,
    pub(crate) etag: String,
}

impl Document {
    pub(crate) fn new(value: &Value) -> Self {
        let bytes = Bytes::from(value.to_string());
        let hash = digest(&SHA256, &bytes);
        let mut etag = String::from("\"");
        for byte in hash.as_ref() {
            etag.push_str(&format!("{byte:02X}"));
        }
        etag.push('"');
        Self { bytes, etag }
    }
}

/// The aggregated discovery documents, which every client asks for.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    core: OnceLock<Document>,
    groups: OnceLock<Document>,
}

impl Documents {
    /// Aggregated discovery of `/api` (`core`) or `/apis`.
    pub(crate) fn aggregated(&self, core: bool) -> &Document {
        let place = if core { &self.core } else { &self.groups };
        place.get_or_init(|| Document::new(&lichen_api::discovery::aggregated_v2(core)))
    }
}
