//! Strategic merge patch.

use serde_json::{Map, Value};

use crate::merge_keys::Rules;
use crate::schema::{Kind, schema};
use crate::status::Status;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

/// Merges a patch into a value of the given kind.
pub(super) fn merge(target: &mut Value, patch: &Value, kind: &Kind) -> Result<(), Status> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    match target {
        Value::Object(target) => merge_map(target, patch, kind),
        _ => Ok(()),
    }
}

/// Kind and rules of one field of a struct or one entry of a map.
fn field_of(kind: &Kind, name: &str) -> (Kind, Rules) {
    match kind {
        Kind::Struct(id) => match schema().get(id).and_then(|known| known.fields.get(name)) {
            Some(field) => (field.kind.clone(), field.rules),
            None => (Kind::Any, Rules::default()),
        },
        Kind::Map(value) => ((**value).clone(), Rules::default()),
        _ => (Kind::Any, Rules::default()),
    }
}

fn directive(patch: &Map<String, Value>) -> Result<&str, Status> {
    match patch.get(DIRECTIVE) {
        None => Ok("merge"),
        Some(Value::String(text)) if matches!(text.as_str(), "merge" | "replace" | "delete") => Ok(text),
        Some(other) => {
            let shown = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
            Err(Status::bad_request(format!("unknown patch type: {shown}")))
        }
    }
}

fn merge_map(target: &mut Map<String, Value>, patch: &Map<String, Value>, kind: &Kind) -> Result<(), Status> {
    match directive(patch)? {
        "replace" => {
            target.clear();
            target.extend(
                patch
                    .iter()
                    .filter(|(key, _)| *key != DIRECTIVE)
                    .map(|(key, value)| (key.clone(), value.clone())),
            );
            return Ok(());
        }
        "delete" => {
            target.clear();
            return Ok(());
        }
        _ => {}
    }
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        let keep = keep
            .as_array()
            .ok_or_else(|| Status::bad_request("invalid patch format of retainKeys: it must be a list"))?;
        target.retain(|key, _| keep.iter().any(|kept| kept == key));
    }
    for (key, deleted) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PREFIX) {
            delete_values(target, field, deleted)?;
        }
    }
    for (key, value) in patch {
        if key.starts_with('$') {
            continue;
        }
        let (field_kind, rules) = field_of(kind, key);
        let order = patch.get(&format!("{ORDER_PREFIX}{key}"));
        merge_field(target, key, value, &field_kind, rules, order)?;
    }
    // An order may come without any change of the list's items.
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(ORDER_PREFIX)
            && !patch.contains_key(field)
            && let Some(Value::Array(list)) = target.get_mut(field)
        {
            let merge_key = field_of(kind, field).1.patch_key.unwrap_or_default();
            let before = list.clone();
            reorder(list, order_items(order)?, &before, merge_key);
        }
    }
    Ok(())
}

fn merge_field(
    target: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    kind: &Kind,
    rules: Rules,
    order: Option<&Value>,
) -> Result<(), Status> {
    match (value, target.get_mut(key)) {
        (Value::Null, _) => {
            target.remove(key);
        }
        (Value::Object(patch), Some(Value::Object(current))) => {
            merge_map(current, patch, kind)?;
            if patch.get(DIRECTIVE).is_some_and(|directive| directive == "delete") {
                target.remove(key);
            }
        }
        (Value::Object(_), current) => {
            if matches!(current, Some(Value::Array(_))) {
                return Err(wrong_shape(key, "list", "map"));
            }
            let mut fresh = Value::Object(Map::new());
            merge(&mut fresh, value, kind)?;
            target.insert(key.to_owned(), fresh);
        }
        (Value::Array(_), Some(Value::Object(_))) => return Err(wrong_shape(key, "map", "list")),
        (Value::Array(patch), current) => {
            let Some(merge_key) = rules.patch_key else {
                target.insert(key.to_owned(), value.clone());
                return Ok(());
            };
            let mut list = match current {
                Some(Value::Array(list)) => std::mem::take(list),
                _ => Vec::new(),
            };
            let item = match kind {
                Kind::List(item) => item,
                _ => &Kind::Any,
            };
            merge_list(&mut list, patch, merge_key, item, order)?;
            target.insert(key.to_owned(), Value::Array(list));
        }
        _ => {
            target.insert(key.to_owned(), value.clone());
        }
    }
    Ok(())
}

fn wrong_shape(key: &str, want: &str, got: &str) -> Status {
    Status::unprocessable(format!("{key}: cannot merge a {got} into a {want}"))
}

fn delete_values(target: &mut Map<String, Value>, field: &str, deleted: &Value) -> Result<(), Status> {
    let deleted = deleted.as_array().ok_or_else(|| {
        Status::bad_request(format!("invalid patch format of {DELETE_PREFIX}{field}: it must be a list"))
    })?;
    if let Some(Value::Array(list)) = target.get_mut(field) {
        list.retain(|item| !deleted.contains(item));
    }
    Ok(())
}

/// Merges a list whose items have an identity: the value of `merge_key`, or the item itself if that is empty.
fn merge_list(
    list: &mut Vec<Value>,
    patch: &[Value],
    merge_key: &str,
    kind: &Kind,
    order: Option<&Value>,
) -> Result<(), Status> {
    let is = |item: &Value, wanted: &str| item.get(DIRECTIVE).is_some_and(|directive| directive == wanted);
    if patch.iter().any(|item| is(item, "replace")) {
        *list = patch.iter().filter(|item| !is(item, "replace")).cloned().collect();
        return Ok(());
    }
    let before = list.clone();
    let mut touched = Vec::new();
    for item in patch {
        if !merge_key.is_empty() {
            check_item(item, merge_key)?;
        }
        if is(item, "delete") {
            list.retain(|known| !same(known, item, merge_key));
            continue;
        }
        touched.push(item.clone());
        match list.iter_mut().find(|known| same(known, item, merge_key)) {
            Some(known) if !merge_key.is_empty() => merge(known, item, kind)?,
            Some(_) => {}
            None => {
                let mut fresh = Value::Null;
                merge(&mut fresh, item, kind)?;
                list.push(fresh);
            }
        }
    }
    reorder(list, &touched, &before, merge_key);
    if let Some(order) = order {
        reorder(list, order_items(order)?, &before, merge_key);
    }
    Ok(())
}

fn check_item(item: &Value, merge_key: &str) -> Result<(), Status> {
    let Value::Object(fields) = item else {
        return Err(Status::bad_request("expected a list of maps in the patch"));
    };
    directive(fields)?;
    if fields.get(merge_key).is_none_or(Value::is_null) {
        return Err(Status::bad_request(format!(
            "map: {item} does not contain declared merge key: {merge_key}"
        )));
    }
    Ok(())
}

fn order_items(order: &Value) -> Result<&[Value], Status> {
    order
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| Status::bad_request("invalid patch format of setElementOrder: it must be a list"))
}

fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    match merge_key {
        "" => a == b,
        key => a.get(key) == b.get(key),
    }
}

/// Puts the items that `order` names into that order; the others stay where they were relative to them in `before`.
fn reorder(list: &mut Vec<Value>, order: &[Value], before: &[Value], merge_key: &str) {
    let place = |items: &[Value], item: &Value| items.iter().position(|known| same(known, item, merge_key));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        std::mem::take(list).into_iter().partition(|item| place(order, item).is_some());
    named.sort_by_key(|item| place(order, item));
    let mut named = named.into_iter().peekable();
    for other in others {
        // A named item goes first unless the other one is known to have stood before it.
        while let Some(next) = named.peek() {
            match (place(before, &other), place(before, next)) {
                (Some(own), Some(its)) if own < its => break,
                _ => list.extend(named.next()),
            }
        }
        list.push(other);
    }
    list.extend(named);
}
