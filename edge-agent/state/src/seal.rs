//! The node's own key, and sealing under it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce};
use rand::Rng;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// Seals and opens values. Each is bound to its place, so that values can't be swapped.
pub(crate) struct Sealer(ChaCha20Poly1305);

impl Sealer {
    /// The key in this file; a new one if there is none and `create` is set.
    pub(crate) fn open_or_create(path: &Path, create: bool) -> io::Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        match File::open(path) {
            Ok(mut file) => {
                let mode = file.metadata()?.permissions().mode();
                if mode & 0o077 != 0 {
                    let text = format!("mode {:03o} lets others read it; make it 600", mode & 0o777);
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
                let mut all = Vec::new();
                (&mut file).take(KEY_BYTES as u64 + 1).read_to_end(&mut all)?;
                bytes = all.try_into().map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("it does not hold {KEY_BYTES} bytes"))
                })?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                rand::rng().fill_bytes(&mut bytes);
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                if let Some(dir) = path.parent() {
                    File::open(dir)?.sync_all()?;
                }
            }
            Err(error) => return Err(error),
        }
        Ok(Self(ChaCha20Poly1305::new(&Key::from(bytes))))
    }

    pub(crate) fn seal(&self, place: &str, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload { msg: plain, aad: place.as_bytes() };
        let sealed = self.0.encrypt(&Nonce::from(nonce), payload).ok()?;
        Some([nonce.as_slice(), &sealed].concat())
    }

    pub(crate) fn open(&self, place: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        self.0.decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad: place.as_bytes() }).ok()
    }
}
