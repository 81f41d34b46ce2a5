//! A log as it is found on a volume: which files it has, and what their records make together.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use super::index::{Index, Place};
use super::segment::{BLOCK_BYTES, Damage, End, FORMAT, Facts, Head, Record, scan};
use crate::codec::DecodeError;
use crate::disk::DiskError;
use crate::types::check_entry;
use crate::volume::{Volume, VolumeFile};

/// What the log is called where no file is meant.
pub(super) const NAME: &str = "the log";
const PREFIX: &str = "log-";
const SPARE_PREFIX: &str = "spare-";

pub(super) fn name(id: u64) -> String {
    format!("{PREFIX}{id:016x}")
}

pub(super) fn spare_name(id: u64) -> String {
    format!("{SPARE_PREFIX}{id:016x}")
}

/// Whether a name is that of a file to be used again.
pub(super) fn is_spare(name: &str) -> bool {
    id_of(name, SPARE_PREFIX).is_some()
}

/// The segment that a name stands for.
fn id_of(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    let id = u64::from_str_radix(digits, 16).ok()?;
    (digits == format!("{id:016x}")).then_some(id)
}

pub(super) fn failed(error: &io::Error) -> DiskError {
    DiskError::io(NAME, error)
}

/// What the records of a log make together.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) facts: Facts,
    pub(super) index: Index,
}

impl Contents {
    fn starting(facts: Facts) -> Self {
        Self { facts, index: Index::starting(facts.next) }
    }

    /// Takes in what follows. `body` is where the body of its frame is.
    fn admit(&mut self, record: &Record<'_>, segment: u64, body: usize) -> Result<(), Damage> {
        if let Record::Entry { at, sealed, .. } = record {
            let id = check_entry(sealed).map_err(|error| Damage::Decode("an entry", error))?;
            let place = place(id.leader_id.term, segment, body + at, sealed.len());
            if id.index > self.facts.next && self.index.len() > 0 {
                return Err(Damage::Decode("an entry", DecodeError::Malformed("its index")));
            }
            self.index.push(id.index, place);
            self.facts.next = id.index + 1;
        } else {
            self.facts.admit(record);
            self.index.admit(record);
        }
        Ok(())
    }
}

/// Where an entry is. Segments are smaller than 4 GiB.
pub(super) fn place(term: u64, segment: u64, at: usize, len: usize) -> Place {
    let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Place { term, segment, at: narrow(at), len: narrow(len) }
}

/// A segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    pub(super) size: usize,
    /// Behind the last index in it.
    pub(super) next: u64,
    /// The version that it was begun in.
    pub(super) format: u32,
}

/// A log as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) contents: Contents,
    pub(super) segments: VecDeque<Segment>,
    pub(super) files: BTreeMap<u64, Arc<dyn VolumeFile>>,
    /// The index of the first entry that was to be in them.
    start: u64,
    /// Segments before a gap: the removal of those after them was durable, theirs was not.
    pub(super) orphans: Vec<u64>,
    pub(super) end: End,
    /// What is in the last block of the end.
    pub(super) tail: Vec<u8>,
    /// Nothing was under way when it was last written.
    pub(super) closed: bool,
}

/// Reads a log from end to end, if there is one. Changes nothing. Blocks.
pub(super) fn find(volume: &dyn Volume) -> Result<Option<Found>, DiskError> {
    let names = volume.list().map_err(|error| failed(&error))?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| id_of(name, PREFIX)).collect();
    ids.sort_unstable();
    let Some(gap) = (0..ids.len()).rev().find(|at| *at == 0 || ids[at - 1] + 1 != ids[*at]) else {
        return Ok(None);
    };
    let run = ids.split_off(gap);
    let mut found: Option<Found> = None;
    for id in run {
        let name = name(id);
        let damaged = |damage| match damage {
            Damage::Version(found) => DiskError::Version { name: name.clone(), found, known: FORMAT },
            Damage::Decode(what, error) => {
                DiskError::Corrupt { name: name.clone(), detail: format!("{what}: {error}") }
            }
        };
        let io = |error| DiskError::io(&name, &error);
        let file: Arc<dyn VolumeFile> = volume.open(&name).map_err(io)?.into();
        let size = usize::try_from(file.size().map_err(io)?).unwrap_or(usize::MAX);
        let mut bytes = vec![0; size];
        file.read(0, &mut bytes).map_err(io)?;
        read(&mut found, id, file, &bytes).map_err(damaged)?;
    }
    let Some(mut found) = found else { return Ok(None) };
    found.orphans = ids;
    let Contents { facts, index } = &mut found.contents;
    if let Some(purged) = facts.purged {
        index.purge(purged.index);
    }
    if found.start > facts.purged.map_or(0, |purged| purged.index + 1) {
        let detail = format!("the segments before entry {} are missing", found.start);
        return Err(DiskError::Corrupt { name: NAME.into(), detail });
    }
    Ok(Some(found))
}

/// Reads a segment behind those that were read before.
fn read(found: &mut Option<Found>, id: u64, file: Arc<dyn VolumeFile>, bytes: &[u8]) -> Result<(), Damage> {
    let block = bytes.get(..BLOCK_BYTES).ok_or(DecodeError::Truncated { at: bytes.len() })?;
    let (head, checksum) = Head::decode(block)?;
    if head.id != id {
        return Err(DecodeError::Malformed("its number").into());
    }
    let (mut contents, mut segments, mut files, start) = match found.take() {
        None => (Contents::starting(head.facts), VecDeque::new(), BTreeMap::new(), head.facts.next),
        Some(before) if before.end.link != head.link || before.contents.facts != head.facts => {
            return Err(DecodeError::Malformed("the end of the segment before it").into());
        }
        Some(before) => (before.contents, before.segments, before.files, before.start),
    };
    let (mut closed, mut next) = (false, 0);
    let end = scan(bytes, checksum, |at, body| {
        Record::each(body, |record| {
            closed = record == Record::Closed;
            contents.admit(&record, id, at)?;
            next = next.max(contents.facts.next);
            Ok(())
        })
    })?;
    segments.push_back(Segment { id, size: bytes.len(), next, format: head.format });
    files.insert(id, file);
    let tail = bytes[end.at / BLOCK_BYTES * BLOCK_BYTES..end.at].to_vec();
    *found = Some(Found { contents, segments, files, start, orphans: Vec::new(), end, tail, closed });
    Ok(())
}
