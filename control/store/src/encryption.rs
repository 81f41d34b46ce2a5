//! Encryption at rest: what lies under certain prefixes is encrypted in every file, and plain in memory.
//!
//! An envelope: values are encrypted with a data key, which lies in the file `keys` beside the data, itself encrypted with
//! the cluster's [`EncryptionKey`], which lies wherever its owner keeps it. A rotation makes a new data key, encrypts
//! the state with it, drops the log's older entries, and then forgets the old key: what a disk may still hold of that
//! can't be read by anybody.
//!
//! Invariants: a data key is durable before anything is encrypted with it, and is forgotten only when nothing in the
//! files needs it. What is encrypted is bound to its place, so that one value can't be put where another was.
//! Deliberately absent: encryption between members, which their network does, and of keys' names and revisions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError, Reader, put_u32};
use crate::disk::DiskError;
use crate::volume::Volume;
use crate::{Key, Txn};

/// The file of the data keys.
pub(crate) const NAME: &str = "keys";
/// Its name until it is whole.
const FRESH: &str = "keys.new";
const FILE_VERSION: u8 = 1;
/// More than any number of rotations leaves behind.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The version byte of a value that is encrypted. No other value begins with it.
const VALUE_VERSION: u8 = 0xe1;
const KEY_BYTES: usize = 32;
/// Stands for no key, where data has not always been encrypted.
const PLAIN: u32 = 0;

/// The key-encryption key of a cluster: whoever has it, and a member's files, reads what is encrypted in them.
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptionKey([u8; KEY_BYTES]);

/// A text is no encryption key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an encryption key is {} hexadecimal digits", 2 * KEY_BYTES)]
pub struct InvalidKey;

impl EncryptionKey {
    /// A fresh key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> io::Result<Self> {
        random().map(Self)
    }

    /// Reads a key as [`EncryptionKey::text`] writes it.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let bytes = unhex(text.trim()).ok_or(InvalidKey)?;
        bytes.try_into().map(Self).map_err(|_| InvalidKey)
    }

    /// The key as text, for a file that nobody else may read.
    #[must_use]
    pub fn text(&self) -> String {
        hex(&self.0)
    }

    fn aead(&self) -> LessSafeKey {
        aead(&self.0)
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(..)")
    }
}

/// What is encrypted at rest.
#[derive(Clone, Debug)]
pub struct Encryption {
    /// What the data keys are encrypted with.
    pub key: EncryptionKey,
    /// Whatever lies under these prefixes is encrypted.
    pub prefixes: Vec<String>,
}

/// The file `keys`, before its seal.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Ring {
    /// How often the cluster had ordered a rotation when this member last carried one out.
    generation: u64,
    /// What is encrypted from now on is encrypted with this one.
    current: u32,
    /// Whether the state may still hold what another key has encrypted.
    pending: bool,
    /// Each data key, encrypted.
    keys: BTreeMap<u32, String>,
    /// Keys that the log may need until its entries up to this one are gone.
    retired: BTreeMap<u32, u64>,
}

/// Encrypts and decrypts for one member. Without keys it leaves everything as it is.
#[derive(Debug, Default)]
pub(crate) struct Vault(Option<Keys>);

struct Keys {
    volume: Arc<dyn Volume>,
    wrapping: LessSafeKey,
    prefixes: Vec<String>,
    held: RwLock<Held>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("volume", &self.volume).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Held {
    ring: Ring,
    open: BTreeMap<u32, LessSafeKey>,
}

impl Vault {
    /// Opens the data keys of a store, or makes the first one: what was plain until now is encrypted from here on. Blocks.
    pub(crate) fn open(volume: &Arc<dyn Volume>, encryption: Option<&Encryption>) -> Result<Self, DiskError> {
        let found = read_file(&**volume)?;
        let Some(Encryption { key, prefixes }) = encryption else {
            return match found {
                None => Ok(Self::default()),
                Some(_) => Err(problem("the store is encrypted: give the encryption key with which it was")),
            };
        };
        let keys = Keys {
            volume: volume.clone(),
            wrapping: key.aead(),
            prefixes: prefixes.clone(),
            held: RwLock::default(),
        };
        match found {
            Some(ring) => {
                let mut open = BTreeMap::new();
                for (id, wrapped) in &ring.keys {
                    open.insert(*id, unwrap(&keys.wrapping, *id, wrapped)?);
                }
                if !open.contains_key(&ring.current) {
                    return Err(corrupt("the current key is missing"));
                }
                *keys.held() = Held { ring, open };
            }
            None => keys.add(0, PLAIN)?,
        }
        Ok(Self(Some(keys)))
    }

    /// The same, for who only reads. Blocks.
    pub(crate) fn look(volume: &Arc<dyn Volume>, encryption: Option<&Encryption>) -> Result<Self, DiskError> {
        match read_file(&**volume)? {
            Some(_) => Self::open(volume, encryption),
            None => Ok(Self::default()),
        }
    }

    /// Encrypts the data keys with another key. For a store that nobody has open. Blocks.
    pub(crate) fn rewrap(
        volume: &dyn Volume,
        old: &EncryptionKey,
        new: &EncryptionKey,
    ) -> Result<(), DiskError> {
        let ring = read_file(volume)?;
        let mut ring = ring.ok_or_else(|| problem("the store is not encrypted"))?;
        for (id, wrapped) in &mut ring.keys {
            let bytes = unwrap_bytes(&old.aead(), *id, wrapped)?;
            *wrapped = wrap(&new.aead(), *id, &bytes)?;
        }
        write_file(volume, &ring)
    }

    fn protects(&self, key: &Key) -> bool {
        let prefixes = self.0.iter().flat_map(|keys| &keys.prefixes);
        prefixes.into_iter().any(|prefix| key.as_str().starts_with(prefix.as_str()))
    }

    /// What lies at a key, as it may be written to a file. `place` says where in the file.
    pub(crate) fn protect(&self, key: &Key, place: &[u8], value: Vec<u8>) -> io::Result<Vec<u8>> {
        match &self.0 {
            Some(keys) if self.protects(key) => keys.encrypt(place, &value),
            _ => Ok(value),
        }
    }

    /// Whether a transaction has something that may not be written as it is.
    pub(crate) fn protects_txn(&self, txn: &Txn) -> bool {
        self.0.is_some() && txn.ops.iter().any(|op| self.protects(&op.key))
    }

    /// Encrypts a value for its place.
    pub(crate) fn encrypt(&self, place: &[u8], value: &[u8]) -> io::Result<Vec<u8>> {
        let keys = self.0.as_ref().ok_or_else(|| io::Error::other("there is no key to encrypt with"))?;
        keys.encrypt(place, value)
    }

    /// What was written to that place, whether it was encrypted or not.
    pub(crate) fn reveal<'a>(&self, place: &[u8], value: &'a [u8]) -> Result<Cow<'a, [u8]>, DecodeError> {
        if value.first() != Some(&VALUE_VERSION) {
            return Ok(Cow::Borrowed(value));
        }
        let sealed = codec::open(value, VALUE_VERSION)?;
        let keys = self.0.as_ref().ok_or(DecodeError::Encrypted)?;
        let mut reader = Reader::new(sealed);
        let id = reader.u32()?;
        let nonce = reader.take(NONCE_LEN)?;
        let mut bytes = sealed[reader.at()..].to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| DecodeError::Encrypted)?;
        let held = keys.held_shared();
        let key = held.open.get(&id).ok_or(DecodeError::Encrypted)?;
        let plain = key.open_in_place(nonce, Aad::from(place), &mut bytes);
        let len = plain.map_err(|_| DecodeError::Malformed("what is encrypted"))?.len();
        bytes.truncate(len);
        Ok(Cow::Owned(bytes))
    }

    /// How often a rotation had been ordered when one was last carried out here. `None` if nothing is encrypted.
    pub(crate) fn generation(&self) -> Option<u64> {
        self.0.as_ref().map(|keys| keys.held_shared().ring.generation)
    }

    /// Makes a new data key the current one. Older ones are kept until [`Vault::bound`] and [`Vault::forget`]. Blocks.
    pub(crate) fn rotate(&self, generation: u64) -> Result<(), DiskError> {
        let Some(keys) = &self.0 else { return Err(problem("nothing is encrypted in this store")) };
        let current = keys.held_shared().ring.current;
        keys.add(generation, current)
    }

    /// Whether the state has yet to be encrypted with the current key.
    pub(crate) fn is_pending(&self) -> bool {
        self.0.as_ref().is_some_and(|keys| keys.held_shared().ring.pending)
    }

    /// The state holds nothing any more that another key has encrypted. Blocks.
    pub(crate) fn settle(&self) -> Result<(), DiskError> {
        self.change(|ring| ring.pending = false)
    }

    /// The log was found to end before this entry: older keys are needed for none from there on. Blocks.
    pub(crate) fn bound(&self, log_end: u64) -> Result<(), DiskError> {
        if self.retired_until().is_none_or(|until| until <= log_end) {
            return Ok(());
        }
        self.change(|ring| ring.retired.values_mut().for_each(|until| *until = log_end.min(*until)))
    }

    /// The log entry behind the last that needs an old key, if there is one.
    pub(crate) fn retired_until(&self) -> Option<u64> {
        self.0.as_ref().and_then(|keys| keys.held_shared().ring.retired.values().max().copied())
    }

    /// Forgets the keys that nothing needs now that the log begins with this entry. Blocks.
    pub(crate) fn forget(&self, log_begin: u64) -> Result<(), DiskError> {
        let held = |until: u64| until > log_begin;
        if self.retired_until().is_none_or(held) {
            return Ok(());
        }
        self.change(|ring| {
            let gone = |(id, until): (&u32, &u64)| (*until <= log_begin).then_some(*id);
            let gone: Vec<u32> = ring.retired.iter().filter_map(gone).collect();
            for id in gone {
                ring.retired.remove(&id);
                ring.keys.remove(&id);
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut Ring)) -> Result<(), DiskError> {
        let Some(keys) = &self.0 else { return Ok(()) };
        let mut held = keys.held();
        let mut ring = held.ring.clone();
        change(&mut ring);
        write_file(&*keys.volume, &ring)?;
        held.open.retain(|id, _| ring.keys.contains_key(id));
        held.ring = ring;
        Ok(())
    }
}

impl Keys {
    fn held(&self) -> RwLockWriteGuard<'_, Held> {
        // Whoever panics with it held has changed nothing or everything.
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_shared(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a key, durable, and uses it from now on. Which entries of the log need the one before is not known yet.
    fn add(&self, generation: u64, before: u32) -> Result<(), DiskError> {
        let failed = |error: io::Error| DiskError::io(NAME, &error);
        let mut held = self.held();
        let mut ring = held.ring.clone();
        let id = ring.keys.keys().chain([&ring.current]).max().copied().unwrap_or(PLAIN) + 1;
        let bytes = random().map_err(failed)?;
        ring.keys.insert(id, wrap(&self.wrapping, id, &bytes)?);
        ring.retired.insert(before, u64::MAX);
        ring.current = id;
        ring.generation = generation;
        ring.pending = true;
        write_file(&*self.volume, &ring)?;
        held.open.insert(id, aead(&bytes));
        held.ring = ring;
        Ok(())
    }

    fn encrypt(&self, place: &[u8], value: &[u8]) -> io::Result<Vec<u8>> {
        let held = self.held_shared();
        let id = held.ring.current;
        let key = held.open.get(&id).ok_or_else(|| io::Error::other("the current key is missing"))?;
        let mut out = codec::unsealed(4 + NONCE_LEN + value.len() + AES_256_GCM.tag_len());
        put_u32(&mut out, id);
        encrypt(key, place, value, &mut out)?;
        Ok(codec::seal(out, VALUE_VERSION))
    }
}

/// Appends nonce, ciphertext and tag.
fn encrypt(key: &LessSafeKey, place: &[u8], value: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    // Random nonces are safe for 2^32 values under one key: a rotation comes long before.
    let nonce: [u8; NONCE_LEN] = random()?;
    out.extend_from_slice(&nonce);
    let at = out.len();
    out.extend_from_slice(value);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(place), &mut out[at..])
        .map_err(|_| io::Error::other("the value is too long to be encrypted"))?;
    out.extend_from_slice(tag.as_ref());
    Ok(())
}

fn aead(bytes: &[u8; KEY_BYTES]) -> LessSafeKey {
    match UnboundKey::new(&AES_256_GCM, bytes) {
        Ok(key) => LessSafeKey::new(key),
        Err(_) => unreachable!("the key has the length that the algorithm asks for"),
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system has no randomness"))?;
    Ok(bytes)
}

fn wrap(wrapping: &LessSafeKey, id: u32, bytes: &[u8; KEY_BYTES]) -> Result<String, DiskError> {
    let mut out = Vec::new();
    encrypt(wrapping, &id.to_le_bytes(), bytes, &mut out).map_err(|error| DiskError::io(NAME, &error))?;
    Ok(hex(&out))
}

fn unwrap(wrapping: &LessSafeKey, id: u32, wrapped: &str) -> Result<LessSafeKey, DiskError> {
    unwrap_bytes(wrapping, id, wrapped).map(|bytes| aead(&bytes))
}

fn unwrap_bytes(wrapping: &LessSafeKey, id: u32, wrapped: &str) -> Result<[u8; KEY_BYTES], DiskError> {
    let bytes = unhex(wrapped).ok_or_else(|| corrupt("a key is not readable"))?;
    let (nonce, sealed) =
        bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(|| corrupt("a key is cut short"))?;
    let mut sealed = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let plain = wrapping.open_in_place(nonce, Aad::from(id.to_le_bytes()), &mut sealed);
    let plain =
        plain.map_err(|_| problem("the store was encrypted with another encryption key than this one"))?;
    (&*plain).try_into().map_err(|_| corrupt("a key has another length"))
}

fn read_file(volume: &dyn Volume) -> Result<Option<Ring>, DiskError> {
    let failed = |error: io::Error| DiskError::io(NAME, &error);
    if !volume.list().map_err(failed)?.iter().any(|name| name == NAME) {
        return Ok(None);
    }
    let file = volume.open(NAME).map_err(failed)?;
    let size = file.size().map_err(failed)?;
    if size > FILE_BYTES_MAX {
        return Err(corrupt("it is too long"));
    }
    // FILE_BYTES_MAX fits.
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read(0, &mut bytes).map_err(failed)?;
    let body = codec::open(&bytes, FILE_VERSION).map_err(|error| match error {
        DecodeError::Version { found, .. } => {
            DiskError::Version { name: NAME.into(), found: found.into(), known: FILE_VERSION.into() }
        }
        error => corrupt(&error.to_string()),
    })?;
    serde_json::from_slice(body).map(Some).map_err(|error| corrupt(&error.to_string()))
}

/// Replaces the file as a whole, durably.
fn write_file(volume: &dyn Volume, ring: &Ring) -> Result<(), DiskError> {
    let body = serde_json::to_vec(ring).map_err(io::Error::from);
    let written = body.and_then(|body| {
        let bytes = codec::seal_bytes(&body, FILE_VERSION);
        let file = volume.create(FRESH)?;
        file.set_size(bytes.len() as u64)?;
        file.write(0, &bytes)?;
        file.sync()?;
        volume.rename(FRESH, NAME)?;
        volume.sync()
    });
    written.map_err(|error| DiskError::io(NAME, &error))
}

fn problem(detail: &str) -> DiskError {
    DiskError::Key { detail: detail.into() }
}

fn corrupt(detail: &str) -> DiskError {
    DiskError::Corrupt { name: NAME.into(), detail: detail.into() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}
