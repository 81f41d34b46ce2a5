//! Following a log that another process writes: the kernel tells when something was written.

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::sync::watch;

use super::read::read_live;
use super::write::Progress;
use super::{LogError, LogOptions, LogStream};
use crate::descriptor::awaitable;

/// Room for what the kernel tells at once; only that it tells something counts.
const EVENTS_BYTES: usize = 4096;

/// Reads a log that another process writes. Following it ends once `ended` has: nothing is written then any more.
pub(crate) fn follow(
    path: PathBuf,
    options: LogOptions,
    ended: impl Future<Output = ()> + Send + 'static,
) -> Result<LogStream, LogError> {
    let failed = |error: std::io::Error| LogError::io(&path, error);
    let watched =
        inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    // The directory and not the file, so that the next file is heard of too.
    let dir = path.parent().unwrap_or(Path::new("."));
    let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
    inotify::add_watch(&watched, dir, what).map_err(|error| failed(error.into()))?;
    let watched = awaitable(watched).map_err(failed)?;
    let (progress, receiver) = watch::channel(Progress::default());
    // It ends with its reader, or with the container.
    tokio::spawn(async move {
        tokio::pin!(ended);
        loop {
            tokio::select! {
                () = progress.closed() => return,
                () = &mut ended => {
                    progress.send_modify(|progress| progress.closed = true);
                    return;
                }
                ready = watched.readable() => {
                    let Ok(mut ready) = ready else { return };
                    let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
                    let mut events = inotify::Reader::new(watched.get_ref(), &mut buffer);
                    while events.next().is_ok() {}
                    ready.clear_ready();
                    progress.send_modify(Progress::more);
                }
            }
        }
    });
    Ok(read_live(path, options, receiver))
}
