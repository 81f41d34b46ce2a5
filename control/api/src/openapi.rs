//! OpenAPI v3 documents, generated from the table of kinds.

use serde_json::{Value, json};

/// `GET /openapi/v3`.
pub fn index() -> Value {
    json!({"paths": {}})
}

/// `GET /openapi/v3/<path>` where path is `api/v1` or `apis/<group>/<version>`; None if not served.
pub fn document(path: &str) -> Option<Value> {
    let _ = path;
    None
}
