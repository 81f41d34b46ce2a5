//! The segments of the log on a volume: found, written, begun anew, and used again when nothing in them counts any more.
//!
//! Segments are files named `log-ID`; the newest is written, those before it are whole. One comes into being under
//! another name, at its full size and with its head, and is given its own when all of that is durable: so no file of that
//! name is ever less than whole, and writing to it changes nothing but data. Segments whose entries are purged become
//! spare ones, oldest first, once the record of the purge is durable.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocks::Blocks;
use super::find::{Contents, Found, NAME, Segment, failed, find, is_spare, name, spare_name};
use super::index::Place;
use super::segment::{BLOCK_BYTES, End, FORMAT, Facts, Head, Record, body_at, frame_bytes};
use crate::codec::DecodeError;
use crate::disk::DiskError;
use crate::encryption::Vault;
use crate::health::Reopen;
use crate::storage::Counters;
use crate::types::{Entry, decode_entry_at_rest, encode_entry_at_rest};
use crate::volume::{Volume, VolumeFile};

/// The smallest segment: what a store that hardly writes anything has.
const SEGMENT_BYTES_MIN: usize = 64 * 1024;
/// The size to which segments grow with the log, unless one write takes more.
const SEGMENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of files that are kept to be used again: as many as a log may have when it is made shorter, or what is missing would
/// be filled with zeros time and again.
const SPARE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of zeros that are written at once.
const FILL_BYTES: usize = 256 * 1024;

/// A segment that is being made.
const FRESH: &str = "log.new";

/// The log's files, as their owner has them.
#[derive(Debug)]
struct Held {
    facts: Facts,
    segments: VecDeque<Segment>,
    /// Files that can be used again, with their names and sizes.
    spares: Vec<(String, usize)>,
    end: End,
    tail: Vec<u8>,
    blocks: Blocks,
    closed: bool,
}

impl Held {
    /// The size of all segments.
    fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.size).sum()
    }
}

/// The log's files.
#[derive(Debug)]
pub(crate) struct Files {
    volume: Arc<dyn Volume>,
    vault: Arc<Vault>,
    counters: Counters,
    held: Mutex<(u64, Option<Held>)>,
    /// All segments, for whoever reads entries meanwhile.
    open: Mutex<BTreeMap<u64, Arc<dyn VolumeFile>>>,
}

impl Files {
    /// Opens the log, or makes one for a member with what it is to begin with. Blocks.
    pub(super) fn open(
        volume: &Arc<dyn Volume>,
        vault: Arc<Vault>,
        begin: impl FnOnce() -> Result<(Facts, Vec<Entry>), DiskError>,
    ) -> Result<(Self, Contents), DiskError> {
        let files = Self {
            volume: volume.clone(),
            vault,
            counters: Counters::default(),
            held: Mutex::new((0, None)),
            open: Mutex::default(),
        };
        if find(&**volume)?.is_none() {
            let (facts, entries) = begin()?;
            files.make(facts, &entries)?;
        }
        let contents = files.take_over()?;
        Ok((files, contents))
    }

    /// Encrypts and decrypts what is in them.
    pub(super) fn vault(&self) -> &Vault {
        &self.vault
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    fn held(&self) -> MutexGuard<'_, (u64, Option<Held>)> {
        // Poisoned only if a holder panicked, and then nothing is written any more.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<dyn VolumeFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a log, whole or not at all.
    fn make(&self, facts: Facts, entries: &[Entry]) -> Result<(), DiskError> {
        let mut body = Vec::new();
        for entry in entries {
            let sealed = encode_entry_at_rest(entry, &self.vault).map_err(|error| failed(&error))?;
            Record::Entry { at: 0, sealed: &sealed }
                .encode(&mut body)
                .map_err(|error| failed(&error.into()))?;
        }
        let head = Head { id: 1, link: 0, facts, format: FORMAT };
        let size = segment_bytes(0, frame_bytes(body.len()));
        let (file, end) = self.begin(FRESH, size, &head)?;
        if !body.is_empty() {
            let (frame, _) = end.frame(&body);
            self.write(&*file, end.at, Blocks::default().fill(&[&frame, &body]))?;
        }
        self.publish(FRESH, 1)
    }

    /// Reads everything, and makes sure that it is as durable as it looks: whoever had the log before may have seen a
    /// sync fail, after which there is no telling what the system has only in memory.
    fn take_over(&self) -> Result<Contents, DiskError> {
        let Some(found) = find(&*self.volume)? else {
            return Err(DiskError::Corrupt { name: NAME.into(), detail: "it is gone".into() });
        };
        let Found { contents, segments, files, orphans, end, tail, closed, .. } = found;
        for id in orphans {
            self.volume.rename(&name(id), &spare_name(id)).map_err(|error| failed(&error))?;
        }
        let names = self.volume.list().map_err(|error| failed(&error))?;
        if names.iter().any(|name| name == FRESH) {
            self.volume.remove(FRESH).map_err(|error| failed(&error))?;
        }
        self.sync_names()?;
        let mut spares = Vec::new();
        for name in names.into_iter().filter(|name| is_spare(name)) {
            let size =
                self.volume.open(&name).and_then(|file| file.size()).map_err(|error| failed(&error))?;
            spares.push((name, usize::try_from(size).unwrap_or(usize::MAX)));
        }
        let mut blocks = Blocks::default();
        if let Some((_, file)) = files.last_key_value().filter(|_| !closed) {
            let mut bytes = vec![0; end.at];
            file.read(0, &mut bytes).map_err(|error| failed(&error))?;
            self.write(&**file, 0, blocks.fill(&[&bytes]))?;
        }
        *self.opened() = files;
        let facts = contents.facts;
        self.held().1 = Some(Held { facts, segments, spares, end, tail, blocks, closed });
        Ok(contents)
    }

    fn write(&self, file: &dyn VolumeFile, at: usize, blocks: &[u8]) -> Result<(), DiskError> {
        self.counters.wrote(blocks.len());
        self.counters.synced();
        file.write_durably(at as u64, blocks).map_err(|error| failed(&error))
    }

    fn sync_names(&self) -> Result<(), DiskError> {
        self.counters.synced();
        self.volume.sync().map_err(|error| failed(&error))
    }

    /// Makes a file a segment in all but its name: `FRESH` from nothing, others from what is there.
    fn begin(&self, name: &str, size: usize, head: &Head) -> Result<(Arc<dyn VolumeFile>, End), DiskError> {
        let block = head.encode().map_err(|error| failed(&error.into()))?;
        let make = || {
            let mut blocks = Blocks::default();
            let file = if name == FRESH {
                let file = self.volume.create(name)?;
                file.set_size(size as u64)?;
                // The room is there, and known to be, before anything is written that counts.
                for at in (0..size).step_by(FILL_BYTES) {
                    let zeros = vec![0; FILL_BYTES.min(size - at)];
                    self.counters.wrote(zeros.len());
                    self.counters.synced();
                    file.write_durably(at as u64, blocks.fill(&[&zeros]))?;
                }
                self.counters.synced();
                file.sync()?;
                file
            } else {
                self.volume.open(name)?
            };
            self.counters.wrote(block.len());
            self.counters.synced();
            file.write_durably(0, blocks.fill(&[&block]))?;
            Ok(file)
        };
        let file = make().map_err(|error| {
            if name == FRESH {
                // It would take up room where there is none.
                let _ = self.volume.remove(name);
            }
            failed(&error)
        })?;
        let checksum = Head::decode(&block).map_or(0, |(_, checksum)| checksum);
        Ok((file.into(), End::first(checksum)))
    }

    /// Gives a segment its name.
    fn publish(&self, from: &str, id: u64) -> Result<(), DiskError> {
        self.volume.rename(from, &name(id)).map_err(|error| failed(&error))?;
        self.sync_names()
    }

    /// Appends records and makes them durable. Tells in which segment and where their body begins. `facts` are what
    /// holds with them. After an error nothing may be done before the log was opened anew. Blocks.
    pub(super) fn append(&self, body: &[u8], facts: &Facts) -> Result<(u64, usize), DiskError> {
        let mut held = self.held();
        let appended = self.append_to(held.1.as_mut().ok_or_else(closed)?, body, facts);
        if appended.is_err() {
            // What is on the disk now is known to nobody.
            held.1 = None;
        }
        appended
    }

    fn append_to(&self, held: &mut Held, body: &[u8], facts: &Facts) -> Result<(u64, usize), DiskError> {
        // A segment of an earlier version is not written any more: whoever knows only that one shall not take it for its own.
        let last = held.segments.back().filter(|segment| segment.format == FORMAT);
        let room = last.map_or(0, |segment| segment.size.saturating_sub(held.end.at));
        if frame_bytes(body.len()) > room {
            self.rotate(held, frame_bytes(body.len()))?;
        }
        let Some(segment) = held.segments.back_mut() else { return Err(closed()) };
        let file = self.opened().get(&segment.id).cloned().ok_or_else(closed)?;
        let (frame, end) = held.end.frame(body);
        let start = held.end.at - held.tail.len();
        let blocks = held.blocks.fill(&[&held.tail, &frame, body]);
        self.write(&*file, start, blocks)?;
        let at = body_at(held.end.at);
        held.tail.clear();
        held.tail.extend_from_slice(&blocks[end.at / BLOCK_BYTES * BLOCK_BYTES - start..end.at - start]);
        held.end = end;
        held.closed = false;
        segment.next = segment.next.max(facts.next);
        held.facts = *facts;
        Ok((segment.id, at))
    }

    /// Goes on in another segment.
    fn rotate(&self, held: &mut Held, needed: usize) -> Result<(), DiskError> {
        let id = held.segments.back().map_or(1, |last| last.id + 1);
        let head = Head { id, link: held.end.link, facts: held.facts, format: FORMAT };
        let fits = |(_, size): &(String, usize)| *size >= BLOCK_BYTES + needed;
        let (from, size) = match held.spares.iter().position(fits) {
            Some(spare) => held.spares.remove(spare),
            None => (FRESH.to_owned(), segment_bytes(held.bytes(), needed)),
        };
        let (file, end) = self.begin(&from, size, &head)?;
        self.publish(&from, id)?;
        self.opened().insert(id, file);
        held.segments.push_back(Segment { id, size, next: 0, format: FORMAT });
        held.end = end;
        held.tail.clear();
        Ok(())
    }

    /// Lets go of the segments in which nothing counts any more. What can't be done now is done another time. Blocks.
    pub(super) fn recycle(&self) {
        let mut held = self.held();
        let Some(held) = held.1.as_mut() else { return };
        let needed = held.facts.purged.map_or(0, |purged| purged.index + 1);
        let mut kept: usize = held.spares.iter().map(|(_, size)| *size).sum();
        // One from when the log was small would be full in no time.
        let useful = segment_bytes(held.bytes(), 0) / 4;
        let mut spares = Vec::new();
        let mut changed = false;
        while held.segments.len() > 1
            && let Some(Segment { id, size, .. }) = held.segments.pop_front_if(|oldest| oldest.next <= needed)
        {
            // Whoever reads it just now goes on reading what was in it.
            let free = self.opened().remove(&id).is_some_and(|file| Arc::strong_count(&file) == 1);
            let keep = free && size >= useful && kept + size <= SPARE_BYTES_MAX;
            let done = if keep {
                self.volume.rename(&name(id), &spare_name(id))
            } else {
                self.volume.remove(&name(id))
            };
            match done {
                Ok(()) if keep => {
                    kept += size;
                    spares.push((spare_name(id), size));
                }
                Ok(()) => {}
                Err(error) => tracing::warn!(%error, segment = name(id), "it is not needed, and stays"),
            }
            changed = true;
        }
        // A spare one may be written only when it is sure not to come back under its old name.
        if changed && self.sync_names().is_ok() {
            held.spares.extend(spares);
        }
    }

    /// The segments that entries are in, to read from.
    pub(super) fn of(&self, places: &[(u64, Place)]) -> Vec<Sought> {
        let open = self.opened();
        let file = |(index, place): &(u64, Place)| {
            Some(Sought { index: *index, place: *place, file: open.get(&place.segment)?.clone() })
        };
        places.iter().filter_map(file).collect()
    }

    /// Notes that nothing is under way, so that the next one to open the log may believe what it finds. Blocks.
    pub(super) fn finish(&self) -> Result<(), DiskError> {
        let facts = match &self.held().1 {
            Some(held) if !held.closed => held.facts,
            _ => return Ok(()),
        };
        let mut body = Vec::new();
        Record::Closed.encode(&mut body).map_err(|error| failed(&error.into()))?;
        self.append(&body, &facts).map(drop)
    }

    /// What it holds, as it was found or last written.
    pub(super) fn facts(&self) -> Option<Facts> {
        self.held().1.as_ref().map(|held| held.facts)
    }

    /// Closes the files; whatever comes later fails.
    pub(crate) fn close(&self) {
        let mut held = self.held();
        held.0 = u64::MAX;
        held.1 = None;
        self.opened().clear();
    }
}

impl Reopen for Files {
    fn generation(&self) -> u64 {
        self.held().0
    }

    fn reopen(&self, generation: u64) -> Result<(), DiskError> {
        {
            let mut held = self.held();
            if held.0 == u64::MAX {
                return Err(closed());
            }
            if held.0 != generation {
                return Ok(());
            }
            held.1 = None;
        }
        self.take_over()?;
        self.held().0 += 1;
        Ok(())
    }
}

/// An entry that is to be read.
pub(super) struct Sought {
    index: u64,
    place: Place,
    file: Arc<dyn VolumeFile>,
}

impl Sought {
    /// Reads the entry. Blocks.
    pub(super) fn read(&self, vault: &Vault) -> Result<Entry, DiskError> {
        let Self { index, place, file } = self;
        let damaged = |error: DecodeError| DiskError::Corrupt {
            name: name(place.segment),
            detail: format!("entry {index}: {error}"),
        };
        let mut sealed = vec![0; place.len as usize];
        file.read(place.at.into(), &mut sealed).map_err(|error| failed(&error))?;
        let entry = decode_entry_at_rest(&sealed, vault).map_err(damaged)?;
        if entry.log_id.index == *index {
            Ok(entry)
        } else {
            Err(damaged(DecodeError::Malformed("its index")))
        }
    }
}

/// Files that are only read: nothing is gained by opening them anew.
pub(super) struct Reading;

impl Reopen for Reading {
    fn generation(&self) -> u64 {
        0
    }

    fn reopen(&self, _generation: u64) -> Result<(), DiskError> {
        Ok(())
    }
}

fn closed() -> DiskError {
    DiskError::Closed { name: NAME.into() }
}

/// How large a segment is made: with the log it grows, so that a small one stays small, and so that a large one is not
/// made of many.
fn segment_bytes(log: usize, needed: usize) -> usize {
    let size = log.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    size.max(BLOCK_BYTES + needed).next_multiple_of(SEGMENT_BYTES_MIN)
}
