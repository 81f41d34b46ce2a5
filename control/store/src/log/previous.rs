//! The log as it was before it had segments: a database of its own, `log.redb`. It is read, and never written again.

use std::io;
use std::sync::Arc;

use redb::TableDefinition;

use super::segment::Facts;
use crate::DecodeError;
use crate::codec::Reader;
use crate::disk::{Disk, DiskError, ReadError, read_meta};
use crate::log::MEMBER;
use crate::types::{Entry, LogId, decode_entry, read_log_id};
use crate::volume::Volume;

pub(super) const NAME: &str = "log.redb";
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";

/// What such a log holds, if there is one. Blocks.
pub(super) fn read(volume: &Arc<dyn Volume>) -> Result<Option<(Facts, Vec<Entry>)>, DiskError> {
    let disk = match Disk::existing(volume.clone(), NAME, &|_| Ok(())) {
        Err(DiskError::Io { kind: io::ErrorKind::NotFound, .. }) => return Ok(None),
        opened => opened?,
    };
    let read = disk.read(|view| {
        let log_id = |key: &str| -> Result<Option<LogId>, ReadError> {
            let found = read_meta(view, key)?;
            found
                .map(|bytes| read_log_id(&mut Reader::new(&bytes)).map_err(ReadError::decode(key)))
                .transpose()
        };
        let member = read_meta(view, MEMBER)?.unwrap_or_default();
        let member = Reader::new(&member).u64().map_err(ReadError::decode(MEMBER))?;
        let vote = read_meta(view, VOTE)?.map(|bytes| {
            let malformed = |_| DecodeError::Malformed("the vote");
            serde_json::from_slice(&bytes).map_err(malformed).map_err(ReadError::decode(VOTE))
        });
        let (purged, committed) = (log_id(PURGED)?, log_id(COMMITTED)?);
        let next = purged.map_or(0, |purged| purged.index + 1);
        let mut entries: Vec<Entry> = Vec::new();
        for row in view.open_table(LOG)?.range::<u64>(..)? {
            let (index, bytes) = row?;
            let what = || format!("entry {}", index.value());
            let damaged = |error| ReadError::Decode { what: what(), error };
            let entry = decode_entry(bytes.value()).map_err(damaged)?;
            if entry.log_id.index != next + entries.len() as u64 || entry.log_id.index != index.value() {
                return Err(damaged(DecodeError::Malformed("the order of the log")));
            }
            entries.push(entry);
        }
        Ok((Facts { member, vote: vote.transpose()?, purged, committed, next }, entries))
    })?;
    Ok(Some(read))
}
