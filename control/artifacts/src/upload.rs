//! Uploads in progress.
//!
//! An upload is a temporary file with the hash of what it holds so far. It lives in memory and in the temporary
//! directory only: after a restart a client starts over, as the OCI specification lets it be told to. At most
//! [`UPLOADS_MAX`] are open; the one that was idle the longest makes room for a new one.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};

use crate::blobs::{BLOB_BYTES_MAX, Blobs};
use crate::files::Draft;
use crate::{BlobError, Digest, Hasher};

/// How many uploads may be open.
pub(crate) const UPLOADS_MAX: usize = 64;

/// Why an upload could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the blob is larger than {BLOB_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the content is {is}, not {want}")]
    Digest { want: Digest, is: Digest },
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("cannot write the upload")]
    Io(#[from] io::Error),
}

/// One upload.
pub(crate) struct Upload {
    draft: Draft,
    hasher: Hasher,
    len_bytes: u64,
}

impl Upload {
    /// How much has arrived.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Adds a piece.
    pub(crate) fn append(&mut self, piece: &[u8]) -> Result<(), UploadError> {
        let len_bytes = self.len_bytes + piece.len() as u64;
        if len_bytes > BLOB_BYTES_MAX {
            return Err(UploadError::TooLarge);
        }
        self.draft.file().write_all(piece)?;
        self.hasher.update(piece);
        self.len_bytes = len_bytes;
        Ok(())
    }
}

struct Slot {
    upload: Arc<tokio::sync::Mutex<Option<Upload>>>,
    used: u64,
}

#[derive(Default)]
struct Table {
    slots: BTreeMap<String, Slot>,
    uses: u64,
}

/// All uploads.
pub(crate) struct Uploads {
    blobs: Arc<Blobs>,
    random: SystemRandom,
    table: Mutex<Table>,
}

/// A handle on an upload; empty once it was finished or given up.
pub(crate) type Shared = Arc<tokio::sync::Mutex<Option<Upload>>>;

impl Uploads {
    pub(crate) fn new(blobs: Arc<Blobs>) -> Uploads {
        Uploads { blobs, random: SystemRandom::new(), table: Mutex::default() }
    }

    /// A new upload and the name it goes by.
    pub(crate) fn start(&self) -> Result<(String, Shared), UploadError> {
        let mut raw = [0u8; 32];
        self.random.fill(&mut raw).map_err(|_| io::Error::other("no randomness"))?;
        let id = Digest::from_bytes(raw).hex();
        let upload = Upload { draft: self.blobs.draft()?, hasher: Hasher::new(), len_bytes: 0 };
        let upload = Arc::new(tokio::sync::Mutex::new(Some(upload)));
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.slots.len() >= UPLOADS_MAX {
            let oldest = table.slots.iter().min_by_key(|(_, slot)| slot.used).map(|(id, _)| id.clone());
            oldest.and_then(|id| table.slots.remove(&id));
        }
        table.uses += 1;
        let used = table.uses;
        table.slots.insert(id.clone(), Slot { upload: upload.clone(), used });
        Ok((id, upload))
    }

    /// The upload called `id`.
    pub(crate) fn get(&self, id: &str) -> Option<Shared> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.uses += 1;
        let used = table.uses;
        let slot = table.slots.get_mut(id)?;
        slot.used = used;
        Some(slot.upload.clone())
    }

    /// Forgets the upload called `id`; its file goes with the last handle.
    pub(crate) fn remove(&self, id: &str) -> bool {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).slots.remove(id).is_some()
    }

    /// Makes a blob of an upload, if it holds what the client says it does.
    pub(crate) fn finish(&self, upload: Upload, want: &Digest) -> Result<(), UploadError> {
        let is = upload.hasher.finish();
        if is != *want {
            return Err(UploadError::Digest { want: *want, is });
        }
        Ok(self.blobs.adopt(upload.draft, want)?)
    }
}
