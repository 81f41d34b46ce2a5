//! What kubectl prints: server-side Tables and PartialObjectMetadata.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::labels::Selector;
use crate::resource::{Column, Resource};

/// The column that every kind has.
pub const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name must be unique within a namespace. Cannot be updated.",
    priority: 0,
};

/// The age of an object.
pub const AGE: Column = column("Age", "Time since the object was created.");

/// A column of texts that is always shown.
pub const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 0 }
}

/// A column of integers that is always shown.
pub const fn integers(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "integer", format: "", description, priority: 0 }
}

/// A column of texts that is shown with `-o wide`.
pub const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 1 }
}

/// What a row carries beside its cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// The metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// From the query parameter `includeObject`; None if it is none of the three.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "None" => Some(Self::None),
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The text at a JSON pointer; empty if there is none.
pub(crate) fn text<'o>(object: &'o Value, pointer: &str) -> &'o str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a JSON pointer; 0 if there is none.
pub(crate) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The list at a JSON pointer; empty if there is none.
pub(crate) fn list<'o>(object: &'o Value, pointer: &str) -> &'o [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// How many entries the map at a JSON pointer has.
pub(crate) fn entries(object: &Value, pointer: &str) -> usize {
    object.pointer(pointer).and_then(Value::as_object).map_or(0, Map::len)
}

/// The text, or `instead` if it is empty.
pub(crate) fn or<'t>(text: &'t str, instead: &'t str) -> &'t str {
    if text.is_empty() { instead } else { text }
}

/// The cell of the Name column.
pub fn name(object: &Value) -> Value {
    json!(text(object, "/metadata/name"))
}

/// The cell of the Age column.
pub fn age(object: &Value, now: Timestamp) -> Value {
    json!(since(text(object, "/metadata/creationTimestamp"), now))
}

/// The time since a point in time as kubectl writes it; `<unknown>` if there is no such point.
pub fn since(then: &str, now: Timestamp) -> String {
    match then.parse::<Timestamp>() {
        Ok(then) => duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// A duration in at most two units.
pub fn duration(seconds: i64) -> String {
    let two = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, 'd', hours % 24, 'h'),
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// The names and images of the containers in a workload's template.
pub(crate) fn containers_and_images(object: &Value) -> [Value; 2] {
    let containers = list(object, "/spec/template/spec/containers");
    let join = |field: &str| containers.iter().map(|one| text(one, field)).collect::<Vec<_>>().join(",");
    [json!(join("/name")), json!(join("/image"))]
}

/// A `LabelSelector` as text.
pub(crate) fn selector(object: &Value, pointer: &str) -> Value {
    let selector = object.pointer(pointer).unwrap_or(&Value::Null);
    match Selector::from_object(selector) {
        Ok(selector) => json!(or(&selector.to_string(), "<none>")),
        Err(_) => json!("<error>"),
    }
}

/// A map of labels as text.
pub(crate) fn pairs(object: &Value, pointer: &str) -> Value {
    let pairs = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    let texts: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    json!(or(&texts.join(","), "<none>"))
}

/// At most three texts, and how many more there are.
pub(crate) fn few(texts: &[String]) -> Value {
    const SHOWN: usize = 3;
    let shown = texts.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(",");
    match texts.len() {
        0 => json!("<unset>"),
        all if all > SHOWN => json!(format!("{shown} + {} more...", all - SHOWN)),
        _ => json!(shown),
    }
}

/// A Table of some objects. `metadata` is the list's metadata (resourceVersion, continue, remainingItemCount); the Tables of a watch have
/// one row each and leave the columns out after the first (`with_columns`).
pub fn to_table(
    resource: &Resource,
    objects: &[Value],
    metadata: Value,
    include: IncludeObject,
    with_columns: bool,
    now: Timestamp,
) -> Value {
    let columns: Vec<Value> = match with_columns {
        true => resource.columns.iter().map(definition).collect(),
        false => Vec::new(),
    };
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = Map::new();
            row.insert("cells".to_owned(), Value::Array((resource.row)(object, now)));
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => {
                    row.insert("object".to_owned(), partial(object));
                }
                IncludeObject::Object => {
                    row.insert("object".to_owned(), object.clone());
                }
            }
            Value::Object(row)
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    })
}

/// Only the metadata of an object, as `PartialObjectMetadata`.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

/// A `PartialObjectMetadataList` of some objects.
pub fn partial_list(objects: &[Value], metadata: Value) -> Value {
    let items: Vec<Value> = objects.iter().map(partial).collect();
    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |seconds: i64, expect: &str| assert_eq!(duration(seconds), expect, "{seconds}");
        const MINUTE: i64 = 60;
        const HOUR: i64 = 60 * MINUTE;
        const DAY: i64 = 24 * HOUR;
        check(-5, "<invalid>");
        check(-1, "0s");
        check(0, "0s");
        check(119, "119s");
        check(120, "2m");
        check(125, "2m5s");
        check(9 * MINUTE + 59, "9m59s");
        check(10 * MINUTE + 1, "10m");
        check(179 * MINUTE, "179m");
        check(3 * HOUR, "3h");
        check(3 * HOUR + 90, "3h1m");
        check(8 * HOUR + MINUTE, "8h");
        check(47 * HOUR, "47h");
        check(2 * DAY, "2d");
        check(2 * DAY + HOUR, "2d1h");
        check(8 * DAY + HOUR, "8d");
        check(700 * DAY, "700d");
        check(731 * DAY, "2y1d");
        check(730 * DAY, "2y");
        check(365 * 9 * DAY, "9y");
    }
}
