//! A whole state on its way from one member to another.
//!
//! On the sending side it is a view of the state at rest, which costs nothing to take and does not move. For the wire it
//! is a stream of sealed pieces with a count at the end, so that a stream cut short or damaged is refused.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use redb::ReadTransaction;

use crate::codec::{self, DecodeError, Reader, put_bytes, put_u32};
use crate::disk::ReadError;
use crate::file::{Image, Position, StateFile};
use crate::types::CommittedLeaderId;
use crate::{Change, Key, Record};

const PIECE_VERSION: u8 = 1;
/// No piece is larger: a transaction bounds each record, and a change holds two.
const PIECE_BYTES_MAX: usize = 2 * crate::TXN_BYTES_MAX + 64 * 1024;

const BEGIN: u8 = 0;
const RECORD: u8 = 1;
const CHANGE: u8 = 2;
const END: u8 = 3;

pub(crate) type Snapshot = openraft::Snapshot<CommittedLeaderId, u64, openraft::BasicNode, SnapshotData>;

/// A state as raft hands it around.
pub(crate) enum SnapshotData {
    /// What a member's own file holds.
    View { file: Arc<StateFile>, view: ReadTransaction },
    /// What came from another member.
    Image(Box<Image>),
}

impl SnapshotData {
    /// The whole state in memory. Blocks.
    pub(crate) fn into_image(self) -> io::Result<Image> {
        match self {
            Self::View { file, view } => Ok(file.load_view(&view)?),
            Self::Image(image) => Ok(*image),
        }
    }

    /// Writes the stream. Blocks.
    pub(crate) fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut pieces = 0u64;
        let mut piece = |kind: u8, body: &[u8]| {
            pieces += 1;
            write_piece(out, kind, body)
        };
        match self {
            Self::View { file, view } => {
                piece(BEGIN, &file.position(view)?.encode()?)?;
                let failed = |error: io::Error| ReadError::from(redb::Error::Io(error));
                file.disk().read_view(view, |view| {
                    file.each_record(view, |key, record| {
                        piece(RECORD, &record_piece(&key, &record)).map_err(failed)
                    })?;
                    file.each_change(view, |change| piece(CHANGE, &change.encode()).map_err(failed))
                })?;
            }
            Self::Image(image) => {
                piece(BEGIN, &image.position.encode()?)?;
                for (key, record) in &image.records {
                    piece(RECORD, &record_piece(key, record))?;
                }
                for change in &image.history {
                    piece(CHANGE, &change.encode())?;
                }
            }
        }
        write_piece(out, END, &pieces.to_le_bytes())
    }

    /// Reads the stream, which may hold anything. Blocks.
    pub(crate) fn read_from(input: &mut impl Read) -> io::Result<Self> {
        let invalid = |error: DecodeError| io::Error::new(io::ErrorKind::InvalidData, error);
        let malformed = |what| invalid(DecodeError::Malformed(what));
        let (kind, body) = read_piece(input)?;
        if kind != BEGIN {
            return Err(malformed("the beginning of a snapshot"));
        }
        let position = Position::decode(&body).map_err(invalid)?;
        let mut image = Image { position, records: BTreeMap::new(), history: Vec::new() };
        let mut pieces = 1u64;
        loop {
            let (kind, body) = read_piece(input)?;
            match kind {
                RECORD => {
                    let mut reader = Reader::new(&body);
                    let key = Key::new(reader.str().map_err(invalid)?);
                    image.records.insert(key, Record::decode(&body[reader.at()..]).map_err(invalid)?);
                }
                CHANGE => image.history.push(Change::decode(&body).map_err(invalid)?),
                END if body == pieces.to_le_bytes() => break,
                _ => return Err(malformed("a piece of a snapshot")),
            }
            pieces += 1;
        }
        image.check().map_err(invalid)?;
        Ok(Self::Image(Box::new(image)))
    }
}

/// The body of a piece that holds a record.
pub(crate) fn record_piece(key: &Key, record: &Record) -> Vec<u8> {
    let mut body = Vec::with_capacity(record.size() + key.as_str().len() + 4);
    put_bytes(&mut body, key.as_str().as_bytes());
    body.extend_from_slice(&record.encode());
    body
}

/// Writes a piece: a kind and a body, sealed.
pub(crate) fn write_piece(out: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    let mut sealed = codec::unsealed(body.len() + 1);
    sealed.push(kind);
    sealed.extend_from_slice(body);
    let sealed = codec::seal(sealed, PIECE_VERSION);
    let mut len = Vec::with_capacity(4);
    put_u32(&mut len, codec::len32(sealed.len()));
    out.write_all(&len)?;
    out.write_all(&sealed)
}

/// Reads a piece, which may be anything.
pub(crate) fn read_piece(input: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let invalid = |error: DecodeError| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut len = [0; 4];
    input.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > PIECE_BYTES_MAX {
        return Err(invalid(DecodeError::Malformed("the size of a piece")));
    }
    let mut sealed = Vec::new();
    // Grows with what arrives, not with what was announced.
    input.take(len as u64).read_to_end(&mut sealed)?;
    if sealed.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match codec::open(&sealed, PIECE_VERSION).map_err(invalid)? {
        [kind, body @ ..] => Ok((*kind, body.to_vec())),
        [] => Err(invalid(DecodeError::Malformed("an empty piece"))),
    }
}
