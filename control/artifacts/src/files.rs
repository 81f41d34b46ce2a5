//! Files that appear whole or not at all, and the way to the disk from asynchronous code.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::OpenError;

static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// A name that no other temporary file of this process has. Those of earlier processes are removed on opening.
pub(crate) fn temporary_name() -> String {
    format!("{}-{}", std::process::id(), NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed))
}

/// Runs `work` where blocking on the disk is allowed.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(value) => value,
        // A panic in the work goes on here.
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime is shutting down and will not come back to this task either.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Makes `dir` and locks it against other processes, for as long as the returned file is open.
pub(crate) fn lock(dir: &Path) -> Result<File, OpenError> {
    let dir = make_dir(dir.to_owned())?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| OpenError::Io { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(dir)),
        Err(fs::TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Makes `dir` with its parents.
pub(crate) fn make_dir(dir: PathBuf) -> Result<PathBuf, OpenError> {
    match fs::create_dir_all(&dir) {
        Ok(()) => Ok(dir),
        Err(source) => Err(OpenError::Io { path: dir, source }),
    }
}

/// Makes `dir`, and empties it of what an earlier process left.
pub(crate) fn make_empty_dir(dir: PathBuf) -> Result<PathBuf, OpenError> {
    let dir = make_dir(dir)?;
    let clear = || -> io::Result<()> {
        for entry in fs::read_dir(&dir)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    };
    match clear() {
        Ok(()) => Ok(dir),
        Err(source) => Err(OpenError::Io { path: dir, source }),
    }
}

/// A file that is being written under a temporary name, and is removed again unless it is published.
pub(crate) struct Draft {
    path: PathBuf,
    file: File,
    published: bool,
}

impl Draft {
    /// A new, empty file in `dir`, which must be on the file system of the final place.
    pub(crate) fn create(dir: &Path) -> io::Result<Draft> {
        let path = dir.join(temporary_name());
        let file = File::options().write(true).read(true).create_new(true).open(&path)?;
        Ok(Draft { path, file, published: false })
    }

    /// The file, for writing.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Syncs the content and moves it to `place`, whose directory is made and synced too. What stood there is replaced.
    pub(crate) fn publish(mut self, place: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(dir) = place.parent() {
            create_dir_synced(dir)?;
            fs::rename(&self.path, place)?;
            self.published = true;
            sync_dir(dir)?;
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // A file that cannot be removed now is removed by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes `content` to `place` so that it is there whole or not at all.
pub(crate) fn write_atomically(temporary_dir: &Path, place: &Path, content: &[u8]) -> io::Result<()> {
    let mut draft = Draft::create(temporary_dir)?;
    draft.file().write_all(content)?;
    draft.publish(place)
}

/// Removes a file for good. False if it was not there.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes `dir` and whatever of its parents is missing, so that they survive a crash.
fn create_dir_synced(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let Some(parent) = dir.parent() else { return Ok(()) };
    create_dir_synced(parent)?;
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => sync_dir(parent),
    }
}

/// Makes a rename or a new name in `dir` survive a crash.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
