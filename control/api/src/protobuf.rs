//! Decoding of Kubernetes' protobuf bodies, which some clients send whatever the server offers (`kubectl create configmap`, helm).
//!
//! The traced [`crate::schema`] says what a field is; `protobuf/fields.txt` adds the one thing that it cannot know, the field numbers: a
//! line a message, `number=field`, where `+Message` is a message whose fields JSON has in the outer object. Fields that the table does not
//! know are skipped, as protobuf demands. Encoding is deliberately absent: every client accepts JSON replies.

mod wire;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::names::{rfc3339, rfc3339_micro};
use crate::resource::sendable;
use crate::schema::{Kind, Type, schema};
use wire::{Field, Payload, fields};

/// What every protobuf body of Kubernetes begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// Why a protobuf body cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The first four bytes are not those of Kubernetes.
    #[error("the body does not begin with the prefix of a Kubernetes protobuf message")]
    NoMagic,
    /// The body ends within a field, or a length or number is impossible.
    #[error("the protobuf body is malformed: {0}")]
    Malformed(&'static str),
    /// The kind is none that this server can decode.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind {
        /// `apiVersion` of the body.
        api_version: String,
        /// `kind` of the body.
        kind: String,
    },
    /// The body is compressed or encrypted in some way.
    #[error("the content encoding \"{0}\" of a protobuf body is not supported")]
    Encoding(String),
}

/// Where a message's fields go.
enum Place {
    Field(&'static str),
    /// The fields of this message are fields of the outer object.
    Inline(&'static str),
}

type Numbers = BTreeMap<u32, Place>;

static MESSAGES: LazyLock<BTreeMap<&'static str, Numbers>> = LazyLock::new(|| {
    include_str!("protobuf/fields.txt")
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let name = words.next()?;
            let numbers = words.filter_map(|word| {
                let (number, field) = word.split_once('=')?;
                let place = match field.strip_prefix('+') {
                    Some(message) => Place::Inline(message),
                    None => Place::Field(field),
                };
                Some((number.parse().ok()?, place))
            });
            Some((name, numbers.collect()))
        })
        .collect()
});

/// Numbers and truth values that mean something when they are zero or false. Everywhere else Go's encoder writes what is merely unset.
const MEANINGFUL_ZERO: [&str; 36] = [
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "blockOwnerDeletion",
    "controller",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "expirationSeconds",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseDurationSeconds",
    "leaseTransitions",
    "mode",
    "optional",
    "orphanDependents",
    "port",
    "priority",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "terminating",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
];

/// Decodes a body into the object that it is, `apiVersion` and `kind` included.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let (mut api_version, mut kind, mut raw, mut encoding) =
        (String::new(), String::new(), &[][..], String::new());
    for field in fields(body) {
        let field = field?;
        match field.number {
            1 => {
                for part in fields(field.bytes()?) {
                    let part = part?;
                    match part.number {
                        1 => api_version = part.text()?,
                        2 => kind = part.text()?,
                        _ => {}
                    }
                }
            }
            2 => raw = field.bytes()?,
            3 => encoding = field.text()?,
            _ => {}
        }
    }
    if !encoding.is_empty() {
        return Err(ProtobufError::Encoding(encoding));
    }
    let known = sendable().find(|known| known.kind == kind && known.api_version() == api_version);
    let id = match (kind.as_str(), known.map(|resource| resource.strategy.kind())) {
        (_, Some(Kind::Struct(id))) => id,
        ("DeleteOptions", _) => "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions".to_owned(),
        ("Eviction", _) => "io.k8s.api.policy.v1.Eviction".to_owned(),
        ("Binding", _) => "io.k8s.api.core.v1.Binding".to_owned(),
        _ => return Err(ProtobufError::UnknownKind { api_version, kind }),
    };
    let known = schema()
        .get(&id)
        .ok_or_else(|| ProtobufError::UnknownKind { api_version: api_version.clone(), kind: kind.clone() })?;
    let mut object = Map::new();
    message(raw, known, numbers(&id, known), &mut object)?;
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

/// The field numbers of a struct. Where two share a name, one is in the table by its id.
fn numbers(id: &str, known: &Type) -> Option<&'static Numbers> {
    MESSAGES.get(id).or_else(|| MESSAGES.get(known.name))
}

fn message(
    bytes: &[u8],
    known: &Type,
    numbers: Option<&Numbers>,
    object: &mut Map<String, Value>,
) -> Result<(), ProtobufError> {
    let Some(numbers) = numbers else { return Ok(()) };
    for field in fields(bytes) {
        let field = field?;
        match numbers.get(&field.number) {
            Some(Place::Inline(inner)) => message(field.bytes()?, known, MESSAGES.get(inner), object)?,
            Some(Place::Field(name)) => {
                if let Some(declared) = known.fields.get(name) {
                    add(object, name, &declared.kind, &field)?;
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// Adds one occurrence of a field: lists and maps come an item at a time.
fn add(
    object: &mut Map<String, Value>,
    name: &str,
    kind: &Kind,
    field: &Field<'_>,
) -> Result<(), ProtobufError> {
    match kind {
        Kind::List(item) => {
            let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let value = single(item, field)?.unwrap_or_default();
            if let Value::Array(items) = list {
                items.push(value);
            }
        }
        Kind::Map(value) => {
            let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            let (mut key, mut item) = (String::new(), None);
            for part in fields(field.bytes()?) {
                let part = part?;
                match part.number {
                    1 => key = part.text()?,
                    2 => item = single(value, &part)?,
                    _ => {}
                }
            }
            let item = item.unwrap_or_else(|| match **value {
                Kind::String | Kind::Bytes => json!(""),
                _ => Value::Null,
            });
            if let Value::Object(entries) = map {
                entries.insert(key, item);
            }
        }
        _ => {
            let Some(value) = single(kind, field)? else { return Ok(()) };
            let unset = value == 0 || value == false;
            if !unset || MEANINGFUL_ZERO.contains(&name) {
                object.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// One value; None for a point in time that was never set.
fn single(kind: &Kind, field: &Field<'_>) -> Result<Option<Value>, ProtobufError> {
    Ok(Some(match kind {
        Kind::String => json!(field.text()?),
        Kind::Bytes => json!(STANDARD.encode(field.bytes()?)),
        Kind::Int32 | Kind::Int64 => json!(field.integer()?),
        Kind::Boolean => json!(field.integer()? != 0),
        Kind::Double => match field.payload {
            Payload::Fixed64(bits) => json!(f64::from_bits(bits)),
            _ => return Err(ProtobufError::Malformed("a floating point number is none")),
        },
        Kind::Quantity => json!(part_of(field, 1)?.map(|part| part.text()).transpose()?.unwrap_or_default()),
        Kind::Any => {
            let raw = part_of(field, 1)?;
            let bytes = raw.as_ref().map(Field::bytes).transpose()?.unwrap_or_default();
            serde_json::from_slice(bytes)
                .map_err(|_| ProtobufError::Malformed("JSON inside a protobuf body is none"))?
        }
        Kind::IntOrString => match part_of(field, 1)?.map(|part| part.integer()).transpose()? {
            Some(1) => json!(part_of(field, 3)?.map(|part| part.text()).transpose()?.unwrap_or_default()),
            _ => json!(part_of(field, 2)?.map(|part| part.integer()).transpose()?.unwrap_or_default()),
        },
        Kind::Time | Kind::MicroTime => {
            if field.bytes()?.is_empty() {
                return Ok(None);
            }
            let part = |number| -> Result<i64, ProtobufError> {
                Ok(part_of(field, number)?.map(|part| part.integer()).transpose()?.unwrap_or_default())
            };
            let (seconds, nanos) = (part(1)?, i32::try_from(part(2)?).unwrap_or_default());
            let at = Timestamp::new(seconds, nanos)
                .map_err(|_| ProtobufError::Malformed("a point in time is out of range"))?;
            json!(if *kind == Kind::Time { rfc3339(at) } else { rfc3339_micro(at) })
        }
        Kind::Struct(id) => {
            let mut object = Map::new();
            if let Some(known) = schema().get(id) {
                message(field.bytes()?, known, numbers(id, known), &mut object)?;
            }
            Value::Object(object)
        }
        Kind::List(_) | Kind::Map(_) => return Err(ProtobufError::Malformed("a list of lists")),
    }))
}

/// The last occurrence of a field of a message.
fn part_of<'b>(field: &Field<'b>, number: u32) -> Result<Option<Field<'b>>, ProtobufError> {
    let mut found = None;
    for part in fields(field.bytes()?) {
        let part = part?;
        if part.number == number {
            found = Some(part);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
