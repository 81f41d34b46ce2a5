//! A configuration seen through its kind's schema.

use serde_json::{Map, Value};

use crate::managed::{FieldSet, item_step, path_step};
use crate::merge_keys::{self, ListType, Rules};
use crate::resource::Resource;
use crate::schema::{Kind, Type, schema};

/// How a value is owned.
pub(super) enum Shape<'k> {
    /// Field by field.
    Struct(&'static Type),
    /// Key by key.
    Map(&'k Kind),
    /// Item by item.
    List(&'k Kind, ListType),
    /// As a whole.
    Whole,
}

impl Shape<'_> {
    /// What is below a field or key.
    pub(super) fn field(&self, name: &str) -> Option<(&Kind, Rules)> {
        match self {
            Self::Struct(known) => known.fields.get(name).map(|field| (&field.kind, field.rules)),
            Self::Map(value) => Some((value, Rules::default())),
            Self::List(..) | Self::Whole => None,
        }
    }

    /// The step from a list to one of its items.
    pub(super) fn step(&self, item: &Value) -> String {
        match self {
            Self::List(_, list) => item_step(*list, item),
            _ => String::new(),
        }
    }
}

/// How a value of that kind is owned.
pub(super) fn shape(kind: &Kind, rules: Rules) -> Shape<'_> {
    match kind {
        Kind::Struct(id) => match schema().get(id) {
            Some(known) if !known.atomic && !rules.atomic_map => Shape::Struct(known),
            _ => Shape::Whole,
        },
        Kind::Map(value) if !rules.atomic_map => Shape::Map(value),
        Kind::List(item) if rules.list != ListType::Atomic => Shape::List(item, rules.list),
        _ => Shape::Whole,
    }
}

/// Refuses fields that the kind does not have, and list items that cannot be told apart.
pub(super) fn check(resource: &Resource, config: &Value) -> Result<(), String> {
    fits(&resource.strategy.kind(), Rules::default(), config, "")
}

fn fits(kind: &Kind, rules: Rules, value: &Value, path: &str) -> Result<(), String> {
    match (kind, value) {
        (Kind::Struct(id), Value::Object(fields)) => {
            let Some(known) = schema().get(id) else { return Ok(()) };
            for (name, value) in fields {
                let Some(field) = known.fields.get(name.as_str()) else {
                    return Err(format!("{path}.{name}: field not declared in schema"));
                };
                fits(&field.kind, field.rules, value, &format!("{path}.{name}"))?;
            }
            Ok(())
        }
        (Kind::Map(kind), Value::Object(fields)) => fields
            .iter()
            .try_for_each(|(name, value)| fits(kind, Rules::default(), value, &format!("{path}.{name}"))),
        (Kind::List(item), Value::Array(items)) => {
            let mut steps: Vec<String> = Vec::with_capacity(items.len());
            for (index, value) in items.iter().enumerate() {
                let mut below = format!("{path}[{index}]");
                if rules.list != ListType::Atomic {
                    if let Some(key) = missing_key(rules.list, value) {
                        return Err(format!(
                            "{path}: element {index}: associative list with keys has an element that omits key field \
                             {key:?} (and doesn't have default value)"
                        ));
                    }
                    let step = item_step(rules.list, value);
                    let shown = path_step(&step);
                    if steps.contains(&step) {
                        return Err(format!("{path}: duplicate entries for key {shown}"));
                    }
                    below = format!("{path}{shown}");
                    steps.push(step);
                }
                fits(item, Rules::default(), value, &below)?;
            }
            Ok(())
        }
        // Values of another type are for the codec to refuse.
        _ => Ok(()),
    }
}

fn missing_key(list: ListType, item: &Value) -> Option<&'static str> {
    let ListType::Map(keys) = list else { return None };
    let is_absent = |key: &str| item.get(key).is_none_or(Value::is_null);
    keys.iter().copied().find(|key| is_absent(key) && merge_keys::key_default(key).is_none())
}

/// What was given, as the codec writes it. What counts as absent is left out.
pub(super) fn canonical(given: &Value, decoded: &Value) -> Value {
    match (given, decoded) {
        (Value::Object(given), Value::Object(decoded)) => {
            let mut out = Map::new();
            for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                if let Some(decoded) = decoded.get(name) {
                    out.insert(name.clone(), canonical(value, decoded));
                }
            }
            Value::Object(out)
        }
        (Value::Array(given), Value::Array(decoded)) if given.len() == decoded.len() => {
            given.iter().zip(decoded).map(|(given, decoded)| canonical(given, decoded)).collect()
        }
        _ => decoded.clone(),
    }
}

/// What the manager of a configuration owns.
pub(super) fn owned(resource: &Resource, config: &Value) -> FieldSet {
    let mut all = FieldSet::default();
    let kind = resource.strategy.kind();
    let root = shape(&kind, Rules::default());
    for (name, value) in config.as_object().into_iter().flatten() {
        let Some((kind, rules)) = root.field(name) else { continue };
        match name.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                let metadata = crate::managed::owned_metadata(value);
                if metadata.as_object().is_some_and(|fields| !fields.is_empty()) {
                    all.insert("f:metadata".to_owned(), set_of(kind, rules, &metadata));
                }
            }
            _ => all.insert(format!("f:{name}"), set_of(kind, rules, value)),
        }
    }
    all
}

fn set_of(kind: &Kind, rules: Rules, value: &Value) -> FieldSet {
    let mut all = FieldSet::default();
    let shape = shape(kind, rules);
    match (&shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(fields)) => {
            for (name, value) in fields {
                let Some((kind, rules)) = shape.field(name) else { continue };
                let mut below = set_of(kind, rules, value);
                if matches!(shape, Shape::Map(_)) {
                    below.add_root();
                }
                all.insert(format!("f:{name}"), below);
            }
        }
        (Shape::List(item, _), Value::Array(items)) => {
            for value in items {
                let mut below = set_of(item, Rules::default(), value);
                below.add_root();
                all.insert(shape.step(value), below);
            }
        }
        _ => {}
    }
    if all.is_empty() {
        all.add_root();
    }
    all
}
