//! `metadata.managedFields`: who set which field.

use jiff::Timestamp;
use serde_json::Value;

use crate::resource::Resource;

/// Brings `new.metadata.managedFields` up to date after an update (or create, with `old` = None) by `manager`.
///
/// Entries are computed from the difference between `old` and `new`; `subresource` is empty for the main resource.
pub fn update(
    resource: &Resource,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    now: Timestamp,
    subresource: &str,
) {
    let _ = (resource, old, new, manager, now, subresource);
}
