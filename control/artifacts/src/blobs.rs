//! Blobs: content under the name of its SHA-256.
//!
//! A blob is written under a temporary name, hashed, synced and only then renamed into its place, so every file in place
//! was whole once. The disk may still have damaged it since: whoever reads it whole hashes it again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::files::{self, Draft};
use crate::{Digest, Hasher, OpenError};

/// The largest blob that is taken in.
pub(crate) const BLOB_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// How much is read from the disk in one go.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// Why a blob could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no such blob here.
    #[error("there is no blob {0}")]
    Unknown(Digest),
    /// The file does not hold what its name says. It is served to nobody.
    #[error("the stored blob {want} is damaged: its bytes are {is}")]
    Damaged {
        /// What was asked for.
        want: Digest,
        /// What the file's bytes hash to.
        is: Digest,
    },
    /// The disk did not do as asked.
    #[error("cannot use the blob {digest}")]
    Io {
        /// The blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The blobs below one directory.
pub(crate) struct Blobs {
    root: PathBuf,
    temporary: PathBuf,
}

impl Blobs {
    pub(crate) fn open(dir: &Path, temporary: PathBuf) -> Result<Blobs, OpenError> {
        Ok(Blobs { root: files::make_dir(dir.join("blobs/sha256"))?, temporary })
    }

    /// A file that [`Blobs::adopt`] can turn into a blob.
    pub(crate) fn draft(&self) -> io::Result<Draft> {
        Draft::create(&self.temporary)
    }

    /// Takes a written draft as the content `digest`, which the caller has computed from the bytes it wrote.
    pub(crate) fn adopt(&self, draft: Draft, digest: &Digest) -> Result<(), BlobError> {
        draft.publish(&self.path(digest)).map_err(|source| BlobError::Io { digest: *digest, source })
    }

    /// Stores `content`.
    pub(crate) fn put(&self, content: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(content);
        let write = || {
            let mut draft = self.draft()?;
            draft.file().write_all(content)?;
            Ok(draft)
        };
        let draft = write().map_err(|source| BlobError::Io { digest, source })?;
        self.adopt(draft, &digest)?;
        Ok(digest)
    }

    /// The length of a blob, if it is here.
    pub(crate) fn len(&self, digest: &Digest) -> Result<u64, BlobError> {
        fs::metadata(self.path(digest)).map(|m| m.len()).map_err(|e| error(digest, e))
    }

    /// The whole content of a blob, checked.
    pub(crate) fn read(&self, digest: &Digest) -> Result<Bytes, BlobError> {
        let content = fs::read(self.path(digest)).map_err(|e| error(digest, e))?;
        match Digest::of(&content) {
            is if is == *digest => Ok(content.into()),
            is => Err(BlobError::Damaged { want: *digest, is }),
        }
    }

    /// The file of a blob and its length.
    pub(crate) fn open_file(&self, digest: &Digest) -> Result<(File, u64), BlobError> {
        let open = || {
            let file = File::open(self.path(digest))?;
            let len = file.metadata()?.len();
            Ok((file, len))
        };
        open().map_err(|e| error(digest, e))
    }

    /// Opens `len` bytes of a blob from `offset` on, to be read in chunks.
    pub(crate) fn reader(&self, digest: &Digest, offset: u64, len: u64) -> Result<BlobReader, BlobError> {
        let open = || {
            let mut file = File::open(self.path(digest))?;
            let total = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset))?;
            Ok((file, total))
        };
        let (file, total) = open().map_err(|e| error(digest, e))?;
        let check = (offset == 0 && len == total).then(Hasher::new);
        Ok(BlobReader { file, digest: *digest, remaining: len, check })
    }

    /// Removes every blob that is not in `keep`, and says how many those were.
    pub(crate) fn retain(&self, keep: &BTreeSet<Digest>) -> io::Result<usize> {
        let mut removed = 0;
        for dir in fs::read_dir(&self.root)? {
            for file in fs::read_dir(dir?.path())? {
                let file = file?;
                // What has no digest for a name was not put here by this store.
                let digest = file.file_name().to_str().and_then(|name| Digest::from_hex(name).ok());
                if digest.is_some_and(|digest| !keep.contains(&digest)) {
                    fs::remove_file(file.path())?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(&hex[..2]).join(hex)
    }
}

fn error(digest: &Digest, source: io::Error) -> BlobError {
    match source.kind() {
        io::ErrorKind::NotFound => BlobError::Unknown(*digest),
        _ => BlobError::Io { digest: *digest, source },
    }
}

/// A blob, or a part of one, being read. One that is read whole is checked: its last chunk is held back when the bytes
/// are not what the digest says, so a reader who was promised a length notices.
pub(crate) struct BlobReader {
    file: File,
    digest: Digest,
    remaining: u64,
    check: Option<Hasher>,
}

impl BlobReader {
    /// The next chunk; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        if self.remaining == 0 {
            return Ok(None);
        }
        let want = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut chunk = vec![0; want];
        self.file.read_exact(&mut chunk).map_err(|source| BlobError::Io { digest: self.digest, source })?;
        self.remaining -= want as u64;
        if let Some(mut hasher) = self.check.take() {
            hasher.update(&chunk);
            if self.remaining > 0 {
                self.check = Some(hasher);
            } else {
                let is = hasher.finish();
                if is != self.digest {
                    return Err(BlobError::Damaged { want: self.digest, is });
                }
            }
        }
        Ok(Some(chunk.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let temporary = files::make_empty_dir(dir.path().join("tmp")).unwrap();
        let blobs = Blobs::open(dir.path(), temporary).unwrap();
        (dir, blobs)
    }

    fn read_all(mut reader: BlobReader) -> Result<Vec<u8>, BlobError> {
        let mut all = Vec::new();
        while let Some(chunk) = reader.next()? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    #[test]
    fn content_comes_back_whole_and_in_parts() {
        let (dir, blobs) = blobs();
        let content: Vec<u8> = (0..CHUNK_BYTES * 2 + 10).map(|i| i as u8).collect();
        let digest = blobs.put(&content).unwrap();
        assert_eq!(blobs.put(&content).unwrap(), digest, "the same content again is the same blob");
        assert_eq!(blobs.len(&digest).unwrap(), content.len() as u64);
        assert_eq!(blobs.read(&digest).unwrap(), content);
        assert_eq!(read_all(blobs.reader(&digest, 0, content.len() as u64).unwrap()).unwrap(), content);
        assert_eq!(read_all(blobs.reader(&digest, 5, 7).unwrap()).unwrap(), content[5..12]);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0, "nothing temporary is left");
    }

    #[test]
    fn a_flipped_bit_is_noticed_and_never_served_as_whole() {
        let (_dir, blobs) = blobs();
        let content = vec![7; CHUNK_BYTES + 1];
        let digest = blobs.put(&content).unwrap();
        let mut damaged = content.clone();
        damaged[3] ^= 1;
        fs::write(blobs.path(&digest), &damaged).unwrap();
        assert!(matches!(blobs.read(&digest), Err(BlobError::Damaged { want, .. }) if want == digest));
        let streamed = read_all(blobs.reader(&digest, 0, content.len() as u64).unwrap());
        assert!(matches!(streamed, Err(BlobError::Damaged { .. })));
        blobs.put(&content).unwrap();
        assert_eq!(blobs.read(&digest).unwrap(), content, "pushing it again repairs it");
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let (_dir, blobs) = blobs();
        let digest = Digest::of(b"nothing");
        assert!(matches!(blobs.read(&digest), Err(BlobError::Unknown(_))));
        assert!(matches!(blobs.len(&digest), Err(BlobError::Unknown(_))));
    }
}
