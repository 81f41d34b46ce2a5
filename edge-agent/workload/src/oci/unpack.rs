//! Layers of an image, unpacked one over the other into one directory.
//!
//! A layer is bytes from outside. Invariants:
//! - nothing outside the directory is made, changed, linked to or removed, whatever paths, links and link targets an entry
//!   names: paths are resolved by the kernel with the directory as their root, and the last part of a path is never followed;
//! - what a layer may become is bounded in bytes and in entries, so that a small file is no large bomb;
//! - an entry is made anew: it never writes through what a layer below left there.
//!
//! Deliberately absent: device nodes (a container gets the runtime's), extended attributes, and times of directories.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::EntryType;

/// The longest path of an entry.
const PATH_BYTES_MAX: usize = 4096;
/// The most that is read of what stands before an entry to say what its header has no room for.
const EXTENSION_BYTES_MAX: u64 = 256 * 1024;
/// How much is copied at once.
const COPY_BYTES: usize = 64 * 1024;
/// What the name of an entry begins with that removes another.
const WHITEOUT: &[u8] = b".wh.";
/// The entry that empties its directory of what layers below put there.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Entries that only one long gone storage driver understands.
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// What an image may become, left after what was unpacked of it.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes of files, and of what they were compressed into.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: 8 << 30, entries: 500_000 }
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive or an entry makes no sense.
    #[error("the layer is damaged: {0}")]
    Damaged(String),
    /// An entry is what no image needs.
    #[error("the layer's entry {path:?} is refused: {why}")]
    Refused {
        /// The entry.
        path: String,
        /// Why.
        why: &'static str,
    },
    /// It would be more than an image may be.
    #[error("the image is too large: {0}")]
    TooLarge(&'static str),
    /// The layer is of a kind that is not understood.
    #[error("layers compressed with {0} are not supported: build the image with gzip")]
    Compression(&'static str),
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// What was being written.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Unpacks a layer over what lies in `root`. Blocks on the disk.
pub fn unpack(layer: impl Read, root: &Path, budget: &mut Budget) -> Result<(), UnpackError> {
    let mut layer = BufReader::with_capacity(COPY_BYTES, layer);
    let start = io::BufRead::fill_buf(&mut layer).map_err(damaged)?;
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(UnpackError::Compression("zstd"));
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        return Unpacking::new(root, budget)?.run(MultiGzDecoder::new(layer));
    }
    Unpacking::new(root, budget)?.run(layer)
}

/// Opens a file for reading as a process whose root is `root` would.
pub(super) fn open_in_root(root: &Path, path: &Path) -> io::Result<File> {
    let root = fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?
        .into())
}

struct Unpacking<'a> {
    root: OwnedFd,
    budget: &'a mut Budget,
    /// What this layer made, so that emptying a directory spares it.
    made: BTreeSet<PathBuf>,
    /// Only root can give files to others.
    keeps_owner: bool,
}

/// What stands before an entry because its header has no room for it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Extended {
    /// Takes what an entry says of the next one; false if it is an entry of its own.
    fn take<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<bool, UnpackError> {
        let kind = entry.header().entry_type();
        if !matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader) {
            return Ok(false);
        }
        if entry.size() > EXTENSION_BYTES_MAX {
            return Err(UnpackError::Damaged("an entry is described at too great a length".to_owned()));
        }
        let mut text = Vec::new();
        entry.take(EXTENSION_BYTES_MAX).read_to_end(&mut text).map_err(damaged)?;
        let name = |text: &[u8]| text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            EntryType::GNULongName => self.path = Some(name(&text)),
            EntryType::GNULongLink => self.link = Some(name(&text)),
            _ => {
                for field in tar::PaxExtensions::new(&text) {
                    let field = field.map_err(damaged)?;
                    let value = field.value_bytes();
                    let number = || field.value().ok().and_then(|value| value.parse().ok());
                    match field.key_bytes() {
                        b"path" => self.path = Some(value.to_vec()),
                        b"linkpath" => self.link = Some(value.to_vec()),
                        b"uid" => self.uid = number(),
                        b"gid" => self.gid = number(),
                        b"size" => return Err(UnpackError::TooLarge("a file of more than 8 GiB")),
                        _ => {}
                    }
                }
            }
        }
        Ok(true)
    }
}

fn damaged(error: io::Error) -> UnpackError {
    UnpackError::Damaged(error.to_string())
}

/// A path inside the root: where its last part is, and that part; none for the root itself.
struct Place<'a> {
    parent: OwnedFd,
    name: Option<&'a OsStr>,
}

impl<'a> Unpacking<'a> {
    fn new(root: &Path, budget: &'a mut Budget) -> Result<Self, UnpackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = fs::open(root, flags, Mode::empty()).map_err(|error| at(root, error))?;
        let keeps_owner = rustix::process::geteuid().is_root();
        Ok(Self { root: opened, budget, made: BTreeSet::new(), keeps_owner })
    }

    fn run(mut self, layer: impl Read) -> Result<(), UnpackError> {
        // The archive itself is bounded too: what is skipped costs as much time as what is kept.
        let bounded = layer.take(self.budget.bytes.saturating_add(self.budget.entries.saturating_mul(1024)));
        let mut archive = tar::Archive::new(bounded);
        let mut extended = Extended::default();
        // Raw, since otherwise the extensions of an entry would be read into memory however long they are.
        for entry in archive.entries().map_err(damaged)?.raw(true) {
            let mut entry = entry.map_err(damaged)?;
            self.budget.entries =
                self.budget.entries.checked_sub(1).ok_or(UnpackError::TooLarge("too many files"))?;
            if !extended.take(&mut entry)? {
                self.entry(std::mem::take(&mut extended), &mut entry)?;
            }
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        extended: Extended,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::Char | EntryType::Block) {
            return Ok(());
        }
        let path = match &extended.path {
            Some(path) => clean(path)?,
            None => clean(&entry.path_bytes())?,
        };
        let path = path.as_path();
        let place = self.place(path)?;
        let Some(name) = place.name else {
            // The root is there; it only gets the mode that the image gives it.
            return if kind == EntryType::Directory {
                self.adorn(path, &place, &extended, entry)
            } else {
                Ok(())
            };
        };
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(path, &place, name);
        }
        let parent = place.parent.as_fd();
        let found = match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(at(path, error)),
        };
        let is_dir = kind == EntryType::Directory;
        if let Some(found) = found
            && !(is_dir && found == FileType::Directory)
        {
            remove(parent, name, 0).map_err(|error| at(path, error))?;
        }
        let link = || {
            let named = extended.link.clone().or_else(|| Some(entry.link_name_bytes()?.into_owned()));
            named.ok_or_else(|| refused(path, "a link to nothing"))
        };
        let made = match kind {
            EntryType::Regular | EntryType::Continuous => {
                self.file(path, &place, entry)?;
                Ok(())
            }
            EntryType::Directory => match fs::mkdirat(parent, name, Mode::RWXU) {
                Err(Errno::EXIST) => Ok(()),
                other => other,
            },
            EntryType::Symlink => fs::symlinkat(OsStr::from_bytes(&link()?), parent, name),
            EntryType::Link => {
                let target = clean(&link()?)?;
                let from = self.place(&target)?;
                let Some(from_name) = from.name else { return Err(refused(path, "a hard link to the root")) };
                fs::linkat(&from.parent, from_name, parent, name, AtFlags::empty())
            }
            EntryType::Fifo => fs::mkfifoat(parent, name, Mode::RUSR | Mode::WUSR),
            _ => return Err(refused(path, "an entry of an unknown kind")),
        };
        made.map_err(|error| at(path, error))?;
        self.made.insert(path.to_owned());
        // What a hard link leads to has its own.
        if kind == EntryType::Link { Ok(()) } else { self.adorn(path, &place, &extended, entry) }
    }

    fn file<R: Read>(
        &mut self,
        path: &Path,
        place: &Place<'_>,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let name = place.name.unwrap_or_default();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&place.parent, name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(file.map_err(|error| at(path, error))?);
        let mut left = self.budget.bytes;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let count = entry.read(&mut buffer).map_err(damaged)?;
            if count == 0 {
                break;
            }
            left = left.checked_sub(count as u64).ok_or(UnpackError::TooLarge("too many bytes"))?;
            io::Write::write_all(&mut file, &buffer[..count])
                .map_err(|source| UnpackError::Io { path: path.display().to_string(), source })?;
        }
        self.budget.bytes = left;
        Ok(())
    }

    /// Gives what was made its owner, its mode and its time.
    fn adorn<R: Read>(
        &self,
        path: &Path,
        place: &Place<'_>,
        extended: &Extended,
        entry: &tar::Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let header = entry.header();
        let number = |number: io::Result<u64>| number.ok().and_then(|number| u32::try_from(number).ok());
        let name = place.name.unwrap_or(OsStr::new("."));
        let parent = place.parent.as_fd();
        if self.keeps_owner {
            let uid = extended.uid.or(number(header.uid())).map(rustix::process::Uid::from_raw);
            let gid = extended.gid.or(number(header.gid())).map(rustix::process::Gid::from_raw);
            fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| at(path, error))?;
        }
        if header.entry_type() == EntryType::Symlink {
            return Ok(());
        }
        // After the owner, since a change of that takes the setuid bit away. It is no link: this made it.
        let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o644) & 0o7777);
        fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(|error| at(path, error))?;
        if header.entry_type() != EntryType::Directory {
            let seconds = header.mtime().ok().and_then(|s| i64::try_from(s).ok()).unwrap_or(0);
            let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            // A time that the file system can't hold is no reason to be without the file.
            let _ = fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &Path, place: &Place<'_>, name: &OsStr) -> Result<(), UnpackError> {
        let parent = place.parent.as_fd();
        let name = name.as_bytes();
        if name == OPAQUE {
            let dir = path.parent().unwrap_or(Path::new(""));
            let names = children(parent).map_err(|error| at(path, error))?;
            for child in names {
                let child = OsStr::from_bytes(&child);
                if !self.made.contains(&dir.join(child)) {
                    remove(parent, child, 0).map_err(|error| at(path, error))?;
                }
            }
            return Ok(());
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let gone = OsStr::from_bytes(&name[WHITEOUT.len()..]);
        if gone.is_empty() || gone == "." || gone == ".." {
            return Err(refused(path, "it removes no file of its directory"));
        }
        match remove(parent, gone, 0) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(at(path, error)),
        }
    }

    /// Finds the directory that an entry belongs in, and makes what is missing of it.
    fn place<'p>(&self, path: &'p Path) -> Result<Place<'p>, UnpackError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
        };
        let Some(parent) = path.parent() else {
            return Ok(Place { parent: open(path).map_err(|error| at(path, error))?, name: None });
        };
        let parent = match open(parent) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => {
                let mut above = open(Path::new("")).map_err(|error| at(path, error))?;
                let mut so_far = PathBuf::new();
                for part in parent {
                    so_far.push(part);
                    match fs::mkdirat(&above, part, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(at(path, error)),
                    }
                    above = open(&so_far).map_err(|error| at(path, error))?;
                }
                above
            }
            Err(error) => return Err(at(path, error)),
        };
        Ok(Place { parent, name: path.file_name() })
    }
}

/// An entry's path without what says nothing; one that leaves the root is refused, even if the kernel would not let it.
fn clean(bytes: &[u8]) -> Result<PathBuf, UnpackError> {
    let path = Path::new(OsStr::from_bytes(bytes));
    if bytes.len() > PATH_BYTES_MAX || bytes.contains(&0) {
        return Err(refused(path, "its path is too long, or no path"));
    }
    let mut clean = PathBuf::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refused(path, "its path leaves the image")),
            part => clean.push(OsStr::from_bytes(part)),
        }
    }
    Ok(clean)
}

/// How deep directories are removed; beyond it they are damaged, not deep.
const DEPTH_MAX: u32 = 256;

/// Removes a file, or a directory with all that is in it. Links are removed and not followed.
fn remove(parent: impl AsFd, name: &OsStr, depth: u32) -> rustix::io::Result<()> {
    match fs::unlinkat(&parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    if depth > DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = fs::openat(&parent, name, flags, Mode::empty())?;
    for child in children(dir.as_fd())? {
        remove(&dir, OsStr::from_bytes(&child), depth + 1)?;
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn children(dir: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = fs::openat(dir, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn refused(path: &Path, why: &'static str) -> UnpackError {
    UnpackError::Refused { path: path.display().to_string(), why }
}

fn at(path: &Path, error: Errno) -> UnpackError {
    UnpackError::Io { path: path.display().to_string(), source: error.into() }
}

#[cfg(test)]
mod tests;
