//! Raft's log, in segments, behind one writer.
//!
//! Votes, appends, truncations and purges go through one queue and reach the disk in its order. Whatever queued while
//! the last sync ran goes into the next one together. Entries that are not yet durable, and recent ones, are in memory,
//! for raft reads back what it has just appended; of the others it is known where they are. The committed position costs
//! no sync of its own: losing it in a crash only means that it is found again.
//!
//! Raft gives up for good at the first error of a log, so it is told of none that may pass: what the disk refuses waits
//! in the writer and keeps its place in the order.

mod blocks;
mod files;
mod find;
mod index;
mod previous;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::files::Files;
use self::files::Reading;
use self::find::find;
use self::index::Index;
use self::segment::Facts;
#[cfg(test)]
pub(crate) use self::segment::set_format;
use self::writer::{Ack, Write, Writer};
use crate::disk::DiskError;
use crate::encryption::Vault;
use crate::health::Health;
use crate::runner::Runner;
#[cfg(feature = "simulation")]
use crate::simulation::plant;
use crate::types::{Entry, LogId, Types, Vote, entry_bytes};
use crate::volume::Volume;

/// Bytes of entries kept in memory beyond those that are not yet durable.
const CACHE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of entries that another member is sent at once, but for the last of them, which may exceed it.
const SENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The member that a file belongs to.
pub(crate) const MEMBER: &str = "member";
const VOTE: &str = "vote";

/// The end of the log, in memory.
#[derive(Debug, Default)]
struct Tail {
    /// The newest entries with their sizes, without a gap, up to `last`.
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// The first index that is not durable.
    durable: u64,
}

impl Tail {
    fn next(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.index + 1)
    }

    /// The first index in memory.
    fn first(&self) -> u64 {
        self.entries.front().map_or_else(|| self.next(), |(entry, _)| entry.log_id.index)
    }

    fn evict(&mut self) {
        let durable = self.durable;
        while self.bytes > CACHE_BYTES_MAX {
            match self.entries.pop_front_if(|(entry, _)| entry.log_id.index < durable) {
                Some((_, size)) => self.bytes -= size,
                None => break,
            }
        }
    }
}

#[derive(Debug)]
struct Shared {
    files: Arc<Files>,
    health: Arc<Health>,
    runner: Runner,
    member: u64,
    tail: Mutex<Tail>,
    /// Where the entries are that are at rest.
    index: Mutex<Index>,
    queue: mpsc::UnboundedSender<Write>,
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        // Poisoned only if a holder panicked, and none of them can between two steps that belong together.
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never taken while the tail is held.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, write: Write) -> io::Result<()> {
        self.queue.send(write).map_err(|_| io::Error::other("the log is closed"))
    }
}

/// What a log holds.
#[derive(Debug)]
pub(crate) struct LogFacts {
    pub(crate) member: u64,
    pub(crate) last: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) vote: Option<Vote>,
}

/// Raft's log. Clones are the same log.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

impl LogStore {
    /// Opens the log, or makes one for the member that this is to be. Nothing is appended before its writer runs. Blocks.
    pub(crate) fn open(
        volume: &Arc<dyn Volume>,
        health: Arc<Health>,
        runner: Runner,
        fresh_id: u64,
        vault: Arc<Vault>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), DiskError> {
        let begin = || {
            let fresh = || (Facts { member: fresh_id, ..Facts::default() }, Vec::new());
            Ok(previous::read(volume)?.unwrap_or_else(fresh))
        };
        let (files, contents) = Files::open(volume, vault, begin)?;
        // It was carried over, now or before a crash.
        let carried = |error: io::Error| DiskError::io(previous::NAME, &error);
        if volume.list().map_err(carried)?.iter().any(|name| name == previous::NAME) {
            volume.remove(previous::NAME).map_err(carried)?;
        }
        let (files, facts) = (Arc::new(files), contents.facts);
        let tail = Tail {
            last: contents.index.last().or(facts.purged),
            purged: facts.purged,
            vote: facts.vote,
            committed: facts.committed,
            durable: facts.next,
            ..Tail::default()
        };
        let (queue, orders) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            files: files.clone(),
            health: health.clone(),
            runner: runner.clone(),
            member: facts.member,
            tail: Mutex::new(tail),
            index: Mutex::new(contents.index),
            queue,
        });
        let writer = Writer { files, health, runner, facts, shared: Arc::downgrade(&shared) };
        Ok((Self { shared }, writer.run(orders)))
    }

    /// What a log holds and how many entries that is, without opening it for anybody. Blocks.
    pub(crate) fn look(volume: &Arc<dyn Volume>) -> Result<(LogFacts, u64), DiskError> {
        if let Some(found) = find(&**volume)? {
            let (facts, index) = (found.contents.facts, found.contents.index);
            return Ok((log_facts(&facts, index.last()), index.len() as u64));
        }
        match previous::read(volume)? {
            Some((facts, entries)) => {
                let last = entries.last().map(|last| last.log_id);
                Ok((log_facts(&facts, last), entries.len() as u64))
            }
            None => Err(DiskError::io(find::NAME, &io::ErrorKind::NotFound.into())),
        }
    }

    /// What it holds.
    pub(crate) fn facts(&self) -> LogFacts {
        let tail = self.shared.tail();
        LogFacts { member: self.shared.member, last: tail.last, purged: tail.purged, vote: tail.vote }
    }

    /// The index that the next entry gets.
    pub(crate) fn next_index(&self) -> u64 {
        self.shared.tail().next()
    }

    /// The index of the first entry that was not purged.
    pub(crate) fn first_index(&self) -> u64 {
        self.shared.tail().purged.map_or(0, |purged| purged.index + 1)
    }

    /// Waits until all that it was told so far is durable.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        // The vote says nothing new, but keeps its place in the order.
        let vote = self.shared.tail().vote;
        match vote {
            Some(vote) => self.acked(|ack| Write::Vote(vote, ack)).await,
            None => Ok(()),
        }
    }

    /// The member's id: minted when the log is made, never changed.
    pub(crate) fn member_id(&self) -> u64 {
        self.shared.member
    }

    pub(crate) fn files(&self) -> &Files {
        &self.shared.files
    }

    /// Asks the writer to end after what is queued.
    pub(crate) fn stop(&self) {
        let _ = self.shared.send(Write::Stop);
    }

    async fn acked(&self, write: impl FnOnce(Ack) -> Write) -> io::Result<()> {
        let (ack, done) = oneshot::channel();
        self.shared.send(write(ack))?;
        done.await.map_err(|_| io::Error::other("the log is closed"))?
    }
}

fn log_facts(facts: &Facts, last: Option<LogId>) -> LogFacts {
    let Facts { member, vote, purged, .. } = *facts;
    LogFacts { member, last: last.or(purged), purged, vote }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let (first, recent) = {
            let tail = self.shared.tail();
            let first = tail.first();
            let recent = tail.entries.iter().map(|(entry, _)| entry);
            let recent = recent.skip_while(|entry| entry.log_id.index < start);
            (first, recent.take_while(|entry| entry.log_id.index < end).cloned().collect::<Vec<_>>())
        };
        let end = end.min(first);
        if start >= end {
            return Ok(recent);
        }
        let sought = {
            let index = self.shared.index();
            let there = start.max(index.first())..end;
            let places: Vec<_> = there.map_while(|at| Some((at, index.get(at)?))).collect();
            // Before the index is let go: what is purged meanwhile remains readable.
            self.shared.files.of(&places)
        };
        let Shared { files, health, runner, .. } = &*self.shared;
        let (files, health, runner) = (files.clone(), health.clone(), runner.clone());
        let read = async move {
            let vault = files.vault();
            let read = |_| sought.iter().map(|sought| sought.read(vault)).collect::<Result<Vec<_>, _>>();
            health.persist(None, &runner, &Reading, read).await
        };
        let mut entries = self.shared.runner.lend(read).await??;
        entries.extend(recent);
        Ok(entries)
    }

    /// What another member is sent at once: at least one entry, and no more bytes than a message should have.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let room = bytes < SENT_BYTES_MAX;
            bytes += entry_bytes(entry);
            room
        };
        let sent = entries.iter().take_while(fits).count();
        entries.truncate(sent);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.tail().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let tail = self.shared.tail();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        #[cfg(feature = "simulation")]
        if plant::is(&plant::VOTE) {
            self.shared.tail().vote = Some(*vote);
            return Ok(());
        }
        self.acked(|ack| Write::Vote(*vote, ack)).await?;
        self.shared.tail().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // It rides with the next batch: that it may be older than the truth after a crash does no harm.
        self.shared.tail().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        #[cfg(feature = "simulation")]
        let callback = if plant::is(&plant::UNSYNCED) {
            callback.io_completed(Ok(()));
            IOFlushed::noop()
        } else {
            callback
        };
        let mut bytes = 0;
        let mut tail = self.shared.tail();
        for entry in &entries {
            let size = entry_bytes(entry);
            bytes += size;
            tail.entries.push_back((entry.clone(), size));
            tail.last = Some(entry.log_id);
        }
        tail.bytes += bytes;
        // Under the lock, so that the queue has the order of the tail.
        self.shared.send(Write::Append(entries, bytes, callback))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.as_ref().map_or(0, |last| last.index + 1);
        {
            let mut tail = self.shared.tail();
            while let Some((_, size)) = tail.entries.pop_back_if(|(entry, _)| entry.log_id.index >= from) {
                tail.bytes -= size;
            }
            tail.last = tail.last.min(last);
            tail.durable = tail.durable.min(from);
        }
        self.acked(|ack| Write::Truncate(from, ack)).await?;
        // Raft appends nothing before this returns, so nothing beyond `from` is on its way.
        let mut tail = self.shared.tail();
        tail.durable = tail.durable.min(from);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut tail = self.shared.tail();
            while let Some((_, size)) =
                tail.entries.pop_front_if(|(entry, _)| entry.log_id.index <= upto.index)
            {
                tail.bytes -= size;
            }
            tail.purged = Some(upto);
            if tail.last < tail.purged {
                tail.last = tail.purged;
            }
        }
        // Nobody has to wait for it.
        self.shared.send(Write::Purge(upto))
    }
}
