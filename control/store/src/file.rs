//! The state at rest: records, history and the position in raft's log that they belong to, in one redb database.
//!
//! Every save is one transaction, so what is at rest is always a state that was. It may be behind the state in memory:
//! raft's log has the rest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use redb::{Durability, ReadTransaction, ReadableTable as _, ReadableTableMetadata as _};
use redb::{TableDefinition, WriteTransaction};

use crate::codec::{DecodeError, Reader, put_bytes, put_u32, put_u64};
use crate::disk::{Disk, DiskError, ReadError, read_meta, write_meta};
use crate::encryption::Vault;
use crate::log::MEMBER;
use crate::pack::{pack, unpack};
#[cfg(feature = "simulation")]
use crate::simulation::plant;
use crate::types::{LogId, Membership, StoredMembership, put_log_id, read_log_id};
use crate::volume::Volume;
use crate::{Change, Key, Record, Revision};

pub(crate) const NAME: &str = "state.redb";
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// By revision and place within its transaction.
const HISTORY: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("history");
const POSITION: &str = "position";

/// Which state it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last log entry that is in it.
    pub(crate) applied: Option<LogId>,
    /// The last membership up to there.
    pub(crate) membership: StoredMembership,
    /// Its revision.
    pub(crate) revision: Revision,
    /// The revision after which its history begins.
    pub(crate) floor: Revision,
    /// How many records it has: a table cut short would not betray itself otherwise.
    pub(crate) records: u64,
}

impl Position {
    /// Where a store begins.
    pub(crate) fn first() -> Self {
        Self { revision: Revision::FIRST, floor: Revision::FIRST, ..Self::default() }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::with_capacity(128);
        put_optional(&mut out, self.applied.as_ref());
        put_optional(&mut out, self.membership.log_id().as_ref());
        put_bytes(&mut out, &serde_json::to_vec(self.membership.membership())?);
        put_u64(&mut out, self.revision.0);
        put_u64(&mut out, self.floor.0);
        put_u64(&mut out, self.records);
        Ok(out)
    }

    pub(crate) fn decode(input: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(input);
        let applied = read_optional(&mut reader)?;
        let set_at = read_optional(&mut reader)?;
        let membership: Membership =
            serde_json::from_slice(reader.bytes()?).map_err(|_| DecodeError::Malformed("a membership"))?;
        let membership = StoredMembership::new(set_at, membership);
        let revision = Revision(reader.u64()?);
        let floor = Revision(reader.u64()?);
        let records = reader.u64()?;
        reader.end()?;
        Ok(Self { applied, membership, revision, floor, records })
    }
}

pub(crate) fn put_optional(out: &mut Vec<u8>, id: Option<&LogId>) {
    out.push(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

pub(crate) fn read_optional(reader: &mut Reader<'_>) -> Result<Option<LogId>, DecodeError> {
    match reader.u8()? {
        0 => Ok(None),
        1 => read_log_id(reader).map(Some),
        _ => Err(DecodeError::Malformed("a log id")),
    }
}

/// A whole state, as it is loaded or sent.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) position: Position,
    pub(crate) records: BTreeMap<Key, Record>,
    pub(crate) history: Vec<Change>,
}

impl Image {
    /// Whether the parts belong together.
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        let Position { revision, floor, records, .. } = &self.position;
        if self.records.len() as u64 != *records {
            return Err(DecodeError::Malformed("the number of records"));
        }
        if self.records.values().any(|record| record.revision() > *revision) {
            return Err(DecodeError::Malformed("the revision of a record"));
        }
        let mut last = *floor;
        for change in &self.history {
            // A revision is never skipped, and one transaction may make several changes.
            if change.revision != last.next() && (change.revision != last || last == *floor) {
                return Err(DecodeError::Malformed("the order of the history"));
            }
            last = change.revision;
        }
        if last == *revision { Ok(()) } else { Err(DecodeError::Malformed("the end of the history")) }
    }
}

/// What changed since the last save.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: BTreeMap<Key, Option<Record>>,
    pub(crate) history: VecDeque<Arc<Change>>,
    pub(crate) position: Position,
}

/// The database.
#[derive(Debug)]
pub(crate) struct StateFile {
    disk: Arc<Disk>,
    vault: Arc<Vault>,
    member: u64,
}

impl StateFile {
    /// Opens what belongs to a member, or makes it empty. Blocks.
    pub(crate) fn open(volume: &Arc<dyn Volume>, member: u64, vault: Arc<Vault>) -> Result<Self, DiskError> {
        let disk = Disk::open(volume, NAME, &|transaction| {
            transaction.open_table(RECORDS)?;
            transaction.open_table(HISTORY)?;
            write_meta(transaction, MEMBER, &member.to_le_bytes())
        })?;
        let file = Self { disk: Arc::new(disk), vault, member };
        file.verify_owner()?;
        Ok(file)
    }

    /// Whose state a file holds, and which, without opening it for anybody. Blocks.
    pub(crate) fn look(volume: Arc<dyn Volume>, vault: Arc<Vault>) -> Result<(u64, Image), DiskError> {
        let disk = Arc::new(Disk::existing(volume, NAME, &|_| Ok(()))?);
        let owner = disk.read(|view| read_meta(view, MEMBER))?.unwrap_or_default();
        let member = Reader::new(&owner).u64().map_err(|error| disk.corrupt(MEMBER, error))?;
        let image = Self { disk, vault, member }.load()?;
        Ok((member, image))
    }

    fn verify_owner(&self) -> Result<(), DiskError> {
        let owner = self.disk.read(|view| read_meta(view, MEMBER))?.unwrap_or_default();
        if owner == self.member.to_le_bytes() {
            return Ok(());
        }
        Err(self.disk.corrupt(MEMBER, "the log beside it is another member's"))
    }

    /// Whether a file that was opened anew still has what was saved last. Blocks.
    pub(crate) fn verify(&self, saved: Option<&LogId>) -> Result<(), DiskError> {
        self.verify_owner()?;
        let found = self.disk.read(|view| {
            self.each_record(view, |_, _| Ok(()))?;
            self.each_change(view, |_| Ok(()))?;
            position(view)
        })?;
        if found.applied.as_ref() < saved {
            return Err(self.disk.corrupt("the state", "it is older than the one that was saved"));
        }
        Ok(())
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    pub(crate) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Everything that was last saved. Blocks.
    pub(crate) fn load(&self) -> Result<Image, DiskError> {
        self.load_view(&self.disk.view()?)
    }

    pub(crate) fn load_view(&self, view: &ReadTransaction) -> Result<Image, DiskError> {
        self.disk.read_view(view, |view| {
            let position = position(view)?;
            let mut records = BTreeMap::new();
            self.each_record(view, |key, record| {
                records.insert(key, record);
                Ok(())
            })?;
            let mut history = Vec::new();
            self.each_change(view, |change| {
                history.push(change);
                Ok(())
            })?;
            let image = Image { position, records, history };
            image.check().map_err(ReadError::decode("the state as a whole"))?;
            Ok(image)
        })
    }

    /// Where a view stands.
    pub(crate) fn position(&self, view: &ReadTransaction) -> Result<Position, DiskError> {
        self.disk.read_view(view, position)
    }

    /// Saves what changed, durably. Blocks.
    pub(crate) fn save(&self, batch: &Batch) -> Result<(), DiskError> {
        self.disk.write(Durability::Immediate, |transaction| {
            let mut records = transaction.open_table(RECORDS)?;
            #[cfg(feature = "simulation")]
            let left_out = plant::is(&plant::AHEAD).then(|| batch.records.keys().next_back()).flatten();
            for (key, record) in &batch.records {
                #[cfg(feature = "simulation")]
                if left_out == Some(key) {
                    continue;
                }
                match record {
                    Some(record) => records.insert(key.as_str(), &*self.record(key, record)?)?,
                    None => records.remove(key.as_str())?,
                };
            }
            let mut history = transaction.open_table(HISTORY)?;
            let floor = batch.position.floor.0;
            history.retain_in(..(floor + 1, 0), |_, _| false)?;
            self.insert_history(&mut history, batch.history.iter().map(|change| &**change), floor)?;
            save_position(transaction, &Position { records: records.len()?, ..batch.position.clone() })
        })
    }

    /// Replaces everything, durably. Blocks.
    pub(crate) fn replace(&self, image: &Image) -> Result<(), DiskError> {
        self.disk.write(Durability::Immediate, |transaction| {
            transaction.delete_table(RECORDS)?;
            transaction.delete_table(HISTORY)?;
            let mut records = transaction.open_table(RECORDS)?;
            for (key, record) in &image.records {
                records.insert(key.as_str(), &*self.record(key, record)?)?;
            }
            let mut history = transaction.open_table(HISTORY)?;
            self.insert_history(&mut history, &image.history, image.position.floor.0)?;
            save_position(transaction, &image.position)
        })
    }

    /// Writes everything anew, so that what is encrypted is with the current key. Blocks.
    pub(crate) fn encrypt_anew(&self) -> Result<(), DiskError> {
        self.replace(&self.load()?)?;
        self.vault.settle()
    }

    /// A record as it is written.
    fn record(&self, key: &Key, record: &Record) -> Result<Vec<u8>, redb::Error> {
        self.at_rest(key, key.as_str().as_bytes(), record.encode())
    }

    /// What belongs to a key, as it is written to a place: encrypted or packed.
    fn at_rest(&self, key: &Key, place: &[u8], value: Vec<u8>) -> Result<Vec<u8>, redb::Error> {
        // What is encrypted can't be packed: then this does nothing.
        self.vault.protect(key, place, value).map(pack).map_err(redb::Error::Io)
    }

    fn insert_history<'a>(
        &self,
        table: &mut redb::Table<'_, (u64, u32), &'static [u8]>,
        changes: impl IntoIterator<Item = &'a Change>,
        floor: u64,
    ) -> Result<(), redb::Error> {
        let mut last = (0, 0);
        for change in changes.into_iter().filter(|change| change.revision.0 > floor) {
            let place = if change.revision.0 == last.0 { last.1 + 1 } else { 0 };
            last = (change.revision.0, place);
            let encoded = self.at_rest(&change.key, &history_place(last), change.encode())?;
            table.insert(last, &*encoded)?;
        }
        Ok(())
    }

    /// Visits every record of a view.
    pub(crate) fn each_record(
        &self,
        view: &ReadTransaction,
        mut visit: impl FnMut(Key, Record) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        for row in view.open_table(RECORDS)?.iter()? {
            let (key, bytes) = row?;
            let key = key.value();
            let what = || ReadError::decode(key);
            let bytes = unpack(bytes.value()).map_err(what())?;
            let bytes = self.vault.reveal(key.as_bytes(), &bytes).map_err(what())?;
            visit(Key::new(key), Record::decode(&bytes).map_err(what())?)?;
        }
        Ok(())
    }

    /// Visits the history of a view.
    pub(crate) fn each_change(
        &self,
        view: &ReadTransaction,
        mut visit: impl FnMut(Change) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        for row in view.open_table(HISTORY)?.iter()? {
            let (place, bytes) = row?;
            let place = place.value();
            let what = |error| ReadError::Decode { what: format!("history {place:?}"), error };
            let bytes = unpack(bytes.value()).map_err(what)?;
            let bytes = self.vault.reveal(&history_place(place), &bytes).map_err(what)?;
            visit(Change::decode(&bytes).map_err(what)?)?;
        }
        Ok(())
    }
}

/// Where a change lies, for what binds it to its place.
fn history_place((revision, place): (u64, u32)) -> Vec<u8> {
    let mut out = Vec::with_capacity(12);
    put_u64(&mut out, revision);
    put_u32(&mut out, place);
    out
}

fn save_position(transaction: &WriteTransaction, position: &Position) -> Result<(), redb::Error> {
    let encoded = position.encode().map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
    write_meta(transaction, POSITION, &encoded)
}

fn position(view: &ReadTransaction) -> Result<Position, ReadError> {
    match read_meta(view, POSITION)? {
        Some(bytes) => Position::decode(&bytes).map_err(ReadError::decode(POSITION)),
        None => Ok(Position::first()),
    }
}
