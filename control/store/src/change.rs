//! An entry of the history: what a transaction did to one key.

use crate::codec::{self, DecodeError, Reader, put_bytes, put_u64};
use crate::{Key, Record, Revision};

const CHANGE_VERSION: u8 = 1;

/// Which way a key changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The key was written.
    Put,
    /// The key went away.
    Delete,
}

/// What a transaction did to one key. It holds the record before and after, so that a watch with a selector can tell
/// an object that came into view from one that left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision of the transaction, the same for all its changes.
    pub revision: Revision,
    /// The key that changed.
    pub key: Key,
    /// The record after; `None` for a deletion.
    pub new: Option<Record>,
    /// The record before; `None` if the key did not exist.
    pub old: Option<Record>,
}

impl Change {
    /// Which way the key changed.
    #[must_use]
    pub fn kind(&self) -> ChangeKind {
        if self.new.is_some() { ChangeKind::Put } else { ChangeKind::Delete }
    }

    /// The record as a watcher is told of it: the new one, or for a deletion the old one under the revision of the
    /// deletion. `None` only for a change that is neither, which `apply` never makes.
    #[must_use]
    pub fn told(&self) -> Option<Record> {
        let deleted = || self.old.as_ref().map(|old| old.with_revision(self.revision));
        self.new.clone().or_else(deleted)
    }

    /// The old record as a watcher is told of it when the object left its view by this change.
    #[must_use]
    pub fn told_old(&self) -> Option<Record> {
        self.old.as_ref().map(|old| old.with_revision(self.revision))
    }

    /// Bytes that the change holds on to.
    pub(crate) fn size(&self) -> usize {
        let size = |record: &Option<Record>| record.as_ref().map_or(0, Record::size);
        64 + self.key.as_str().len() + size(&self.new) + size(&self.old)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = codec::unsealed(self.size());
        put_u64(&mut out, self.revision.0);
        put_bytes(&mut out, self.key.as_str().as_bytes());
        for record in [&self.new, &self.old] {
            let encoded = record.as_ref().map(Record::encode).unwrap_or_default();
            put_bytes(&mut out, &encoded);
        }
        codec::seal(out, CHANGE_VERSION)
    }

    pub(crate) fn decode(input: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(codec::open(input, CHANGE_VERSION)?);
        let revision = Revision(reader.u64()?);
        let key = Key::new(reader.str()?);
        let new = decode_optional(&mut reader)?;
        let old = decode_optional(&mut reader)?;
        reader.end()?;
        Ok(Self { revision, key, new, old })
    }
}

fn decode_optional(reader: &mut Reader<'_>) -> Result<Option<Record>, DecodeError> {
    match reader.bytes()? {
        [] => Ok(None),
        bytes => Record::decode(bytes).map(Some),
    }
}
