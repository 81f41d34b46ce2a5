//! The shape of every served type, found by watching k8s-openapi's own `Deserialize` code ask for its fields.
//!
//! Strategic merge patch, managedFields and OpenAPI all walk this one graph. What Rust types cannot say (merge keys, atomic lists) is in
//! [`crate::merge_keys`], and what is said of each field with [`crate::openapi`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Visitor};

use crate::merge_keys::{self, Rules};
use crate::resource::sendable;

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// A point in time, whole seconds.
    Time,
    /// A point in time with microseconds.
    MicroTime,
    /// Bytes in base64.
    Bytes,
    /// An integer of 32 bits.
    Int32,
    /// An integer of 64 bits.
    Int64,
    /// A floating point number.
    Double,
    /// True or false.
    Boolean,
    /// A resource quantity.
    Quantity,
    /// An integer or a text (ports, percentages).
    IntOrString,
    /// Any JSON.
    Any,
    /// A list.
    List(Box<Kind>),
    /// A map from texts.
    Map(Box<Kind>),
    /// A struct, by its id in the [`Schema`].
    Struct(String),
}

/// A struct.
#[derive(Clone, Debug, Default)]
pub struct Type {
    /// The short name, `PodSpec`.
    pub name: &'static str,
    /// The fields in the order of their names.
    pub fields: BTreeMap<&'static str, Field>,
    /// Whether an applier owns the struct as a whole.
    pub atomic: bool,
}

/// A field of a struct.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its type.
    pub kind: Kind,
    /// How lists and maps in it merge.
    pub rules: Rules,
}

/// All structs that served kinds are made of, by their OpenAPI name: `io.k8s.api.core.v1.PodSpec`.
#[derive(Debug, Default)]
pub struct Schema {
    types: BTreeMap<String, Type>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let mut schema = Schema::default();
    for resource in sendable() {
        resource.strategy.trace(&mut schema);
    }
    // Bodies of requests that are no kind of their own.
    schema.trace::<DeleteOptions>();
    schema.trace::<Eviction>();
    schema.trace::<Binding>();
    schema
});

/// The schema of all served kinds.
pub fn schema() -> &'static Schema {
    &SCHEMA
}

impl Schema {
    /// The struct of that id.
    pub fn get(&self, id: &str) -> Option<&Type> {
        self.types.get(id)
    }

    /// All structs.
    pub fn types(&self) -> impl Iterator<Item = (&str, &Type)> {
        self.types.iter().map(|(id, kind)| (id.as_str(), kind))
    }

    /// Adds `T` and all that it is made of, and says what it is.
    pub fn trace<T: DeserializeOwned>(&mut self) -> Kind {
        let mut kind = Kind::Any;
        // The probe answers every question with a valid value, so that this fails only for a type that nothing here serves; such a type is
        // then simply opaque.
        let _ = T::deserialize(Probe { schema: self, found: &mut kind, root: true });
        kind
    }
}

/// `k8s_openapi::v1_36::api::core::v1::pod_spec::PodSpec` -> `io.k8s.api.core.v1.PodSpec`.
pub fn openapi_id(path: &str) -> String {
    let mut segments: Vec<&str> = path.split("::").skip(2).collect();
    let name = segments.pop().unwrap_or_default();
    segments.pop();
    format!("io.k8s.{}.{name}", segments.join("."))
}

#[derive(Debug)]
struct Unanswerable(String);

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unanswerable {}

impl de::Error for Unanswerable {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Stands in for one value: notes as what it is wanted, and answers with an empty one.
struct Probe<'s> {
    schema: &'s mut Schema,
    found: &'s mut Kind,
    root: bool,
}

macro_rules! answers {
    ($($method:ident $visit:ident($answer:expr) $kind:ident;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unanswerable> {
            *self.found = Kind::$kind;
            visitor.$visit($answer)
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Unanswerable;

    answers! {
        deserialize_any visit_i64(0) IntOrString;
        deserialize_bool visit_bool(false) Boolean;
        deserialize_i8 visit_i8(0) Int32;
        deserialize_i16 visit_i16(0) Int32;
        deserialize_i32 visit_i32(0) Int32;
        deserialize_i64 visit_i64(0) Int64;
        deserialize_u8 visit_u8(0) Int32;
        deserialize_u16 visit_u16(0) Int32;
        deserialize_u32 visit_u32(0) Int64;
        deserialize_u64 visit_u64(0) Int64;
        deserialize_f32 visit_f32(0.0) Double;
        deserialize_f64 visit_f64(0.0) Double;
        deserialize_char visit_char('0') String;
        deserialize_str visit_str("") String;
        deserialize_string visit_str("") String;
        deserialize_bytes visit_str("") Bytes;
        deserialize_byte_buf visit_str("") Bytes;
        deserialize_identifier visit_str("") String;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unanswerable> {
        if std::any::type_name::<V::Value>().ends_with("::ByteString") {
            *self.found = Kind::Bytes;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unanswerable> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unanswerable> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unanswerable> {
        let (kind, answer) = match name {
            "Quantity" => (Kind::Quantity, "0"),
            "Time" => (Kind::Time, "1970-01-01T00:00:00Z"),
            "MicroTime" => (Kind::MicroTime, "1970-01-01T00:00:00.000000Z"),
            _ => (Kind::Any, ""),
        };
        *self.found = kind;
        visitor.visit_newtype_struct(de::value::StrDeserializer::new(answer))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unanswerable> {
        let mut item = Kind::Any;
        let answer = visitor.visit_seq(One { schema: self.schema, found: &mut item, left: 1 })?;
        *self.found = Kind::List(Box::new(item));
        Ok(answer)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Unanswerable> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Unanswerable> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unanswerable> {
        let mut value = Kind::Any;
        let answer = visitor.visit_map(One { schema: self.schema, found: &mut value, left: 1 })?;
        *self.found = Kind::Map(Box::new(value));
        Ok(answer)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unanswerable> {
        let id = openapi_id(std::any::type_name::<V::Value>());
        *self.found = Kind::Struct(id.clone());
        let known = self.schema.types.contains_key(&id);
        // The entry comes first, so that a type that contains itself ends the walk.
        self.schema.types.entry(id.clone()).or_insert_with(|| Type {
            name,
            fields: BTreeMap::new(),
            atomic: merge_keys::is_atomic(name),
        });
        let mut traced = BTreeMap::new();
        if self.root {
            for field in ["apiVersion", "kind"] {
                traced.insert(field, Field { kind: Kind::String, rules: Rules::default() });
            }
        }
        let walk = Fields {
            schema: self.schema,
            name,
            fields: if known { &[] } else { fields },
            root: self.root,
            traced: &mut traced,
            current: "",
        };
        let answer = visitor.visit_map(walk)?;
        if !known && let Some(kind) = self.schema.types.get_mut(&id) {
            kind.fields = traced;
        }
        Ok(answer)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unanswerable> {
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unanswerable> {
        visitor.visit_unit()
    }
}

/// A list or map of one element.
struct One<'s> {
    schema: &'s mut Schema,
    found: &'s mut Kind,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for One<'_> {
    type Error = Unanswerable;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Unanswerable> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left = 0;
        seed.deserialize(Probe { schema: self.schema, found: self.found, root: false }).map(Some)
    }
}

impl<'de> de::MapAccess<'de> for One<'_> {
    type Error = Unanswerable;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Unanswerable> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left = 0;
        seed.deserialize(de::value::StrDeserializer::new("key")).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Unanswerable> {
        seed.deserialize(Probe { schema: self.schema, found: self.found, root: false })
    }
}

/// A struct's fields, one after the other.
struct Fields<'s> {
    schema: &'s mut Schema,
    name: &'static str,
    fields: &'static [&'static str],
    /// Whether the struct is a kind's own: its kind and version are constants that an empty answer would break.
    root: bool,
    traced: &'s mut BTreeMap<&'static str, Field>,
    current: &'static str,
}

impl<'de> de::MapAccess<'de> for Fields<'_> {
    type Error = Unanswerable;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Unanswerable> {
        let first = loop {
            let Some((first, rest)) = self.fields.split_first() else { return Ok(None) };
            self.fields = rest;
            if !(self.root && matches!(*first, "apiVersion" | "kind")) {
                break first;
            }
        };
        self.current = first;
        seed.deserialize(de::value::BorrowedStrDeserializer::new(first)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Unanswerable> {
        let mut kind = Kind::Any;
        let answer = seed.deserialize(Probe { schema: self.schema, found: &mut kind, root: false })?;
        self.traced.insert(self.current, Field { kind, rules: merge_keys::rules(self.name, self.current) });
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_traced() {
        for resource in sendable() {
            let Kind::Struct(id) = resource.strategy.kind() else { panic!("{} is no struct", resource.kind) };
            assert!(id.ends_with(&format!(".v1.{}", resource.kind)), "{id}");
            let fields = &schema().get(&id).expect(&id).fields;
            assert!(fields.contains_key("metadata") && fields.contains_key("kind"), "{id}: {fields:?}");
            assert_ne!(fields["metadata"].kind, Kind::Any);
        }
    }

    #[test]
    fn field_types() {
        let check = |id: &str, field: &str, expect: Kind| {
            let kind = schema().get(id).unwrap_or_else(|| panic!("{id}"));
            assert_eq!(kind.fields[field].kind, expect, "{id} {field}");
        };
        let pod_spec = "io.k8s.api.core.v1.PodSpec";
        let container = "io.k8s.api.core.v1.Container";
        check(pod_spec, "containers", Kind::List(Box::new(Kind::Struct(container.to_owned()))));
        check(pod_spec, "terminationGracePeriodSeconds", Kind::Int64);
        check(pod_spec, "hostNetwork", Kind::Boolean);
        check(pod_spec, "nodeSelector", Kind::Map(Box::new(Kind::String)));
        check("io.k8s.api.core.v1.ServicePort", "targetPort", Kind::IntOrString);
        check("io.k8s.api.core.v1.Secret", "data", Kind::Map(Box::new(Kind::Bytes)));
        check("io.k8s.api.core.v1.ResourceRequirements", "limits", Kind::Map(Box::new(Kind::Quantity)));
        check("io.k8s.api.coordination.v1.LeaseSpec", "renewTime", Kind::MicroTime);
        check("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "creationTimestamp", Kind::Time);
        check("io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry", "fieldsV1", Kind::Any);
    }

    #[test]
    fn every_rule_names_a_field_that_exists() {
        for (name, field, _) in merge_keys::RULES {
            let found =
                schema().types().any(|(_, kind)| kind.name == *name && kind.fields.contains_key(field));
            assert!(found, "{name}.{field} is no field of a served type");
        }
    }
}
