//! Raft's log, on a redb database of its own, behind one writer thread.
//!
//! Votes, appends, truncations and purges go through one queue and reach the disk in its order. Whatever queued while
//! the last sync ran goes into the next one together. Entries that are not yet durable, and recent ones, are in memory,
//! for raft reads back what it has just appended. Purges and the committed position cost no sync of their own: losing
//! them in a crash only means that they happen again.
//!
//! Raft gives up for good at the first error of a log, so it is told of none that may pass: what the disk refuses waits
//! in the writer and keeps its place in the order.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use redb::{Durability, ReadableTableMetadata as _, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::codec::Reader;
use crate::disk::{Disk, DiskError, ReadError, read_meta, write_meta};
use crate::health::{Health, Part};
use crate::runner::Runner;
#[cfg(feature = "simulation")]
use crate::simulation::plant;
use crate::types::{Entry, LogId, Payload, Types, Vote, decode_entry, encode_entry, put_log_id, read_log_id};
use crate::volume::Volume;

/// Bytes of entries kept in memory beyond those that are not yet durable.
const CACHE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes that one sync takes in.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of entries that another member is sent at once, but for the last of them, which may exceed it.
const SENT_BYTES_MAX: usize = 8 * 1024 * 1024;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub(crate) const NAME: &str = "log.redb";
/// The member that a file belongs to.
pub(crate) const MEMBER: &str = "member";
const VOTE: &str = "vote";
const PURGED: &str = "purged";
const COMMITTED: &str = "committed";

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

    fn facts(&self, member: u64) -> LogFacts {
        LogFacts { member, last: self.last, purged: self.purged, vote: self.vote }
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

type Ack = oneshot::Sender<io::Result<()>>;

/// What the writer is asked for.
enum Write {
    Append(Vec<Entry>, usize, IOFlushed<Types>),
    Vote(Vote, Ack),
    /// Removes everything from this index on.
    Truncate(u64, Ack),
    /// Removes everything up to this entry.
    Purge(LogId),
    Stop,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<Disk>,
    health: Arc<Health>,
    member: u64,
    tail: Mutex<Tail>,
    runner: Runner,
    queue: mpsc::UnboundedSender<Write>,
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        // Poisoned only if a holder panicked, and none of them can between two steps that belong together.
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Opens the log. Nothing is written before its writer runs. Blocks.
    pub(crate) fn open(
        volume: &Arc<dyn Volume>,
        health: Arc<Health>,
        runner: Runner,
        fresh: u64,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), DiskError> {
        let disk = Arc::new(Disk::open(volume, NAME, &|transaction| {
            transaction.open_table(LOG)?;
            write_meta(transaction, MEMBER, &fresh.to_le_bytes())
        })?);
        let member = read_member(&disk)?;
        let tail = disk.read(read_tail)?;
        let (queue, orders) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { disk, health, member, tail: Mutex::new(tail), runner, queue });
        let scribe = Scribe {
            disk: shared.disk.clone(),
            health: shared.health.clone(),
            runner: shared.runner.clone(),
            member,
            shared: Arc::downgrade(&shared),
        };
        Ok((Self { shared }, scribe.run(orders)))
    }

    /// What a log holds and how many entries that is, without opening it for anybody. Blocks.
    pub(crate) fn look(volume: Arc<dyn Volume>) -> Result<(LogFacts, u64), DiskError> {
        let disk = Disk::existing(volume, NAME, &|_| Ok(()))?;
        let tail = disk.read(read_tail)?;
        let entries = disk.read(|view| Ok(view.open_table(LOG)?.len()?))?;
        Ok((tail.facts(read_member(&disk)?), entries))
    }

    /// What it holds.
    pub(crate) fn facts(&self) -> LogFacts {
        self.shared.tail().facts(self.shared.member)
    }

    /// The member's id: minted when the log is made, never changed.
    pub(crate) fn member_id(&self) -> u64 {
        self.shared.member
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.shared.disk
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

fn read_member(disk: &Disk) -> Result<u64, DiskError> {
    let id = disk.read(|view| read_meta(view, MEMBER))?.unwrap_or_default();
    Reader::new(&id).u64().map_err(|error| disk.corrupt(MEMBER, error))
}

fn read_tail(view: &redb::ReadTransaction) -> Result<Tail, ReadError> {
    let log_id = |key: &str| -> Result<Option<LogId>, ReadError> {
        let found = read_meta(view, key)?;
        found.map(|bytes| read_log_id(&mut Reader::new(&bytes)).map_err(ReadError::decode(key))).transpose()
    };
    let vote = read_meta(view, VOTE)?.map(|bytes| {
        let malformed = |_| crate::DecodeError::Malformed("the vote");
        serde_json::from_slice(&bytes).map_err(malformed).map_err(ReadError::decode(VOTE))
    });
    let purged = log_id(PURGED)?;
    let log = view.open_table(LOG)?;
    let mut last = purged;
    // Every entry is read once, so that a damaged one is found now and not when a follower needs it.
    for row in log.range::<u64>(..)? {
        let (index, bytes) = row?;
        let entry = read_entry(index.value(), bytes.value())?;
        let follows = last.as_ref().is_none_or(|last: &LogId| last.index + 1 == entry.log_id.index);
        if !follows {
            let error = crate::DecodeError::Malformed("the order of the log");
            return Err(ReadError::Decode { what: format!("entry {}", index.value()), error });
        }
        last = Some(entry.log_id);
    }
    let durable = last.as_ref().map_or(0, |last| last.index + 1);
    Ok(Tail {
        last,
        purged,
        vote: vote.transpose()?,
        committed: log_id(COMMITTED)?,
        durable,
        ..Tail::default()
    })
}

fn read_entry(index: u64, bytes: &[u8]) -> Result<Entry, ReadError> {
    let what = || format!("entry {index}");
    let entry = decode_entry(bytes).map_err(|error| ReadError::Decode { what: what(), error })?;
    if entry.log_id.index == index {
        return Ok(entry);
    }
    Err(ReadError::Decode { what: what(), error: crate::DecodeError::Malformed("its index") })
}

/// The writer.
struct Scribe {
    disk: Arc<Disk>,
    health: Arc<Health>,
    runner: Runner,
    member: u64,
    /// Not to be kept alive by the thread that ends with it.
    shared: Weak<Shared>,
}

impl Scribe {
    async fn run(self, mut orders: mpsc::UnboundedReceiver<Write>) {
        let mut stopping = false;
        while !stopping {
            let Some(first) = orders.recv().await else { return };
            let mut batch = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(order) = next {
                match order {
                    Write::Stop => {
                        stopping = true;
                        break;
                    }
                    Write::Append(_, size, _) => bytes += size,
                    Write::Vote(..) | Write::Truncate(..) | Write::Purge(..) => {}
                }
                batch.push(order);
                next = if bytes < BATCH_BYTES_MAX { orders.try_recv().ok() } else { None };
            }
            if !batch.is_empty() {
                self.write(batch).await;
            }
        }
    }

    /// Writes a batch and tells everybody who waits for it.
    async fn write(&self, batch: Vec<Write>) {
        let committed = self.tail(|tail| tail.committed).flatten();
        let attempt = |again: bool| {
            if again {
                self.verify()?;
            }
            write_batch(&self.disk, &batch, committed.as_ref())
        };
        let result = self.health.persist(Some(Part::Log), &self.runner, &*self.disk, attempt).await;
        if let Err(error) = &result {
            tracing::error!(%error, "the log can't be written any more");
        } else {
            self.tail(|tail| {
                for order in &batch {
                    if let Write::Append(entries, ..) = order
                        && let Some(last) = entries.last()
                    {
                        tail.durable = last.log_id.index + 1;
                    }
                }
                tail.evict();
            });
        }
        for order in batch {
            let result = match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::other(error.to_string())),
            };
            match order {
                Write::Append(.., done) => done.io_completed(result),
                // Whoever asked may be gone; the work is done all the same.
                Write::Vote(_, ack) | Write::Truncate(_, ack) => drop(ack.send(result)),
                Write::Purge(_) | Write::Stop => {}
            }
        }
    }

    /// `None` once nobody is left who could ask for anything.
    fn tail<T>(&self, look: impl FnOnce(&mut Tail) -> T) -> Option<T> {
        self.shared.upgrade().map(|shared| look(&mut shared.tail()))
    }

    /// Whether a file that was opened anew still has everything that it was known to have.
    fn verify(&self) -> Result<(), DiskError> {
        if read_member(&self.disk)? != self.member {
            return Err(self.disk.corrupt(MEMBER, "the log was replaced by another member's"));
        }
        let found = self.disk.read(read_tail)?;
        let Some((durable, vote)) = self.tail(|tail| (tail.durable, tail.vote)) else { return Ok(()) };
        if found.durable < durable {
            let lost = format!("it ends before entry {}, and entry {} was in it", found.durable, durable - 1);
            return Err(self.disk.corrupt("the log", lost));
        }
        if found.vote < vote {
            return Err(self.disk.corrupt(VOTE, "it is older than the one that was saved"));
        }
        Ok(())
    }
}

fn write_batch(disk: &Disk, batch: &[Write], committed: Option<&LogId>) -> Result<(), DiskError> {
    let lasting = batch.iter().any(|order| !matches!(order, Write::Purge(..)));
    let durability = if lasting { Durability::Immediate } else { Durability::None };
    let json = |error: serde_json::Error| redb::Error::Io(io::Error::other(error));
    let log_id = |id: &LogId| {
        let mut out = Vec::with_capacity(16);
        put_log_id(&mut out, id);
        out
    };
    disk.write(durability, |transaction| {
        let mut log = transaction.open_table(LOG)?;
        for order in batch {
            match order {
                Write::Append(entries, ..) => {
                    for entry in entries {
                        log.insert(entry.log_id.index, &*encode_entry(entry).map_err(json)?)?;
                    }
                }
                Write::Vote(vote, _) => {
                    write_meta(transaction, VOTE, &serde_json::to_vec(vote).map_err(json)?)?;
                }
                Write::Truncate(from, _) => log.retain_in(*from.., |_, _| false)?,
                Write::Purge(upto) => {
                    log.retain_in(..=upto.index, |_, _| false)?;
                    write_meta(transaction, PURGED, &log_id(upto))?;
                }
                Write::Stop => {}
            }
        }
        if let Some(committed) = committed {
            write_meta(transaction, COMMITTED, &log_id(committed))?;
        }
        Ok(())
    })
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
        let shared = self.shared.clone();
        let read = async move {
            let read = |_| {
                shared.disk.read(|view| {
                    let mut entries = Vec::new();
                    for row in view.open_table(LOG)?.range(start..end)? {
                        let (index, bytes) = row?;
                        entries.push(read_entry(index.value(), bytes.value())?);
                    }
                    Ok(entries)
                })
            };
            shared.health.persist(None, &shared.runner, &*shared.disk, read).await
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
            bytes += match &entry.payload {
                Payload::Normal(command) => command.0.size(),
                Payload::Blank | Payload::Membership(_) => 0,
            };
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
            let size = match &entry.payload {
                Payload::Normal(command) => command.0.size() + 64,
                Payload::Blank | Payload::Membership(_) => 64,
            };
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
        // Nobody has to wait for what may be lost.
        self.shared.send(Write::Purge(upto))
    }
}
