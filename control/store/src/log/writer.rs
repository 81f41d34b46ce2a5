//! What writes the log: takes in what has queued, makes it durable together, and tells who waits for it.

use std::io;
use std::sync::{Arc, Weak};

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::files::Files;
use super::find::{NAME, place};
use super::index::Place;
use super::segment::{Facts, Record};
use super::{MEMBER, Shared, VOTE};
use crate::disk::DiskError;
use crate::encryption::Vault;
use crate::health::{Health, Part};
use crate::runner::Runner;
use crate::types::{Entry, LogId, Types, Vote, encode_entry_at_rest};

/// Most bytes that one sync takes in.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) type Ack = oneshot::Sender<io::Result<()>>;

/// What the writer is asked for.
pub(super) enum Write {
    Append(Vec<Entry>, usize, IOFlushed<Types>),
    Vote(Vote, Ack),
    /// Removes everything from this index on.
    Truncate(u64, Ack),
    /// Removes everything up to this entry.
    Purge(LogId),
    Stop,
}

/// The writer.
pub(super) struct Writer {
    pub(super) files: Arc<Files>,
    pub(super) health: Arc<Health>,
    pub(super) runner: Runner,
    /// What is at rest.
    pub(super) facts: Facts,
    /// Not to be kept alive by what ends with it.
    pub(super) shared: Weak<Shared>,
}

/// What happens to the index when a batch is at rest.
enum Step {
    Push(u64, Place),
    Truncate(u64),
    Purge(LogId),
}

/// A batch as it is written.
pub(super) struct Encoded {
    pub(super) body: Vec<u8>,
    pub(super) facts: Facts,
    /// The places within the body, and not yet of a segment.
    steps: Vec<Step>,
}

impl Writer {
    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Write>) {
        let mut stopping = false;
        while !stopping {
            let Some(first) = orders.recv().await else { break };
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
        // Without it the next to open the log only has more to do.
        if let Err(error) = self.runner.work(|| self.files.finish()).await {
            tracing::warn!(%error, "the log was not closed in good order");
        }
    }

    /// Writes a batch and tells everybody who waits for it.
    async fn write(&mut self, batch: Vec<Write>) {
        let result = self.persist(&batch).await;
        if let Err(error) = &result {
            tracing::error!(%error, "the log can't be written any more");
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

    async fn persist(&mut self, batch: &[Write]) -> Result<(), DiskError> {
        let committed = self.shared.upgrade().and_then(|shared| shared.tail().committed);
        let encoded = encode(batch, self.facts, committed, self.files.vault());
        let encoded = encoded.map_err(|error| DiskError::io(NAME, &error))?;
        let attempt = |again: bool| {
            if again {
                self.verify()?;
            }
            self.files.append(&encoded.body, &encoded.facts)
        };
        let persisted = self.health.persist(Some(Part::Log), &self.runner, &*self.files, attempt).await;
        let (segment, body) = persisted?;
        self.facts = encoded.facts;
        let mut purged = false;
        if let Some(shared) = self.shared.upgrade() {
            let mut index = shared.index();
            for step in encoded.steps {
                match step {
                    Step::Push(at, within) => {
                        index.push(
                            at,
                            place(within.term, segment, body + within.at as usize, within.len as usize),
                        );
                    }
                    Step::Truncate(from) => index.admit(&Record::Truncate(from)),
                    Step::Purge(upto) => {
                        index.admit(&Record::Purge(upto));
                        purged = true;
                    }
                }
            }
            drop(index);
            let mut tail = shared.tail();
            for order in batch {
                if let Write::Append(entries, ..) = order
                    && let Some(last) = entries.last()
                {
                    tail.durable = last.log_id.index + 1;
                }
            }
            tail.evict();
        }
        if purged {
            self.runner.work(|| self.files.recycle()).await;
        }
        Ok(())
    }

    /// Whether files that were opened anew still have everything that they were known to have.
    fn verify(&self) -> Result<(), DiskError> {
        let corrupt = |what: &str, detail: String| {
            Err(DiskError::Corrupt { name: NAME.into(), detail: format!("{what}: {detail}") })
        };
        let Some(found) = self.files.facts() else { return Ok(()) };
        if found.member != self.facts.member {
            return corrupt(MEMBER, "it was replaced by another member's".into());
        }
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        let tail = shared.tail();
        if found.next < tail.durable {
            let (end, last) = (found.next, tail.durable - 1);
            return corrupt(NAME, format!("it ends before entry {end}, and entry {last} was in it"));
        }
        if found.vote < tail.vote {
            return corrupt(VOTE, "it is older than the one that was saved".into());
        }
        Ok(())
    }
}

pub(super) fn encode(
    batch: &[Write],
    mut facts: Facts,
    committed: Option<LogId>,
    vault: &Vault,
) -> io::Result<Encoded> {
    let bytes: usize =
        batch.iter().map(|order| if let Write::Append(_, size, _) = order { *size } else { 32 }).sum();
    let mut body = Vec::with_capacity(bytes + 64);
    let mut steps = Vec::new();
    for order in batch {
        let record = match order {
            Write::Append(entries, ..) => {
                for entry in entries {
                    let (index, sealed) = (entry.log_id.index, encode_entry_at_rest(entry, vault)?);
                    let at = Record::Entry { at: 0, sealed: &sealed }.encode(&mut body)?;
                    steps.push(Step::Push(index, place(entry.log_id.leader_id.term, 0, at, sealed.len())));
                    facts.next = index + 1;
                }
                continue;
            }
            Write::Vote(vote, _) => Record::Vote(*vote),
            Write::Truncate(from, _) => {
                steps.push(Step::Truncate(*from));
                Record::Truncate(*from)
            }
            Write::Purge(upto) => {
                steps.push(Step::Purge(*upto));
                Record::Purge(*upto)
            }
            Write::Stop => continue,
        };
        record.encode(&mut body)?;
        facts.admit(&record);
    }
    if let Some(committed) = committed.filter(|committed| facts.committed != Some(*committed)) {
        let record = Record::Committed(committed);
        record.encode(&mut body)?;
        facts.admit(&record);
    }
    Ok(Encoded { body, facts, steps })
}
