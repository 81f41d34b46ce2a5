//! Reading JSON without losing sight of repeated keys.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, Visitor};
use serde_json::{Map, Number, Value};

/// Reads a JSON text and reports every repeated key by its path; the last value wins.
pub fn parse(bytes: &[u8], on_duplicate: &mut dyn FnMut(&str)) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let mut path = String::new();
    let value = Strict { path: &mut path, on_duplicate }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Reads any JSON and notices repeated keys.
struct Strict<'p, 'd> {
    path: &'p mut String,
    on_duplicate: &'d mut dyn FnMut(&str),
}

impl<'de> DeserializeSeed<'de> for Strict<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
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

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let length = self.path.len();
        loop {
            self.path.push_str(&format!("[{}]", list.len()));
            let seed = Strict { path: self.path, on_duplicate: self.on_duplicate };
            let item = items.next_element_seed(seed)?;
            self.path.truncate(length);
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let length = self.path.len();
        while let Some(key) = entries.next_key::<String>()? {
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            if object.contains_key(&key) {
                (self.on_duplicate)(self.path);
            }
            let seed = Strict { path: self.path, on_duplicate: self.on_duplicate };
            let value = entries.next_value_seed(seed)?;
            self.path.truncate(length);
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_named() {
        let mut seen = Vec::new();
        let text =
            br#"{"metadata":{"name":"dup","name":"dup2"},"list":[{"a":1,"a":2}],"data":{"a":"1","a":"2"}}"#;
        let value = parse(text, &mut |path| seen.push(path.to_owned())).unwrap();
        assert_eq!(seen, ["metadata.name", "list[0].a", "data.a"]);
        assert_eq!(value["metadata"]["name"], "dup2");
        assert!(parse(b"{} x", &mut |_| {}).is_err());
        assert!(parse(b"{nope", &mut |_| {}).is_err());
    }
}
