//! Whether the files can be written, and what is done until they can.
//!
//! What a disk refuses is tried again: at once, on the file opened anew, then after growing pauses, for as long as it
//! takes. Meanwhile [`Health`] tells everybody why nothing can be written. A store whose disk works waits for nothing
//! here.

use std::io;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::disk::{Disk, DiskError};

/// The first pause between two attempts; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest: as long as a disk that works again may go unnoticed.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What can be out of order independently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The log: nothing can be committed without it.
    Log,
    /// The state at rest: it may be behind for a while.
    State,
}

/// Why each part can't be written, if it can't.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) log: Option<String>,
    pub(crate) state: Option<String>,
}

impl Faults {
    fn part(&mut self, part: Part) -> &mut Option<String> {
        match part {
            Part::Log => &mut self.log,
            Part::State => &mut self.state,
        }
    }
}

/// Whether the files of a directory can be written.
#[derive(Debug)]
pub(crate) struct Health {
    dir: PathBuf,
    faults: watch::Sender<Faults>,
    ended: Mutex<bool>,
    wake: Condvar,
}

impl Health {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        let (faults, ended, wake) = (watch::Sender::default(), Mutex::default(), Condvar::new());
        Self { dir: dir.into(), faults, ended, wake }
    }

    pub(crate) fn faults(&self) -> watch::Receiver<Faults> {
        self.faults.subscribe()
    }

    /// Repeats an attempt until it succeeds, or fails in a way that no repetition helps, or the store ends. The attempt
    /// is told whether the file was opened anew before it: then nothing is known of what the file holds. Blocks.
    pub(crate) fn persist<T>(
        &self,
        part: Option<Part>,
        disk: &Disk,
        mut attempt: impl FnMut(bool) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let mut generation = disk.generation();
        let mut result = attempt(false);
        let mut pause = PAUSE_MIN;
        let mut first = true;
        loop {
            match result {
                Err(error) if error.may_pass() => {
                    let told = self.describe(&error);
                    if first {
                        tracing::warn!("{told}");
                    } else if let Some(part) = part {
                        self.tell(part, Some(told));
                    }
                    // What fails once only is nobody's business.
                    if !first {
                        if self.pause(pause) {
                            return Err(error);
                        }
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                    first = false;
                }
                result => {
                    if let Some(part) = part
                        && result.is_ok()
                    {
                        self.tell(part, None);
                    }
                    return result;
                }
            }
            result = disk.reopen(generation).and_then(|()| {
                generation = disk.generation();
                attempt(true)
            });
        }
    }

    /// Lets nobody wait any longer for a disk to work again.
    pub(crate) fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    /// Waits, and tells whether the store has ended.
    fn pause(&self, pause: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.wake.wait_timeout_while(ended, pause, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn tell(&self, part: Part, fault: Option<String>) {
        self.faults.send_if_modified(|faults| {
            let known = faults.part(part);
            let changed = *known != fault;
            if changed && fault.is_none() {
                tracing::info!(dir = %self.dir.display(), "the disk can be written again");
            }
            *known = fault;
            changed
        });
    }

    /// What is wrong and what can be done about it.
    fn describe(&self, error: &DiskError) -> String {
        let dir = self.dir.display();
        match error.advice() {
            Some(advice) => {
                format!("{dir} cannot be written: {error}: {advice}, and writing resumes by itself")
            }
            None => format!("{dir} cannot be written: {error}"),
        }
    }
}

/// What a user can do about an error of the system's.
pub(crate) fn advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull => "free some space on its disk",
        io::ErrorKind::QuotaExceeded => "free some space, or raise the quota",
        io::ErrorKind::FileTooLarge => "raise the limit on the size of files",
        io::ErrorKind::ReadOnlyFilesystem => "mount its file system for writing",
        io::ErrorKind::PermissionDenied => "let this user write it",
        io::ErrorKind::NotFound => "put the file back",
        _ => "check the disk",
    }
}
