//! From JSON to a kind and back: types are checked, unknown fields reported by path, texts brought into their canonical form.
//!
//! One deserializer over JSON values drives k8s-openapi's own `Deserialize` code. On the way it does what Go's decoder and encoder do and
//! serde does not: numbers are fine as quantities, quantities become canonical, empty optional lists, maps and texts count as absent.

use std::fmt;

use serde::Serialize;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Visitor};
use serde_json::{Map, Number, Value};

use crate::quantity::Quantity;
use crate::resource::DecodeError;

/// Optional maps that count as absent when they are empty. Empty structs (`emptyDir: {}`) mean something and stay.
const MAP_FIELDS: [&str; 13] = [
    "allocatable",
    "annotations",
    "binaryData",
    "capacity",
    "data",
    "labels",
    "limits",
    "matchLabels",
    "nodeSelector",
    "overhead",
    "requests",
    "stringData",
    "volumeAttributes",
];

/// Optional texts whose empty value means something of its own.
const MEANINGFUL_EMPTY: [(&str, &str); 7] = [
    ("HostPathVolumeSource", "type"),
    ("EndpointPort", "name"),
    ("EndpointPort", "appProtocol"),
    ("GRPCAction", "service"),
    ("LeaseSpec", "holderIdentity"),
    ("PersistentVolumeClaimSpec", "storageClassName"),
    ("ServicePort", "appProtocol"),
];

/// Reads a JSON text and reports every repeated key by its path; the last value wins.
pub fn parse(bytes: &[u8], on_duplicate: &mut dyn FnMut(&str)) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let mut path = String::new();
    let value = Strict { path: &mut path, on_duplicate }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Decodes into `T` and encodes again. Fields that `T` does not have are dropped, each path goes to `on_unknown`.
pub fn normalize<T: DeserializeOwned + Serialize>(
    value: Value,
    on_unknown: &mut dyn FnMut(&str),
) -> Result<Value, DecodeError> {
    serde_json::to_value(decode::<T>(value, on_unknown)?)
        .map_err(|error| DecodeError { path: String::new(), message: error.to_string() })
}

/// Decodes into `T`.
pub fn decode<T: DeserializeOwned>(value: Value, on_unknown: &mut dyn FnMut(&str)) -> Result<T, DecodeError> {
    let mut context = Context { path: Vec::new(), on_unknown };
    T::deserialize(Reader { value, context: &mut context, owner: "", optional: false })
}

#[derive(Clone)]
enum Segment {
    Field(String),
    Key(String),
    Index(usize),
}

struct Context<'u> {
    path: Vec<Segment>,
    on_unknown: &'u mut dyn FnMut(&str),
}

impl Context<'_> {
    fn path(&self) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Field(name) | Segment::Key(name) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(name);
                }
                Segment::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }

    /// The path as Go's decoder writes it: declared fields only.
    fn fields(&self) -> String {
        let names = self.path.iter().filter_map(|segment| match segment {
            Segment::Field(name) => Some(name.as_str()),
            _ => None,
        });
        names.collect::<Vec<_>>().join(".")
    }

    fn last_field(&self) -> &str {
        match self.path.last() {
            Some(Segment::Field(name)) => name,
            _ => "",
        }
    }
}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: String::new(), message: message.to_string() }
    }
}

struct Reader<'c, 'u> {
    value: Value,
    context: &'c mut Context<'u>,
    /// The struct whose field this is.
    owner: &'static str,
    optional: bool,
}

impl Reader<'_, '_> {
    fn mismatch(&self, wanted: &str) -> DecodeError {
        let got = match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let place = match self.owner {
            "" => "Go value".to_owned(),
            owner => format!("Go struct field {owner}.{}", self.context.fields()),
        };
        self.error(format!("json: cannot unmarshal {got} into {place} of type {wanted}"))
    }

    fn error(&self, message: String) -> DecodeError {
        DecodeError { path: self.context.path(), message }
    }

    fn integer(&self, wanted: &str) -> Result<i64, DecodeError> {
        match &self.value {
            Value::Number(number) => number.as_i64().ok_or_else(|| {
                let place = format!("{}.{}", self.owner, self.context.fields());
                self.error(format!(
                    "json: cannot unmarshal number {number} into Go struct field {place} of type {wanted}"
                ))
            }),
            _ => Err(self.mismatch(wanted)),
        }
    }

    fn ranged<N: TryFrom<i64>>(&self, wanted: &str) -> Result<N, DecodeError> {
        N::try_from(self.integer(wanted)?).map_err(|_| self.mismatch(wanted))
    }

    fn counts_as_absent(&self) -> bool {
        let field = self.context.last_field();
        match &self.value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(entries) => {
                entries.is_empty()
                    && (MAP_FIELDS.contains(&field) || (self.owner == "ServiceSpec" && field == "selector"))
            }
            Value::String(text) => text.is_empty() && !MEANINGFUL_EMPTY.contains(&(self.owner, field)),
            _ => false,
        }
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $kind:ty;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            visitor.$visit(self.ranged::<$kind>(stringify!($kind).replace('i', "int").as_str())?)
        })*
    };
}

impl<'de> Deserializer<'de> for Reader<'_, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Number(ref number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_i64(value),
                (_, Some(value), _) => visitor.visit_u64(value),
                (_, _, Some(value)) => visitor.visit_f64(value),
                _ => Err(self.mismatch("number")),
            },
            Value::String(value) => visitor.visit_string(value),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.mismatch("bool")),
        }
    }

    integers! {
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value.as_f64() {
            Some(value) => visitor.visit_f64(value),
            None => Err(self.mismatch("float64")),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::String(value) => visitor.visit_string(value),
            Value::Null => visitor.visit_str(""),
            _ => Err(self.mismatch("string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, DecodeError> {
        // k8s-openapi reads a field as an Option of its (maybe optional) type, so that this is entered twice for one value.
        if !self.optional && self.counts_as_absent() {
            return visitor.visit_none();
        }
        self.optional = true;
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match name {
            "Quantity" => {
                let text = match &self.value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    _ => return Err(self.mismatch("resource.Quantity")),
                };
                let text = Quantity::canonical(&text).map_err(|error| self.error(error.to_string()))?;
                self.value = Value::String(text);
            }
            "Time" | "MicroTime" => match &self.value {
                Value::String(text) if text.parse::<jiff::Timestamp>().is_err() => {
                    return Err(self.error(format!(
                        "parsing time \"{text}\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"{text}\" as \"2006\""
                    )));
                }
                Value::String(_) => {}
                _ => return Err(self.mismatch("time.Time")),
            },
            _ => {}
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let Value::Array(items) = self.value else {
            return Err(self.mismatch("list"));
        };
        visitor.visit_seq(Items {
            items: items.into_iter().enumerate(),
            context: self.context,
            owner: self.owner,
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let Value::Object(entries) = self.value else {
            return Err(self.mismatch("map"));
        };
        visitor.visit_map(Entries {
            entries: entries.into_iter(),
            value: None,
            context: self.context,
            owner: self.owner,
            declared: false,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let entries = match self.value {
            Value::Object(entries) => entries,
            Value::Null => Map::new(),
            _ => return Err(self.mismatch(name)),
        };
        visitor.visit_map(Entries {
            entries: entries.into_iter(),
            value: None,
            context: self.context,
            owner: name,
            declared: true,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_any(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let path = self.context.path();
        (self.context.on_unknown)(&path);
        visitor.visit_unit()
    }
}

struct Items<'c, 'u> {
    items: std::iter::Enumerate<std::vec::IntoIter<Value>>,
    context: &'c mut Context<'u>,
    owner: &'static str,
}

impl<'de> de::SeqAccess<'de> for Items<'_, '_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        self.context.path.push(Segment::Index(index));
        let item =
            seed.deserialize(Reader { value, context: self.context, owner: self.owner, optional: true })?;
        self.context.path.pop();
        Ok(Some(item))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'c, 'u> {
    entries: serde_json::map::IntoIter,
    value: Option<Value>,
    context: &'c mut Context<'u>,
    owner: &'static str,
    /// Whether the keys are a struct's fields.
    declared: bool,
}

impl<'de> de::MapAccess<'de> for Entries<'_, '_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        let segment = if self.declared { Segment::Field(key.clone()) } else { Segment::Key(key.clone()) };
        self.context.path.push(segment);
        seed.deserialize(de::value::StringDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, DecodeError> {
        let value = self.value.take().unwrap_or_default();
        let item = seed.deserialize(Reader {
            value,
            context: self.context,
            owner: self.owner,
            optional: !self.declared,
        })?;
        self.context.path.pop();
        Ok(item)
    }
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
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
    use serde_json::json;

    use super::*;

    fn unknown_of<T: DeserializeOwned + Serialize>(value: Value) -> (Value, Vec<String>) {
        let mut unknown = Vec::new();
        let value = normalize::<T>(value, &mut |path| unknown.push(path.to_owned())).unwrap();
        (value, unknown)
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let (value, unknown) = unknown_of::<Pod>(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "uk", "nolabel": 1},
            "spec": {"containers": [{"name": "c", "image": "x", "imagee": "y"}], "nope": {"deep": true}},
        }));
        assert_eq!(unknown, ["metadata.nolabel", "spec.containers[0].imagee", "spec.nope"]);
        assert_eq!(value["spec"], json!({"containers": [{"name": "c", "image": "x"}]}));
    }

    #[test]
    fn canonical_forms() {
        let (value, unknown) = unknown_of::<Pod>(json!({
            "metadata": {"name": "a", "labels": {}, "creationTimestamp": null},
            "spec": {"priorityClassName": "", "nodeSelector": {}, "volumes": [{"name": "e", "emptyDir": {}}],
                "containers": [{"name": "c", "args": [], "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}}}]},
        }));
        assert!(unknown.is_empty());
        assert_eq!(value["metadata"], json!({"name": "a"}));
        assert_eq!(
            value["spec"],
            json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}],
                "volumes": [{"name": "e", "emptyDir": {}}]})
        );
    }

    #[test]
    fn type_errors_name_the_field() {
        fn check<T: DeserializeOwned>(value: Value, path: &str, message: &str) {
            let error = decode::<T>(value, &mut |_| {}).err().expect("an error");
            assert_eq!((error.path.as_str(), error.message.as_str()), (path, message));
        }
        check::<Deployment>(
            json!({"spec": {"replicas": "3"}}),
            "spec.replicas",
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        );
        check::<ConfigMap>(
            json!({"data": {"a": 1}}),
            "data.a",
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        );
        check::<Pod>(
            json!({"metadata": {"name": true}}),
            "metadata.name",
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string",
        );
        check::<Pod>(
            json!({"spec": {"containers": {}}}),
            "spec.containers",
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type list",
        );
        check::<ConfigMap>(
            json!({"metadata": {"deletionTimestamp": "yesterday"}}),
            "metadata.deletionTimestamp",
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\"",
        );
        check::<Pod>(
            json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "abc"}}}]}}),
            "spec.containers[0].resources.limits.cpu",
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        );
        assert!(decode::<Secret>(json!({"data": {"a": "***"}}), &mut |_| {}).is_err());
    }

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
