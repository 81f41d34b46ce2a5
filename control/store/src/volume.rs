//! Where a store's files are: a directory of this machine, or whatever else keeps bytes under names.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// A flat directory of files, which one store has to itself.
///
/// It may fail, and lose in a crash what was not synced, but must not make up anything. All calls block.
pub trait Volume: Debug + Send + Sync + 'static {
    /// The names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Box<dyn VolumeFile>>;

    /// Makes an empty file, readable by nobody else, in place of any that has the name.
    fn create(&self, name: &str) -> io::Result<Box<dyn VolumeFile>>;

    /// Gives a file another name, in place of any that has it. It stays open where it is.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes durable which names there are, and for which files.
    fn sync(&self) -> io::Result<()>;

    /// How long the work since the last call took, on a volume whose time is not the machine's. Only a store that was
    /// opened by [`Store::simulate`](crate::Store::simulate) asks, and lets that time pass before it goes on.
    fn took(&self) -> Duration {
        Duration::ZERO
    }
}

/// An open file of a [`Volume`]. It remains that file when it is renamed or removed.
pub trait VolumeFile: Debug + Send + Sync {
    /// How long it is.
    fn size(&self) -> io::Result<u64>;

    /// Makes it longer, with zeros, or shorter.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Reads what lies at an offset, all of it or none.
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes at an offset within the file. When it fails, any part may have been written.
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Makes durable what was written, and the size. When it fails, nothing is known of what was written since the last
    /// time, even if it can be read.
    fn sync(&self) -> io::Result<()>;

    /// Writes whole blocks of 4 KiB and makes them durable. The fastest when they begin at such an address in memory.
    fn write_durably(&self, at: u64, blocks: &[u8]) -> io::Result<()> {
        self.write(at, blocks)?;
        self.sync()
    }
}

/// A directory of this machine.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
}

impl Dir {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Volume for Dir {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<Vec<_>>>()?;
        // A name that is no text is none of ours.
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Box::new(DirFile { file, direct: OnceLock::new() }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn VolumeFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        let file = options.open(self.path.join(name))?;
        Ok(Box::new(DirFile { file, direct: OnceLock::new() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// An open file of a directory.
#[derive(Debug)]
struct DirFile {
    file: File,
    /// The same past the system's cache, each write of which is durable, where there is such a thing. One call does what
    /// would take two, and nothing is kept in memory that is in the store's own anyway.
    direct: OnceLock<Option<File>>,
}

impl VolumeFile for DirFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        read_at(&self.file, at, out)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        write_at(&self.file, at, data)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_durably(&self, at: u64, blocks: &[u8]) -> io::Result<()> {
        if let Some(direct) = self.direct.get_or_init(|| direct(&self.file)) {
            match write_at(direct, at, blocks) {
                // The blocks of this file system are larger, or it wants something else of them.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                written => return written,
            }
        }
        self.write(at, blocks)?;
        self.sync()
    }
}

/// Opens a file once more, whatever its name is by now.
#[cfg(target_os = "linux")]
fn direct(file: &File) -> Option<File> {
    use rustix::fs::OFlags;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = i32::try_from((OFlags::DIRECT | OFlags::DSYNC).bits()).ok()?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn direct(_file: &File) -> Option<File> {
    None
}

#[cfg(unix)]
fn read_at(file: &File, at: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(unix)]
fn write_at(file: &File, at: u64, data: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut at: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => (at, out) = (at + count as u64, &mut out[count..]),
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_at(file: &File, mut at: u64, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, data, at)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => (at, data) = (at + count as u64, &data[count..]),
        }
    }
    Ok(())
}
