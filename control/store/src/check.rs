//! Looks at a store that nobody has open, and says whether it is whole, which changes nothing; and gives it another key.
//!
//! Both files are read to their ends: redb's checksums, then the seal of each value, then what must hold between values
//! and between the files. A file that was not closed is judged as a start would find it, after a recovery that happens in
//! memory alone.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::DiskError;
use crate::encryption::{Encryption, EncryptionKey, Vault};
use crate::file::{Position, StateFile};
use crate::log::{LogFacts, LogStore};
use crate::volume::{Dir, Volume, VolumeFile};
use crate::{OpenError, Revision, Term};

/// What is kept of a file at once, when some of it is written.
const PAGE_BYTES: u64 = 4096;

/// What a store holds, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The member that the store belongs to.
    pub member: Option<u64>,
    /// The term of its last vote.
    pub term: Option<Term>,
    /// Entries in the log.
    pub entries: u64,
    /// The last of them.
    pub last: Option<u64>,
    /// The entry up to which the state at rest has them.
    pub applied: Option<u64>,
    /// The revision of the state at rest.
    pub revision: Revision,
    /// Its records.
    pub records: u64,
    /// What must not be, in a sentence each.
    pub problems: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn or_none(value: Option<impl fmt::Display>) -> String {
            value.map_or_else(|| "none".to_owned(), |value| value.to_string())
        }
        writeln!(f, "member    {}", or_none(self.member.map(|member| format!("{member:016x}"))))?;
        writeln!(f, "term      {}", or_none(self.term))?;
        writeln!(f, "log       {} entries, the last is {}", self.entries, or_none(self.last))?;
        writeln!(f, "state     {} records at revision {}", self.records, self.revision)?;
        writeln!(f, "applied   {}", or_none(self.applied))?;
        for problem in &self.problems {
            writeln!(f, "problem   {problem}")?;
        }
        match self.problems.len() {
            0 => write!(f, "no problem found"),
            1 => write!(f, "1 problem found"),
            count => write!(f, "{count} problems found"),
        }
    }
}

/// Checks the store in a directory. Blocks.
pub fn check(dir: &Path, key: Option<&EncryptionKey>) -> Result<Report, OpenError> {
    let _lock = lock(dir)?;
    let mut report = Report::default();
    let volume: Arc<dyn Volume> = Arc::new(Overlay { dir: Dir::new(dir) });
    // Nothing is written, so it does not matter what would be encrypted.
    let encryption = key.map(|key| Encryption { key: key.clone(), prefixes: Vec::new() });
    let vault = Vault::look(&volume, encryption.as_ref()).map_err(|error| OpenError::disk(dir, error))?;
    let vault = Arc::new(vault);
    let log = LogStore::look(&volume);
    let state = StateFile::look(volume, vault);
    match &log {
        Ok((log, entries)) => {
            report.entries = *entries;
            report.member = Some(log.member);
            report.term = log.vote.map(|vote| Term(vote.leader_id.term));
            report.last = log.last.map(|last| last.index);
        }
        Err(error) => report.problems.push(error.to_string()),
    }
    match &state {
        Ok((_, image)) => {
            report.applied = image.position.applied.map(|applied| applied.index);
            report.revision = image.position.revision;
            report.records = image.records.len() as u64;
        }
        Err(error) => report.problems.push(error.to_string()),
    }
    if let (Ok((log, _)), Ok((owner, image))) = (&log, &state) {
        if *owner != log.member {
            report.problems.push("the state is another member's than the log".into());
        }
        report.problems.extend(contradictions(log, &image.position).into_iter().map(str::to_owned));
    }
    Ok(report)
}

/// Lets another key open what is encrypted in a directory. Blocks.
pub fn rekey(dir: &Path, old: &EncryptionKey, new: &EncryptionKey) -> Result<(), OpenError> {
    let _lock = lock(dir)?;
    Vault::rewrap(&Dir::new(dir), old, new).map_err(|error| OpenError::disk(dir, error))
}

/// Keeps everybody else out while it is held.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let failed = |error: io::Error| OpenError::disk(dir, DiskError::io("lock", &error));
    let lock = File::open(dir.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// What must not be between a log and the state beside it.
pub(crate) fn contradictions(log: &LogFacts, position: &Position) -> Vec<&'static str> {
    let Position { applied, membership, .. } = position;
    let others = membership.nodes().any(|(member, _)| *member != log.member);
    let term = log.vote.map_or(0, |vote| vote.leader_id.term);
    let newest = log.last.map_or(0, |last| last.leader_id.term);
    let rules = [
        // Another member may have sent a state that is ahead of the log; a lone member's log is always ahead.
        (others || *applied <= log.last, "the log is older than the state beside it"),
        (log.purged <= *applied, "the log has dropped entries that are not in the state beside it"),
        (newest <= term, "the log has entries of a term after that of the last vote"),
    ];
    rules.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem).collect()
}

/// A directory whose files seem to be written, while they are only read.
#[derive(Debug)]
struct Overlay {
    dir: Dir,
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Volume for Overlay {
    fn list(&self) -> io::Result<Vec<String>> {
        self.dir.list()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        let file = self.dir.open(name)?;
        let size = file.size()?;
        if size == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
        }
        let written = Written { pages: BTreeMap::new(), size, file_size: size };
        Ok(Box::new(Overlaid { file, written: Mutex::new(written) }))
    }

    fn create(&self, _name: &str) -> io::Result<Box<dyn VolumeFile>> {
        read_only()
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        read_only()
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        read_only()
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What was written stays in memory and hides what is in the file.
#[derive(Debug)]
struct Overlaid {
    file: Box<dyn VolumeFile>,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    pages: BTreeMap<u64, Vec<u8>>,
    size: u64,
    /// Nothing of the file is left behind this.
    file_size: u64,
}

impl Overlaid {
    fn page(&self, written: &Written, index: u64) -> io::Result<Vec<u8>> {
        if let Some(page) = written.pages.get(&index) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE_BYTES as usize];
        let start = index * PAGE_BYTES;
        let size = written.file_size.saturating_sub(start).min(PAGE_BYTES) as usize;
        self.file.read(start, &mut page[..size])?;
        Ok(page)
    }

    /// Visits the pages of a range, each with its part of the page and of the range.
    fn each(
        at: u64,
        len: usize,
        mut visit: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = at + done as u64;
            let within = (at % PAGE_BYTES) as usize;
            let size = (PAGE_BYTES as usize - within).min(len - done);
            visit(at / PAGE_BYTES, within..within + size, done..done + size)?;
            done += size;
        }
        Ok(())
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VolumeFile for Overlaid {
    fn size(&self) -> io::Result<u64> {
        Ok(self.written().size)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut written = self.written();
        if size < written.size {
            // What comes after the end is zeros when the file grows again.
            written.pages.retain(|index, _| index * PAGE_BYTES < size);
            written.file_size = written.file_size.min(size);
        }
        written.size = size;
        Ok(())
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if at + out.len() as u64 > written.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::each(at, out.len(), |index, within, range| {
            out[range].copy_from_slice(&self.page(&written, index)?[within]);
            Ok(())
        })
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        Self::each(at, data.len(), |index, within, range| {
            let mut page = self.page(&written, index)?;
            page[within].copy_from_slice(&data[range]);
            written.pages.insert(index, page);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
