//! Whether the files can be written, and what is done until they can.
//!
//! What a disk refuses is tried again: at once, on the file opened anew, then after growing pauses, for as long as it
//! takes. Meanwhile [`Health`] tells everybody why nothing can be written. A store whose disk works waits for nothing
//! here.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use crate::disk::DiskError;
use crate::runner::Runner;

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
    ended: watch::Sender<bool>,
}

/// What can be opened anew when it has failed.
pub(crate) trait Reopen: Sync {
    /// How often it was opened anew.
    fn generation(&self) -> u64;

    /// Opens it anew and checks it from end to end: after an error nothing else may be done with it. Does nothing if it
    /// has been opened since `generation`. Blocks.
    fn reopen(&self, generation: u64) -> Result<(), DiskError>;
}

impl Health {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), faults: watch::Sender::default(), ended: watch::Sender::default() }
    }

    pub(crate) fn faults(&self) -> watch::Receiver<Faults> {
        self.faults.subscribe()
    }

    /// Repeats an attempt until it succeeds, or fails in a way that no repetition helps, or the store ends. The attempt
    /// is told whether the file was opened anew before it: then nothing is known of what the file holds. Only within
    /// what the runner has started or lent.
    pub(crate) async fn persist<T: Send>(
        &self,
        part: Option<Part>,
        runner: &Runner,
        disk: &impl Reopen,
        attempt: impl Fn(bool) -> Result<T, DiskError> + Sync,
    ) -> Result<T, DiskError> {
        let mut generation = disk.generation();
        let mut result = runner.work(|| attempt(false)).await;
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
                        if self.pause(pause).await {
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
            let again = || {
                disk.reopen(generation)?;
                generation = disk.generation();
                attempt(true)
            };
            result = runner.work(again).await;
        }
    }

    /// Lets nobody wait any longer for a disk to work again.
    pub(crate) fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Waits, and tells whether the store has ended.
    async fn pause(&self, pause: Duration) -> bool {
        let mut ended = self.ended.subscribe();
        tokio::time::timeout(pause, ended.wait_for(|ended| *ended)).await.is_ok()
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
        io::ErrorKind::AlreadyExists => "use another directory",
        io::ErrorKind::NotFound => "put the file back",
        _ => "check the disk",
    }
}
