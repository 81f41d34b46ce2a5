//! The file: spaces of keys and values, one transaction a batch.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::contents::{Change, Contents, Object, Space};
use crate::memory::Memory;
use crate::seal::Sealer;

/// The format that this code writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

const FILE: &str = "checkpoint.redb";
const KEY_FILE: &str = "checkpoint.key";

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const FORMAT_KEY: &str = "format";
const IDENTITY_KEY: &str = "identity";
const SYNC_KEY: &str = "sync";
const BROKER_KEY: &str = "broker";

/// The kind whose bodies are sealed.
const SECRET: &str = "Secret";

fn table(space: Space) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(match space {
        Space::Pod => "pods",
        Space::Address => "addresses",
        Space::Gone => "gone",
        Space::Image => "images",
        Space::Node => "node",
    })
}

/// Why a checkpoint can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent runs on this directory.
    #[error("another agent is running on {0}")]
    InUse(PathBuf),
    /// It was written by a newer agent.
    #[error("{path} has format {found}, and this agent reads up to {FORMAT}: use a newer agent")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is damaged.
    #[error("{path} is damaged ({reason}): restore it, or remove it and let the node join again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Its key can't be used.
    #[error("cannot use the checkpoint's key {path}")]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The disk failed.
    #[error("cannot use {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// Why a batch was not committed. Nothing of it is in the checkpoint then.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The file can't be written.
    #[error("the checkpoint cannot be written: {0}")]
    Storage(#[source] Box<redb::Error>),
    /// A value can't be encoded or sealed.
    #[error("a value cannot be encoded for the checkpoint")]
    Encode,
}

impl<E: Into<redb::Error>> From<E> for CommitError {
    fn from(error: E) -> Self {
        Self::Storage(Box::new(error.into()))
    }
}

/// Removes the checkpoint in a directory for good. Once its file is gone the node is nobody; without its key what the
/// disk may still hold of it gives nothing away.
pub fn wipe(dir: &Path) -> io::Result<()> {
    for file in [FILE, KEY_FILE] {
        match std::fs::remove_file(dir.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::File::open(dir)?.sync_all()?,
        }
    }
    Ok(())
}

/// An open checkpoint. All calls block on the disk.
pub struct Checkpoint(Place);

enum Place {
    File(File),
    Memory(Memory),
}

struct File {
    database: Database,
    sealer: Sealer,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checkpoint")
    }
}

impl Checkpoint {
    /// Opens the checkpoint in a directory, or begins one, and reads all of it.
    pub fn open(dir: &Path) -> Result<(Self, Contents), OpenError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        let path = dir.join(FILE);
        let existed = path.exists();
        let database = Database::create(&path).map_err(|error| open_error(&path, error))?;
        let key_path = dir.join(KEY_FILE);
        let sealer = Sealer::open_or_create(&key_path, !existed)
            .map_err(|source| OpenError::Key { path: key_path, source })?;
        let file = File { database, sealer };
        file.check_format(&path)?;
        let contents = file.read(&path)?;
        Ok((Self(Place::File(file)), contents))
    }

    /// Opens a checkpoint in memory, with all that was committed there before.
    pub fn in_memory(memory: Memory) -> (Self, Contents) {
        let contents = memory.contents();
        (Self(Place::Memory(memory)), contents)
    }

    /// Makes changes durable, all or none. Nothing is written if nothing changes.
    pub fn commit(&self, changes: &[Change]) -> Result<(), CommitError> {
        match &self.0 {
            Place::File(file) => file.commit(changes),
            Place::Memory(memory) => {
                memory.commit(changes);
                Ok(())
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn decode_object(&self, place: &str, value: &[u8]) -> Option<Object> {
        match &self.0 {
            Place::File(file) => file.decode_object(place, value),
            Place::Memory(_) => None,
        }
    }
}

impl File {
    fn check_format(&self, path: &Path) -> Result<(), OpenError> {
        let corrupt = |error: redb::Error| storage_error(path, error);
        let write = self.database.begin_write().map_err(|e| corrupt(e.into()))?;
        {
            let mut meta = write.open_table(META).map_err(|e| corrupt(e.into()))?;
            let found = meta
                .get(FORMAT_KEY)
                .map_err(|e| corrupt(e.into()))?
                .map(|value| value.value().try_into().map(u32::from_be_bytes));
            match found {
                Some(Ok(FORMAT)) => return Ok(()),
                Some(Ok(found)) if found > FORMAT => {
                    return Err(OpenError::Newer { path: path.to_owned(), found });
                }
                Some(_) => return Err(damaged(path, "its format can't be read")),
                None => {
                    let format = FORMAT.to_be_bytes();
                    meta.insert(FORMAT_KEY, format.as_slice()).map_err(|e| corrupt(e.into()))?;
                }
            }
        }
        // All tables exist from the start, so that reading needs no special case.
        for space in Space::ALL {
            write.open_table(table(space)).map_err(|e| corrupt(e.into()))?;
        }
        write.open_table(OBJECTS).map_err(|e| corrupt(e.into()))?;
        write.commit().map_err(|e| corrupt(e.into()))
    }

    fn read(&self, path: &Path) -> Result<Contents, OpenError> {
        let raw = self.read_raw().map_err(|error| storage_error(path, error))?;
        let mut contents = Contents { spaces: raw.spaces, ..Contents::default() };
        if let Some(sealed) = raw.meta.get(IDENTITY_KEY) {
            let plain = self.sealer.open(IDENTITY_KEY, sealed);
            let plain = plain.ok_or_else(|| damaged(path, "the identity was not sealed under this key"))?;
            contents.identity = Some(decode(&plain).ok_or_else(|| damaged(path, "the identity"))?);
        }
        if let Some(sealed) = raw.meta.get(BROKER_KEY) {
            let plain = self.sealer.open(BROKER_KEY, sealed);
            let plain = plain.ok_or_else(|| damaged(path, "the broker was not sealed under this key"))?;
            contents.broker = Some(decode(&plain).ok_or_else(|| damaged(path, "the broker"))?);
        }
        if let Some(bytes) = raw.meta.get(SYNC_KEY) {
            contents.sync = decode(bytes).ok_or_else(|| damaged(path, "the sync state"))?;
        }
        for (place, value) in &raw.objects {
            let object = self.decode_object(place, value);
            contents.objects.push(object.ok_or_else(|| damaged(path, &format!("the object {place}")))?);
        }
        Ok(contents)
    }

    fn read_raw(&self) -> Result<Raw, redb::Error> {
        let read = self.database.begin_read()?;
        let all = |definition: TableDefinition<'static, &'static str, &'static [u8]>| -> Result<BTreeMap<String, Vec<u8>>, redb::Error> {
            let table = read.open_table(definition)?;
            let mut entries = BTreeMap::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                entries.insert(key.value().to_owned(), value.value().to_owned());
            }
            Ok(entries)
        };
        let mut spaces = BTreeMap::new();
        for space in Space::ALL {
            let entries = all(table(space))?;
            if !entries.is_empty() {
                spaces.insert(space, entries);
            }
        }
        Ok(Raw { meta: all(META)?, objects: all(OBJECTS)?, spaces })
    }

    fn commit(&self, changes: &[Change]) -> Result<(), CommitError> {
        if changes.is_empty() {
            return Ok(());
        }
        let write = self.database.begin_write()?;
        let mut changed = false;
        for change in changes {
            changed |= self.apply(&write, change)?;
        }
        if changed {
            write.commit()?
        } else {
            write.abort()?
        }
        Ok(())
    }

    fn apply(&self, write: &WriteTransaction, change: &Change) -> Result<bool, CommitError> {
        match change {
            Change::Identity(identity) => {
                let plain = encode(identity).ok_or(CommitError::Encode)?;
                self.put(write, META, IDENTITY_KEY, &plain, true)
            }
            Change::Broker(broker) => {
                let plain = encode(broker).ok_or(CommitError::Encode)?;
                self.put(write, META, BROKER_KEY, &plain, true)
            }
            Change::Sync(sync) => {
                self.put(write, META, SYNC_KEY, &encode(sync).ok_or(CommitError::Encode)?, false)
            }
            Change::PutObject(object) => {
                let value = [object.version.to_be_bytes().as_slice(), &object.body].concat();
                let place = place(&object.kind, &object.key);
                self.put(write, OBJECTS, &place, &value, object.kind == SECRET)
            }
            Change::RemoveObject { kind, key } => {
                Ok(write.open_table(OBJECTS)?.remove(place(kind, key).as_str())?.is_some())
            }
            Change::Put(space, key, value) => self.put(write, table(*space), key, value, false),
            Change::Remove(space, key) => {
                Ok(write.open_table(table(*space))?.remove(key.as_str())?.is_some())
            }
        }
    }

    fn put(
        &self,
        write: &WriteTransaction,
        table: TableDefinition<'static, &'static str, &'static [u8]>,
        key: &str,
        plain: &[u8],
        seal: bool,
    ) -> Result<bool, CommitError> {
        let mut table = write.open_table(table)?;
        let same = table.get(key)?.is_some_and(|old| match seal {
            true => self.sealer.open(key, old.value()).as_deref() == Some(plain),
            false => old.value() == plain,
        });
        if same {
            return Ok(false);
        }
        if seal {
            let sealed = self.sealer.seal(key, plain).ok_or(CommitError::Encode)?;
            table.insert(key, sealed.as_slice())?;
        } else {
            table.insert(key, plain)?;
        }
        Ok(true)
    }

    fn decode_object(&self, place: &str, value: &[u8]) -> Option<Object> {
        let (kind, key) = place.split_once(' ')?;
        let opened;
        let value = if kind == SECRET {
            opened = self.sealer.open(place, value)?;
            &opened
        } else {
            value
        };
        let (version, body) = value.split_first_chunk::<8>()?;
        let version = u64::from_be_bytes(*version);
        Some(Object { kind: kind.to_owned(), key: key.to_owned(), version, body: body.to_owned() })
    }
}

struct Raw {
    meta: BTreeMap<String, Vec<u8>>,
    objects: BTreeMap<String, Vec<u8>>,
    spaces: BTreeMap<Space, BTreeMap<String, Vec<u8>>>,
}

/// Where an object lies: neither kinds nor keys hold a space.
pub(crate) fn place(kind: &str, key: &str) -> String {
    format!("{kind} {key}")
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    serde_cbor::to_vec(value).ok()
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_cbor::from_slice(bytes).ok()
}

fn damaged(path: &Path, reason: &str) -> OpenError {
    OpenError::Corrupt { path: path.to_owned(), reason: reason.to_owned() }
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.parent().unwrap_or(path).to_owned()),
        other => storage_error(path, other.into()),
    }
}

fn storage_error(path: &Path, error: redb::Error) -> OpenError {
    match error {
        // redb tells a file that is not its own by this kind.
        redb::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData => {
            OpenError::Io { path: path.to_owned(), source }
        }
        other => damaged(path, &other.to_string()),
    }
}
