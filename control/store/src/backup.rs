//! A backup: every record at one revision, and files that belong with them, in one checked stream.
//!
//! It begins with a name and the version of its format; the rest are the sealed pieces that a snapshot is made of, with
//! their number at the end. Whatever is cut short, damaged or of another version is refused as a whole.
//!
//! What is restored is a new store: its member has an id of its own, and its revisions begin beyond all that the old one
//! can have used since the backup. A watch from before is told that its revision is compacted; it never goes on as if
//! nothing had happened. Deliberately absent: the history, since nobody can watch from there.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::codec::{DecodeError, Reader, put_bytes, put_u64};
use crate::file::{Image, Position};
use crate::snapshot::{read_piece, record_piece, write_piece};
use crate::{Config, Key, OpenError, Record, Revision};

/// What every backup begins with; its format's version follows.
const MAGIC: &[u8; 8] = b"LICHENBK";
const FORMAT: u8 = 1;
/// Bytes that are handed out at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// How far a restored store's revisions are beyond those of its backup: more than a store can use in a year.
const REVISIONS_SKIPPED: u64 = 1_000_000_000_000;

const BEGIN: u8 = 0;
const FILE: u8 = 1;
const RECORD: u8 = 2;
const END: u8 = 3;

/// Why a backup can't be read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("it is no backup of Lichen's")]
    NotOne,
    /// It was made by another version of Lichen.
    #[error(
        "it has format {found}, while this build reads {FORMAT}: restore it with the version that made it"
    )]
    Version {
        /// The format that it has.
        found: u8,
    },
    /// It ends too early.
    #[error("it is cut short")]
    Truncated,
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It can't be read.
    #[error("it can't be read")]
    Io(#[from] io::Error),
}

impl BackupError {
    fn piece(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

impl From<DecodeError> for BackupError {
    fn from(error: DecodeError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// A store's records at one revision, and files that belong with them.
#[derive(Debug, Default)]
pub struct Backup {
    /// The revision.
    pub revision: Revision,
    /// When it was taken, in seconds since 1970.
    pub taken_unix_s: u64,
    /// The files, by their names.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The records.
    pub records: BTreeMap<Key, Record>,
}

impl Backup {
    /// The stream, in chunks that are made as they are asked for.
    pub fn chunks(self) -> impl Iterator<Item = Vec<u8>> + Send {
        let mut begin = Vec::new();
        put_u64(&mut begin, self.revision.0);
        put_u64(&mut begin, self.taken_unix_s);
        put_u64(&mut begin, self.files.len() as u64);
        put_u64(&mut begin, self.records.len() as u64);
        let count = 1 + self.files.len() as u64 + self.records.len() as u64;
        let files = self.files.into_iter().map(|(name, content)| {
            let mut body = Vec::with_capacity(content.len() + name.len() + 4);
            put_bytes(&mut body, name.as_bytes());
            body.extend_from_slice(&content);
            (FILE, body)
        });
        let records = self.records.into_iter().map(|(key, record)| (RECORD, record_piece(&key, &record)));
        let end = (END, count.to_le_bytes().to_vec());
        let mut pieces = std::iter::once((BEGIN, begin)).chain(files).chain(records).chain([end]);
        let mut head = Some([MAGIC.as_slice(), &[FORMAT]].concat());
        std::iter::from_fn(move || {
            let mut chunk = head.take().unwrap_or_default();
            while chunk.len() < CHUNK_BYTES
                && let Some((kind, body)) = pieces.next()
            {
                write_piece(&mut chunk, kind, &body).expect("a Vec takes every write");
            }
            (!chunk.is_empty()).then_some(chunk)
        })
    }

    /// Reads a stream, which may hold anything, to its end. Blocks.
    pub fn read(input: &mut impl Read) -> Result<Self, BackupError> {
        let mut head = [0; MAGIC.len() + 1];
        input.read_exact(&mut head).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::NotOne,
            _ => BackupError::Io(error),
        })?;
        match head.split_last() {
            Some((&FORMAT, name)) if name == MAGIC => {}
            Some((&found, name)) if name == MAGIC => return Err(BackupError::Version { found }),
            _ => return Err(BackupError::NotOne),
        }
        let malformed = |what| BackupError::from(DecodeError::Malformed(what));
        let (kind, body) = read_piece(input).map_err(BackupError::piece)?;
        if kind != BEGIN {
            return Err(malformed("the beginning of a backup"));
        }
        let mut reader = Reader::new(&body);
        let mut backup =
            Self { revision: Revision(reader.u64()?), taken_unix_s: reader.u64()?, ..Self::default() };
        let (files, records) = (reader.u64()?, reader.u64()?);
        reader.end()?;
        let mut pieces = 1u64;
        loop {
            let (kind, body) = read_piece(input).map_err(BackupError::piece)?;
            let mut reader = Reader::new(&body);
            match kind {
                FILE => {
                    let name = reader.str()?.to_owned();
                    backup.files.insert(name, body[reader.at()..].to_vec());
                }
                RECORD => {
                    let key = Key::new(reader.str()?);
                    backup.records.insert(key, Record::decode(&body[reader.at()..])?);
                }
                END if body == pieces.to_le_bytes() => break,
                _ => return Err(malformed("a piece of a backup")),
            }
            pieces += 1;
        }
        if backup.files.len() as u64 != files || backup.records.len() as u64 != records {
            return Err(malformed("the number of records"));
        }
        if backup.records.values().any(|record| record.revision() > backup.revision) {
            return Err(malformed("the revision of a record"));
        }
        match input.read(&mut [0])? {
            0 => Ok(backup),
            _ => Err(malformed("what follows the end of the backup")),
        }
    }

    /// Makes a store of the records in a directory that has none, without those under some prefixes, and tells the
    /// revision at which it begins. Blocks.
    pub fn restore(&self, config: Config, without: &[&str]) -> Result<Revision, OpenError> {
        let kept = |key: &Key| !without.iter().any(|prefix| key.as_str().starts_with(prefix));
        let records: BTreeMap<_, _> = self
            .records
            .iter()
            .filter(|(key, _)| kept(key))
            .map(|(key, r)| (key.clone(), r.clone()))
            .collect();
        let revision = Revision(self.revision.0.saturating_add(REVISIONS_SKIPPED));
        let position =
            Position { revision, floor: revision, records: records.len() as u64, ..Position::default() };
        crate::store::create(config, &Image { position, records, history: Vec::new() })?;
        Ok(revision)
    }
}
