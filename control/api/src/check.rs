//! A cursor into an object that knows its own path, for rules that report by path.

use serde_json::Value;

use crate::field::FieldError;
use crate::validation::Rule;

/// A value and where it is. An absent field is a cursor on null.
#[derive(Clone, Debug)]
pub struct At<'v> {
    /// The value.
    pub value: &'v Value,
    /// Its JSON path.
    pub path: String,
}

impl<'v> At<'v> {
    /// The object itself.
    pub fn root(value: &'v Value) -> Self {
        Self { value, path: String::new() }
    }

    /// A field of a struct.
    pub fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { value: self.value.get(name).unwrap_or(&Value::Null), path }
    }

    /// A field below a field.
    pub fn below(&self, names: &[&str]) -> Self {
        names.iter().fold(self.clone(), |at, name| at.field(name))
    }

    /// The items of a list.
    pub fn items(&self) -> impl Iterator<Item = Self> {
        let items = self.value.as_array().map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().map(|(index, value)| Self { value, path: format!("{}[{index}]", self.path) })
    }

    /// The entries of a map, each with its key.
    pub fn entries(&self) -> impl Iterator<Item = (&'v str, Self)> {
        self.value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), Self { value, path: format!("{}[{key}]", self.path) }))
    }

    /// The text; empty if there is none.
    pub fn text(&self) -> &'v str {
        self.value.as_str().unwrap_or_default()
    }

    /// The integer.
    pub fn number(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// Whether it is true.
    pub fn is_true(&self) -> bool {
        self.value.as_bool().unwrap_or_default()
    }

    /// Whether it is absent, or an empty text, list or map.
    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        }
    }

    /// Whether it is absent.
    pub fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    /// Reports a missing value; says whether it is there.
    pub fn required(&self, errors: &mut Vec<FieldError>) -> bool {
        if self.is_empty() {
            errors.push(FieldError::required(&self.path, ""));
        }
        !self.is_empty()
    }

    /// Reports the value as breaking a rule.
    pub fn invalid(&self, detail: impl Into<String>, errors: &mut Vec<FieldError>) {
        errors.push(FieldError::invalid(&self.path, self.value.clone(), detail));
    }

    /// Reports every reason why the text breaks the rule.
    pub fn obeys(&self, rule: fn(&str) -> Rule, errors: &mut Vec<FieldError>) {
        if let Err(reasons) = rule(self.text()) {
            for reason in reasons {
                self.invalid(reason, errors);
            }
        }
    }

    /// Reports an integer below zero.
    pub fn not_negative(&self, errors: &mut Vec<FieldError>) {
        if self.number().is_some_and(|number| number < 0) {
            self.invalid("must be greater than or equal to 0", errors);
        }
    }

    /// Reports a port number outside of 1 to 65535.
    pub fn port_number(&self, errors: &mut Vec<FieldError>) {
        if !self.number().is_some_and(|number| (1..=65535).contains(&number)) {
            self.invalid("must be between 1 and 65535, inclusive", errors);
        }
    }

    /// Reports a text that is none of `supported`, in the order given.
    pub fn one_of(&self, supported: &[&str], errors: &mut Vec<FieldError>) {
        if !supported.contains(&self.text()) {
            errors.push(FieldError::not_supported(&self.path, self.value.clone(), supported));
        }
    }

    /// Reports a change.
    pub fn immutable(&self, old: &Self, errors: &mut Vec<FieldError>) {
        if self.value != old.value {
            self.invalid("field is immutable", errors);
        }
    }
}
