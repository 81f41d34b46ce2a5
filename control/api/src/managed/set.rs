//! A set of field paths, as `fieldsV1` writes it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of field paths, as a tree: `f:name` a field, `k:{...}` an item by its keys, `v:...` an item by its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the path that leads here is in the set itself.
    pub(super) here: bool,
    pub(super) below: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    /// Adds all paths of another set.
    pub fn union(&mut self, other: &Self) {
        self.here |= other.here;
        for (step, set) in &other.below {
            self.below.entry(step.clone()).or_default().union(set);
        }
    }

    /// Takes all paths of another set away.
    pub fn subtract(&mut self, other: &Self) {
        self.here &= !other.here;
        for (step, set) in &other.below {
            if let Some(own) = self.below.get_mut(step) {
                own.subtract(set);
                if own.is_empty() {
                    self.below.remove(step);
                }
            }
        }
    }

    /// The paths that are in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { here: self.here && other.here, below: BTreeMap::new() };
        for (step, set) in &self.below {
            if let Some(other) = other.below.get(step) {
                both.insert(step.clone(), set.intersection(other));
            }
        }
        both
    }

    /// Every path as a text: `.spec.containers[name="c"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.collect("", &mut all);
        all
    }

    fn collect(&self, path: &str, all: &mut Vec<String>) {
        if self.here {
            all.push(path.to_owned());
        }
        for (step, set) in &self.below {
            set.collect(&format!("{path}{}", path_step(step)), all);
        }
    }

    /// What is below one step.
    pub(crate) fn below(&self, step: &str) -> Option<&Self> {
        self.below.get(step)
    }

    /// Whether the path that leads here is in the set itself.
    pub(crate) fn has_root(&self) -> bool {
        self.here
    }

    /// Adds the path that leads here.
    pub(crate) fn add_root(&mut self) {
        self.here = true;
    }

    /// Takes everything below one step away.
    pub(crate) fn remove(&mut self, step: &str) {
        self.below.remove(step);
    }

    /// Adds what is below one step.
    pub(crate) fn insert(&mut self, step: String, set: Self) {
        if !set.is_empty() {
            self.below.insert(step, set);
        }
    }

    /// From `fieldsV1`.
    pub fn from_json(value: &Value) -> Self {
        let mut set = Self::default();
        for (step, value) in value.as_object().into_iter().flatten() {
            if step == "." {
                set.here = true;
                continue;
            }
            let mut below = Self::from_json(value);
            below.here |= below.below.is_empty();
            set.below.insert(step.clone(), below);
        }
        set
    }

    /// To `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        for (step, set) in &self.below {
            let mut value = set.to_json();
            if set.here && !set.below.is_empty() {
                value["."] = Value::Object(Map::new());
            }
            object.insert(step.clone(), value);
        }
        Value::Object(object)
    }
}

/// A step as it is shown: `.name`, `[key="value"]`, `[="value"]`.
pub(crate) fn path_step(step: &str) -> String {
    match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        _ => step.to_owned(),
    }
}
