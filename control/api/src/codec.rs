//! From JSON to a kind and back: types are checked, unknown fields reported by path, texts brought into their canonical form.
//!
//! One deserializer over JSON values drives k8s-openapi's own `Deserialize` code. On the way it does what Go's decoder and encoder do and
//! serde does not: numbers are fine as quantities, quantities become canonical, empty optional lists, maps and texts count as absent.

use std::fmt;

use serde::Serialize;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Visitor};
use serde_json::{Map, Value};

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

#[cfg(test)]
mod tests;
