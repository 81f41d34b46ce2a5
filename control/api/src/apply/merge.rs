//! An applied configuration over an object: what is given wins, what is not stays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

use super::typed::{self, Shape};
use crate::merge_keys::Rules;
use crate::resource::Resource;
use crate::schema::Kind;

/// The object with the configuration in it.
pub(super) fn merge(resource: &Resource, live: &Value, config: &Value) -> Value {
    merged(&resource.strategy.kind(), Rules::default(), live, config)
}

fn merged(kind: &Kind, rules: Rules, live: &Value, config: &Value) -> Value {
    let shape = typed::shape(kind, rules);
    match (&shape, live, config) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(live), Value::Object(config)) => {
            let mut out = live.clone();
            for (name, config) in config {
                let below = live.get(name).filter(|live| !live.is_null());
                let value = match (shape.field(name), below) {
                    (Some((kind, rules)), Some(live)) => merged(kind, rules, live, config),
                    _ => config.clone(),
                };
                out.insert(name.clone(), value);
            }
            Value::Object(out)
        }
        (Shape::List(item, ..), Value::Array(live), Value::Array(config)) => {
            Value::Array(lists(item, &shape, live, config))
        }
        _ => config.clone(),
    }
}

/// Items in the configuration's order; those that only the object has stay where they are between their neighbours.
fn lists(kind: &Kind, shape: &Shape<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let steps = |items: &[Value]| -> Vec<String> { items.iter().map(|item| shape.step(item)).collect() };
    let (left, right) = (steps(live), steps(config));
    let mut by_step: BTreeMap<&str, &Value> = BTreeMap::new();
    for (step, item) in left.iter().zip(live) {
        by_step.entry(step).or_insert(item);
    }
    let given: BTreeSet<&str> = right.iter().map(String::as_str).collect();
    let mut shared: VecDeque<&str> =
        right.iter().map(String::as_str).filter(|step| by_step.contains_key(step)).collect();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let both = |step: &str, config: &Value| match by_step.get(step) {
        Some(live) => merged(kind, Rules::default(), live, config),
        None => config.clone(),
    };
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if l < left.len() && r < right.len() {
            if left[l] == right[r] {
                out.push(both(&right[r], &config[r]));
                done.insert(&right[r]);
                shared.pop_front();
                (l, r) = (l + 1, r + 1);
                continue;
            }
            let awaited = shared.front().copied();
            if given.contains(left[l].as_str()) && awaited.is_some_and(|step| step != left[l]) {
                // The configuration has it at another place.
                l += 1;
                continue;
            }
        }
        if l < left.len() {
            if !given.contains(left[l].as_str()) {
                out.push(live[l].clone());
                l += 1;
                continue;
            }
            if done.contains(left[l].as_str()) {
                l += 1;
            }
        }
        if r < right.len() {
            out.push(both(&right[r], &config[r]));
            done.insert(&right[r]);
            if shared.front().is_some_and(|step| *step == right[r]) {
                shared.pop_front();
            }
            r += 1;
        }
    }
    out
}
