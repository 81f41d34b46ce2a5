//! A segment of the log as bytes: what is in its head, how what follows is framed, where it ends.
//!
//! The first block is the head: which segment of which member's log it is, and what the log had come to before it, so
//! that segments before may go. Frames follow, each of which was written in one piece and was durable before the next was
//! begun. A frame bears the segment's mark, the checksum of the frame before it (the head's, for the first) and its own.
//! So what an earlier use of the same file left behind is no frame of this one, and the log ends where no frame follows
//! the last: a write that was cut short. If a whole frame comes later all the same, then what is before it was durable
//! and is damaged.

use crate::codec::{DecodeError, Reader, len32, put_bytes, put_u32, put_u64};
use crate::file::{put_optional, read_optional};
use crate::types::{LogId, Vote};

/// What is written at once: the unit of the system's and of nearly all disks.
pub(super) const BLOCK_BYTES: usize = 4096;
/// The version of the log as a whole. The first was a database; the second had no packed entries, and is read as well.
pub(super) const FORMAT: u32 = 3;
const FORMAT_MIN: u32 = 2;

const MAGIC: [u8; 8] = *b"lichlog\n";
/// Behind the magic number, the version and the checksum.
const HEAD_AT: usize = 16;
/// A frame's mark, length, link and checksum.
const FRAME_BYTES: usize = 16;
/// Frames begin at multiples of this.
const FRAME_ALIGN: usize = 8;

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const COMMITTED: u8 = 5;
const CLOSED: u8 = 6;

/// Why a segment can't be read.
#[derive(Debug)]
pub(super) enum Damage {
    /// It is of another version.
    Version(u32),
    /// Something in it is not what was written.
    Decode(&'static str, DecodeError),
}

impl From<DecodeError> for Damage {
    fn from(error: DecodeError) -> Self {
        Self::Decode("its head", error)
    }
}

/// What the log had come to when a segment was begun.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) member: u64,
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    /// The index that the next entry gets.
    pub(super) next: u64,
}

impl Facts {
    /// Takes in what follows. Entries tell their indexes themselves.
    pub(super) fn admit(&mut self, record: &Record<'_>) {
        match record {
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Truncate(from) => self.next = self.next.min(*from),
            Record::Purge(upto) => {
                self.purged = Some(*upto);
                self.next = self.next.max(upto.index + 1);
            }
            Record::Committed(committed) => self.committed = Some(*committed),
            Record::Entry { .. } | Record::Closed => {}
        }
    }
}

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Head {
    /// Which segment it is: one more than the one before. Never used again.
    pub(super) id: u64,
    /// The checksum at the end of the one before.
    pub(super) link: u32,
    pub(super) facts: Facts,
    /// The version that it was begun in.
    pub(super) format: u32,
}

impl Head {
    /// The first block.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.extend_from_slice(&MAGIC);
        put_u32(&mut out, self.format);
        put_u32(&mut out, 0);
        put_u64(&mut out, self.id);
        put_u32(&mut out, self.link);
        put_u64(&mut out, self.facts.member);
        put_u64(&mut out, self.facts.next);
        put_optional(&mut out, self.facts.purged.as_ref());
        put_optional(&mut out, self.facts.committed.as_ref());
        put_bytes(&mut out, &serde_json::to_vec(&self.facts.vote)?);
        out.resize(BLOCK_BYTES, 0);
        let crc = head_checksum(&out);
        out[HEAD_AT - 4..HEAD_AT].copy_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Reads the first block, and what the first frame is linked to.
    pub(super) fn decode(block: &[u8]) -> Result<(Self, u32), Damage> {
        let mut reader = Reader::new(block);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(DecodeError::Malformed("the magic number").into());
        }
        let (format, found) = (reader.u32()?, reader.u32()?);
        let computed = head_checksum(block);
        if found != computed {
            return Err(DecodeError::Checksum { found, computed }.into());
        }
        if !(FORMAT_MIN..=FORMAT).contains(&format) {
            return Err(Damage::Version(format));
        }
        let (id, link) = (reader.u64()?, reader.u32()?);
        let (member, next) = (reader.u64()?, reader.u64()?);
        let (purged, committed) = (read_optional(&mut reader)?, read_optional(&mut reader)?);
        let vote = serde_json::from_slice(reader.bytes()?).map_err(|_| DecodeError::Malformed("the vote"))?;
        Ok((Self { id, link, facts: Facts { member, vote, purged, committed, next }, format }, found))
    }
}

/// Makes a segment one of another version, for a test.
#[cfg(test)]
pub(crate) fn set_format(bytes: &mut [u8], format: u32) {
    bytes[MAGIC.len()..HEAD_AT - 4].copy_from_slice(&format.to_le_bytes());
    let crc = head_checksum(&bytes[..BLOCK_BYTES]);
    bytes[HEAD_AT - 4..HEAD_AT].copy_from_slice(&crc.to_le_bytes());
}

fn head_checksum(block: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&block[..HEAD_AT - 4]);
    crc.update(&block[HEAD_AT..]);
    crc.finalize()
}

/// What the frames of a segment begin with, so that it can be told where one may be. Never zero, as what was not written
/// is.
fn mark(head: u32) -> u32 {
    head | 1
}

/// Where the next frame of a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) at: usize,
    /// The checksum of the last frame, or of the head.
    pub(super) link: u32,
    mark: u32,
}

impl End {
    /// The end of a segment without frames.
    pub(super) fn first(head: u32) -> Self {
        Self { at: BLOCK_BYTES, link: head, mark: mark(head) }
    }

    /// The beginning of a frame with this body, and where the next one goes.
    pub(super) fn frame(&self, body: &[u8]) -> ([u8; FRAME_BYTES], Self) {
        let mut head = [0; FRAME_BYTES];
        head[..4].copy_from_slice(&self.mark.to_le_bytes());
        head[4..8].copy_from_slice(&len32(body.len()).to_le_bytes());
        head[8..12].copy_from_slice(&self.link.to_le_bytes());
        let link = frame_checksum(&head, body);
        head[12..].copy_from_slice(&link.to_le_bytes());
        (head, Self { at: self.at + frame_bytes(body.len()), link, mark: self.mark })
    }
}

/// How much room a frame takes.
pub(super) fn frame_bytes(body: usize) -> usize {
    (FRAME_BYTES + body).next_multiple_of(FRAME_ALIGN)
}

/// Where the body of a frame begins.
pub(super) fn body_at(frame: usize) -> usize {
    frame + FRAME_BYTES
}

fn frame_checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..12]);
    crc.update(body);
    crc.finalize()
}

/// The link, the checksum and the body of a whole frame at some place.
fn frame_at(bytes: &[u8], at: usize, mark: u32) -> Option<(u32, u32, &[u8])> {
    let mut reader = Reader::new(bytes.get(at..)?);
    if reader.u32().ok()? != mark {
        return None;
    }
    let len = reader.u32().ok()? as usize;
    let (link, crc) = (reader.u32().ok()?, reader.u32().ok()?);
    let body = reader.take(len).ok()?;
    (frame_checksum(&bytes[at..], body) == crc).then_some((link, crc, body))
}

/// Visits the frames of a segment and tells where they end. A visitor gets the place of each body.
pub(super) fn scan(
    bytes: &[u8],
    head: u32,
    mut visit: impl FnMut(usize, &[u8]) -> Result<(), Damage>,
) -> Result<End, Damage> {
    let mut end = End::first(head);
    while let Some((link, crc, body)) = frame_at(bytes, end.at, end.mark) {
        if link != end.link {
            return Err(damaged());
        }
        visit(body_at(end.at), body)?;
        end = End { at: end.at + frame_bytes(body.len()), link: crc, ..end };
    }
    let later = (end.at + FRAME_ALIGN..bytes.len()).step_by(FRAME_ALIGN);
    let mut later = later.filter(|at| bytes[*at..].starts_with(&end.mark.to_le_bytes()));
    if later.any(|at| frame_at(bytes, at, end.mark).is_some()) {
        return Err(damaged());
    }
    Ok(end)
}

fn damaged() -> Damage {
    Damage::Decode("a frame", DecodeError::Malformed("what was written before another one"))
}

/// What frames hold.
#[derive(Debug, PartialEq)]
pub(super) enum Record<'a> {
    /// An entry, sealed, and where it is in the body.
    Entry {
        at: usize,
        sealed: &'a [u8],
    },
    Vote(Vote),
    /// Everything from this index on is gone.
    Truncate(u64),
    /// Everything up to this entry is.
    Purge(LogId),
    Committed(LogId),
    /// The log was closed in good order.
    Closed,
}

impl Record<'_> {
    /// Appends a record to a body; tells where what it carries begins.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<usize, serde_json::Error> {
        let mut small = [0; 16];
        let vote;
        let (kind, carried): (u8, &[u8]) = match self {
            Self::Entry { sealed, .. } => (ENTRY, sealed),
            Self::Vote(new) => {
                vote = serde_json::to_vec(new)?;
                (VOTE, &vote)
            }
            Self::Truncate(from) => {
                small[..8].copy_from_slice(&from.to_le_bytes());
                (TRUNCATE, &small[..8])
            }
            Self::Purge(upto) => (PURGE, log_id(&mut small, upto)),
            Self::Committed(committed) => (COMMITTED, log_id(&mut small, committed)),
            Self::Closed => (CLOSED, &[]),
        };
        out.push(kind);
        put_u32(out, len32(carried.len()));
        let at = out.len();
        out.extend_from_slice(carried);
        Ok(at)
    }

    /// Visits the records of a body.
    pub(super) fn each<'a>(
        body: &'a [u8],
        mut visit: impl FnMut(Record<'a>) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let malformed = |error| Damage::Decode("a record", error);
        let mut reader = Reader::new(body);
        while reader.at() < body.len() {
            let kind = reader.u8().map_err(malformed)?;
            let carried = reader.bytes().map_err(malformed)?;
            let at = reader.at() - carried.len();
            visit(decode(kind, at, carried).map_err(malformed)?)?;
        }
        Ok(())
    }
}

fn log_id<'a>(out: &'a mut [u8; 16], id: &LogId) -> &'a [u8] {
    out[..8].copy_from_slice(&id.leader_id.term.to_le_bytes());
    out[8..].copy_from_slice(&id.index.to_le_bytes());
    out
}

fn decode(kind: u8, at: usize, carried: &[u8]) -> Result<Record<'_>, DecodeError> {
    let mut reader = Reader::new(carried);
    let record = match kind {
        ENTRY => return Ok(Record::Entry { at, sealed: carried }),
        VOTE => {
            let vote = serde_json::from_slice(carried).map_err(|_| DecodeError::Malformed("the vote"))?;
            return Ok(Record::Vote(vote));
        }
        TRUNCATE => Record::Truncate(reader.u64()?),
        PURGE => Record::Purge(crate::types::read_log_id(&mut reader)?),
        COMMITTED => Record::Committed(crate::types::read_log_id(&mut reader)?),
        CLOSED => Record::Closed,
        _ => return Err(DecodeError::Malformed("the kind of a record")),
    };
    reader.end()?;
    Ok(record)
}
