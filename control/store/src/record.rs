//! What the store keeps of an object.
//!
//! An object is parsed once, when a [`Draft`] is made of it: its JSON is written down without `resourceVersion` and
//! without `managedFields`, and the place where they go is remembered. Reading copies bytes and splices the two in.
//! Labels, the fields that selectors need and the uid lie beside the JSON, so that a selector never parses it.
//!
//! Deliberately absent: any behaviour of the object.

use bytes::Bytes;
use serde_json::Value;

use crate::Revision;
use crate::codec::{self, DecodeError, Reader, put_bytes, put_u32, put_u64};

/// Version of a record's bytes at rest.
const RECORD_VERSION: u8 = 1;
/// Version of a draft's bytes, wherever it travels.
const DRAFT_VERSION: u8 = 1;

/// `resourceVersion` and `managedFields` have a place in the body.
const HAS_SLOT: u8 = 1;
/// Something precedes the slot, so that a comma is needed.
const SLOT_COMMA: u8 = 2;

/// An object as it is proposed: everything of a [`Record`] but its revisions. Immutable, cheap to clone.
#[derive(Clone)]
pub struct Draft {
    bytes: Bytes,
    flags: u8,
    slot: u32,
    labels: u32,
    fields: u32,
    managed: u32,
    body: u32,
}

impl Draft {
    /// Writes an object down. Labels and uid are taken from its `metadata`; `fields` are the values that field
    /// selectors may ask for.
    pub fn new<K, V>(object: &Value, fields: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        let mut body = Vec::with_capacity(512);
        let mut flags = 0;
        let mut slot = 0;
        let mut managed = Vec::new();
        let metadata = object.get("metadata").and_then(Value::as_object);
        match (object.as_object(), metadata) {
            (Some(object), Some(metadata)) => {
                body.push(b'{');
                for (index, (name, value)) in object.iter().enumerate() {
                    if index > 0 {
                        body.push(b',');
                    }
                    write_name(&mut body, name);
                    if name != "metadata" {
                        write_value(&mut body, value);
                        continue;
                    }
                    body.push(b'{');
                    flags |= HAS_SLOT;
                    for (name, value) in metadata {
                        match (name.as_str(), value) {
                            ("resourceVersion", _) => continue,
                            ("managedFields", Value::Array(list)) if !list.is_empty() => {
                                write_value(&mut managed, value);
                            }
                            ("managedFields", _) => {}
                            _ => {
                                if flags & SLOT_COMMA != 0 {
                                    body.push(b',');
                                }
                                flags |= SLOT_COMMA;
                                write_name(&mut body, name);
                                write_value(&mut body, value);
                            }
                        }
                    }
                    slot = body.len();
                    body.push(b'}');
                }
                body.push(b'}');
            }
            _ => write_value(&mut body, object),
        }
        let labels = metadata.and_then(|metadata| metadata.get("labels")).and_then(Value::as_object);
        let labels = labels.into_iter().flatten().filter_map(|(name, value)| Some((name, value.as_str()?)));
        let uid = metadata.and_then(|metadata| metadata.get("uid")).and_then(Value::as_str).unwrap_or("");
        Self::assemble(flags, slot, uid, labels, fields, &managed, &body)
    }

    /// A value that is no Kubernetes object, kept as it is.
    #[must_use]
    pub fn opaque(body: &[u8]) -> Self {
        let none: [(&str, &str); 0] = [];
        Self::assemble(0, 0, "", none, none, &[], body)
    }

    fn assemble<L: AsRef<str>, M: AsRef<str>, K: AsRef<str>, V: AsRef<str>>(
        flags: u8,
        slot: usize,
        uid: &str,
        labels: impl IntoIterator<Item = (L, M)>,
        fields: impl IntoIterator<Item = (K, V)>,
        managed: &[u8],
        body: &[u8],
    ) -> Self {
        let slot = codec::len32(slot);
        let mut out = Vec::with_capacity(64 + uid.len() + managed.len() + body.len());
        out.extend_from_slice(&[DRAFT_VERSION, flags]);
        put_u32(&mut out, slot);
        put_bytes(&mut out, uid.as_bytes());
        let labels_at = write_pairs(&mut out, labels);
        let fields_at = write_pairs(&mut out, fields);
        let managed_at = codec::len32(out.len());
        put_bytes(&mut out, managed);
        let body_at = codec::len32(out.len());
        put_bytes(&mut out, body);
        out.shrink_to_fit();
        let bytes = Bytes::from(out);
        Self { bytes, flags, slot, labels: labels_at, fields: fields_at, managed: managed_at, body: body_at }
    }

    /// Reads a draft back from its bytes, which may come from anywhere.
    pub(crate) fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&bytes);
        let version = reader.u8()?;
        if version != DRAFT_VERSION {
            return Err(DecodeError::Version { found: version, known: DRAFT_VERSION });
        }
        let flags = reader.u8()?;
        let slot = reader.u32()?;
        reader.str()?;
        let labels = codec::len32(reader.at());
        check_pairs(&mut reader)?;
        let fields = codec::len32(reader.at());
        check_pairs(&mut reader)?;
        let managed = codec::len32(reader.at());
        reader.bytes()?;
        let body = codec::len32(reader.at());
        let body_len = reader.bytes()?.len();
        reader.end()?;
        if slot as usize > body_len || flags & !(HAS_SLOT | SLOT_COMMA) != 0 {
            return Err(DecodeError::Malformed("the slot of a draft"));
        }
        Ok(Self { flags, slot, labels, fields, managed, body, bytes })
    }

    pub(crate) fn encoded(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes that the draft takes, in memory and at rest.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The record that this draft becomes when it is committed at `revision`. `created` is the revision at which its
    /// key came to be: the same one if it is new.
    #[must_use]
    pub fn at(&self, revision: Revision, created: Revision) -> Record {
        Record { revision, created, draft: self.clone() }
    }

    fn span(&self, at: u32) -> &[u8] {
        let span = self.bytes.get(at as usize..).and_then(|rest| Reader::new(rest).bytes().ok());
        span.unwrap_or_default()
    }

    /// The object's JSON without `resourceVersion` and `managedFields`.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.span(self.body)
    }

    /// The same object with its body edited in place. What lies beside the body stays: an edit keeps the JSON's shape and
    /// touches no label, field or uid.
    #[must_use]
    pub fn with_body(&self, edit: impl FnOnce(&mut [u8])) -> Self {
        let mut bytes = self.bytes.to_vec();
        let len = self.body().len();
        let end = bytes.len();
        // The body is the last thing in the bytes.
        edit(&mut bytes[end - len..]);
        Self { bytes: bytes.into(), ..*self }
    }

    /// The JSON array of `managedFields`; empty if there is none.
    #[must_use]
    pub fn managed_fields(&self) -> &[u8] {
        self.span(self.managed)
    }

    /// The object's uid; empty if it has none.
    #[must_use]
    pub fn uid(&self) -> &str {
        std::str::from_utf8(self.span(6)).unwrap_or_default()
    }

    /// The object's labels.
    #[must_use]
    pub fn labels(&self) -> Pairs<'_> {
        Pairs::new(&self.bytes, self.labels)
    }

    /// The values that field selectors may ask for.
    #[must_use]
    pub fn fields(&self) -> Pairs<'_> {
        Pairs::new(&self.bytes, self.fields)
    }
}

impl PartialEq for Draft {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Draft {}

impl std::fmt::Debug for Draft {
    /// Never shows the body: it may be a Secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft").field("uid", &self.uid()).field("bytes", &self.bytes.len()).finish()
    }
}

/// An object as it was committed. Immutable, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    revision: Revision,
    created: Revision,
    draft: Draft,
}

impl Record {
    /// The revision at which the object took this shape: its `resourceVersion`.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision at which the object's key came to be.
    #[must_use]
    pub fn created(&self) -> Revision {
        self.created
    }

    /// What was proposed.
    #[must_use]
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// See [`Draft::body`].
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.draft.body()
    }

    /// See [`Draft::uid`].
    #[must_use]
    pub fn uid(&self) -> &str {
        self.draft.uid()
    }

    /// See [`Draft::labels`].
    #[must_use]
    pub fn labels(&self) -> Pairs<'_> {
        self.draft.labels()
    }

    /// See [`Draft::fields`].
    #[must_use]
    pub fn fields(&self) -> Pairs<'_> {
        self.draft.fields()
    }

    /// Bytes that the record takes at rest.
    #[must_use]
    pub fn size(&self) -> usize {
        codec::SEAL_BYTES + 16 + self.draft.size()
    }

    /// The same object under another revision: a deletion is told with the deletion's own.
    #[must_use]
    pub fn with_revision(&self, revision: Revision) -> Self {
        Self { revision, ..self.clone() }
    }

    /// The same object with its body edited in place: see [`Draft::with_body`].
    #[must_use]
    pub fn with_body(&self, edit: impl FnOnce(&mut [u8])) -> Self {
        Self { draft: self.draft.with_body(edit), ..*self }
    }

    /// The object's JSON with `managedFields`, and with `resourceVersion` unless its revision is 0.
    #[must_use]
    pub fn json(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.draft.size() + 64);
        self.write_json(&mut out, true);
        Bytes::from(out)
    }

    /// Appends the object's JSON with `resourceVersion`, and with `managedFields` if they are wanted.
    pub fn write_json(&self, out: &mut Vec<u8>, managed_fields: bool) {
        let body = self.body();
        if self.draft.flags & HAS_SLOT == 0 {
            out.extend_from_slice(body);
            return;
        }
        // `decode` has checked that the slot lies inside the body.
        let (before, after) = body.split_at(self.draft.slot as usize);
        out.extend_from_slice(before);
        let mut comma = self.draft.flags & SLOT_COMMA != 0;
        let mut add = |name: &[u8], value: &[u8]| {
            if std::mem::replace(&mut comma, true) {
                out.push(b',');
            }
            out.extend_from_slice(name);
            out.extend_from_slice(value);
        };
        let managed = self.draft.managed_fields();
        if managed_fields && !managed.is_empty() {
            add(b"\"managedFields\":", managed);
        }
        // What was never written has no version.
        if self.revision > Revision(0) {
            add(b"\"resourceVersion\":", format!("\"{}\"", self.revision).as_bytes());
        }
        out.extend_from_slice(after);
    }

    /// Parses the object, `resourceVersion` and `managedFields` included.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        self.parse()
    }

    /// Parses the object into a type, `resourceVersion` and `managedFields` included.
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.json())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = codec::unsealed(16 + self.draft.size());
        put_u64(&mut out, self.revision.0);
        put_u64(&mut out, self.created.0);
        out.extend_from_slice(self.draft.encoded());
        codec::seal(out, RECORD_VERSION)
    }

    /// Reads a record from bytes that may come from anywhere.
    pub fn decode(input: &[u8]) -> Result<Self, DecodeError> {
        let body = codec::open(input, RECORD_VERSION)?;
        let mut reader = Reader::new(body);
        let revision = Revision(reader.u64()?);
        let created = Revision(reader.u64()?);
        let draft = Draft::decode(Bytes::copy_from_slice(&body[reader.at()..]))?;
        Ok(Self { revision, created, draft })
    }
}

/// Name and value pairs inside a draft, in the order in which they were given.
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Pairs<'a> {
    fn new(draft: &'a [u8], at: u32) -> Self {
        let mut reader = Reader::new(draft.get(at as usize..).unwrap_or_default());
        let left = reader.u32().unwrap_or_default();
        Self { rest: &draft[(at as usize + reader.at()).min(draft.len())..], left }
    }

    /// The value under a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.clone().find(|(found, _)| *found == name).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader::new(self.rest);
        let pair = (reader.str().ok()?, reader.str().ok()?);
        self.rest = &self.rest[reader.at()..];
        Some(pair)
    }
}

fn write_pairs<K: AsRef<str>, V: AsRef<str>>(
    out: &mut Vec<u8>,
    pairs: impl IntoIterator<Item = (K, V)>,
) -> u32 {
    let at = out.len();
    put_u32(out, 0);
    let mut count = 0u32;
    for (name, value) in pairs {
        put_bytes(out, name.as_ref().as_bytes());
        put_bytes(out, value.as_ref().as_bytes());
        count += 1;
    }
    out[at..at + 4].copy_from_slice(&count.to_le_bytes());
    codec::len32(at)
}

fn check_pairs(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    for _ in 0..reader.u32()? {
        reader.str()?;
        reader.str()?;
    }
    Ok(())
}

fn write_name(out: &mut Vec<u8>, name: &str) {
    write_json(out, name);
    out.push(b':');
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    write_json(out, value);
}

fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a Value has string keys, and a Vec takes every write");
}
