//! Reading JSON and YAML into a value, with every field that occurs twice.
//!
//! A map keeps the last of two values under one name, so that only the parser can tell.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most duplicate fields that are remembered.
const DUPLICATES_MAX: usize = 64;

/// What any YAML document may unfold to: an alias stands for a text as long as it likes, as often as it likes.
const UNFOLDED_BASE: usize = 256 * 1024;
/// What a document may unfold to for each of its bytes. Without aliases none comes near.
const UNFOLDED_PER_BYTE: usize = 32;
/// What a value counts beyond its text. It takes at least two bytes to write one.
const VALUE_WEIGHT: usize = 32;

/// A value, and the paths in it that were given more than once.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) value: Value,
    pub(crate) duplicates: Vec<String>,
}

/// Reads JSON.
pub(crate) fn json(bytes: &[u8]) -> Result<Parsed, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut reader = Reader::default();
    let value =
        Seed(&mut reader).deserialize(&mut deserializer).map_err(|error| json_error(&error, bytes))?;
    deserializer.end().map_err(|error| json_error(&error, bytes))?;
    Ok(Parsed { value, duplicates: reader.duplicates })
}

fn json_error(error: &serde_json::Error, bytes: &[u8]) -> String {
    match error.is_eof() {
        true if bytes.iter().all(u8::is_ascii_whitespace) => {
            "unexpected end of JSON input (<empty>)".to_owned()
        }
        true => "unexpected end of JSON input".to_owned(),
        false => error.to_string(),
    }
}

/// Reads one YAML document.
pub(crate) fn yaml(bytes: &[u8]) -> Result<Parsed, String> {
    let mut documents = serde_yaml_ng::Deserializer::from_slice(bytes);
    let first = documents.next().ok_or("yaml: there is no document")?;
    let most = UNFOLDED_BASE + bytes.len() * UNFOLDED_PER_BYTE;
    let mut reader = Reader { left: most, ..Reader::default() };
    let value = Seed(&mut reader).deserialize(first).map_err(|error| format!("yaml: {error}"))?;
    if documents.next().is_some() {
        return Err("yaml: more than one document".to_owned());
    }
    Ok(Parsed { value, duplicates: reader.duplicates })
}

struct Reader {
    path: Vec<Step>,
    duplicates: Vec<String>,
    /// How much more may be read.
    left: usize,
}

impl Default for Reader {
    /// Without a bound: JSON has no way to say more than it holds.
    fn default() -> Self {
        Self { path: Vec::new(), duplicates: Vec::new(), left: usize::MAX }
    }
}

enum Step {
    Field(String),
    Index(usize),
}

impl Reader {
    fn charge<E: Error>(&mut self, weight: usize) -> Result<(), E> {
        let left = self.left.checked_sub(weight);
        self.left = left.ok_or_else(|| E::custom("its aliases unfold to too much"))?;
        Ok(())
    }

    fn duplicate(&mut self, name: &str) {
        if self.duplicates.len() >= DUPLICATES_MAX {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        if !self.duplicates.contains(&path) {
            self.duplicates.push(path);
        }
    }
}

struct Seed<'a>(&'a mut Reader);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.charge(VALUE_WEIGHT)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that JSON does not have"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.0.charge(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.0.charge(value.len())?;
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let Self(reader) = self;
        let mut list = Vec::new();
        loop {
            reader.path.push(Step::Index(list.len()));
            let item = access.next_element_seed(Seed(reader))?;
            reader.path.pop();
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let Self(reader) = self;
        let mut map = Map::new();
        while let Some(name) = access.next_key_seed(Name)? {
            reader.charge(name.len())?;
            if map.contains_key(&name) {
                reader.duplicate(&name);
            }
            reader.path.push(Step::Field(name.clone()));
            let value = access.next_value_seed(Seed(reader))?;
            reader.path.pop();
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

/// A field's name. YAML has names that are no text; they become the text that they were written as.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Name {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_found_at_any_depth() {
        let cases = [
            (r#"{"a":1,"a":2}"#, json!({"a": 2}), vec!["a"]),
            (
                r#"{"metadata":{"name":"x","name":"y"},"data":{"a":"1","a":"2"}}"#,
                json!({"metadata": {"name": "y"}, "data": {"a": "2"}}),
                vec!["metadata.name", "data.a"],
            ),
            (r#"{"l":[{"a":1},{"b":1,"b":2}]}"#, json!({"l": [{"a": 1}, {"b": 2}]}), vec!["l[1].b"]),
            ("[1,-2,2.5,\"x\",null,true]", json!([1, -2, 2.5, "x", null, true]), vec![]),
        ];
        for (text, value, duplicates) in cases {
            let parsed = super::json(text.as_bytes()).unwrap();
            assert_eq!(parsed.value, value, "{text}");
            assert_eq!(parsed.duplicates, duplicates, "{text}");
        }
    }

    #[test]
    fn yaml_gives_the_same_values() {
        let text = b"a: 1\nb: [x, y]\nc:\n  1: one\n  true: yes\nd: 2020-01-01\ne: null\n";
        let expect =
            json!({"a": 1, "b": ["x", "y"], "c": {"1": "one", "true": "yes"}, "d": "2020-01-01", "e": null});
        assert_eq!(yaml(text).unwrap().value, expect);
    }

    #[test]
    fn what_is_refused() {
        for text in ["", " ", "{", "{nope", "{}x", "[1,]"] {
            super::json(text.as_bytes()).unwrap_err();
        }
        let deep = "[".repeat(100_000);
        super::json(deep.as_bytes()).unwrap_err();
        for text in ["a: [", "a: 1\n---\nb: 2", "\tx: 1", "a: .nan", "a: &x [*x]"] {
            yaml(text.as_bytes()).unwrap_err();
        }
    }

    /// Any JSON value, a few levels deep.
    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            prop::num::f64::NORMAL.prop_map(Value::from),
            "[a-z\\\\\"\u{e4} ]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z.]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_are_read_as_they_were_written(value in any_value()) {
            let expect = Parsed { value, duplicates: Vec::new() };
            prop_assert_eq!(&super::json(expect.value.to_string().as_bytes()).unwrap(), &expect);
            let text = serde_yaml_ng::to_string(&expect.value).unwrap();
            prop_assert_eq!(&yaml(text.as_bytes()).unwrap(), &expect);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = super::json(&bytes);
            let _ = yaml(&bytes);
        }

        #[test]
        fn no_request_line_is_too_strange(text in "[/%a-z0-9=&;,.*+ ]{0,48}") {
            let _ = crate::path::parse(&text);
            let query = crate::query::Query::parse(&text);
            let _ = crate::options::list(&query, query.flag("watch"));
            let _ = crate::negotiate::objects(Some(&text));
            let _ = crate::negotiate::discovery(Some(&text));
        }
    }
}
