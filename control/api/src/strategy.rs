//! The one implementation of [`Strategy`]: a k8s-openapi type gives the codec, functions give the rules.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::field::FieldError;
use crate::resource::{DecodeError, Strategy};

/// The strategy of a kind that a k8s-openapi type describes.
pub struct Typed<T> {
    kind: PhantomData<fn() -> T>,
}

impl<T> Typed<T> {
    /// A strategy with no rules beyond those of every object.
    pub const fn new() -> Self {
        Self { kind: PhantomData }
    }
}

impl<T> Default for Typed<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: DeserializeOwned + Serialize> Strategy for Typed<T> {
    fn decode(&self, object: Value, on_unknown: &mut dyn FnMut(&str)) -> Result<Value, DecodeError> {
        let typed: T = serde_ignored::deserialize(object, |path| on_unknown(&path.to_string()))
            .map_err(|error| DecodeError { path: String::new(), message: error.to_string() })?;
        serde_json::to_value(typed)
            .map_err(|error| DecodeError { path: String::new(), message: error.to_string() })
    }
    fn default(&self, _object: &mut Value) {}
    fn prepare_create(&self, _object: &mut Value) {}
    fn prepare_update(&self, _new: &mut Value, _old: &Value, _sub: Option<&str>) {}
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    fn validate_update(&self, _new: &Value, _old: &Value, _sub: Option<&str>) -> Vec<FieldError> {
        Vec::new()
    }
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
}
