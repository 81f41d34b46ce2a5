//! How bytes are read and written: little-endian, length-prefixed, sealed by a version and a CRC.
//!
//! A reader never panics and never allocates more than the input holds, whatever the input is.

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends too early, or a length in it points past its end.
    #[error("cut short at byte {at}")]
    Truncated {
        /// Where the missing bytes should have begun.
        at: usize,
    },
    /// The format is one that this build does not know.
    #[error("format version {found}, while this build reads {known}")]
    Version {
        /// The version in the input.
        found: u8,
        /// The version that this build reads.
        known: u8,
    },
    /// The checksum does not match: the bytes are not those that were written.
    #[error("checksum {found:08x} where {computed:08x} is expected: the data is corrupt")]
    Checksum {
        /// The checksum in the input.
        found: u32,
        /// The checksum of the bytes as they are.
        computed: u32,
    },
    /// The value is encrypted with a key that is not here.
    #[error("it is encrypted with a key that is not here")]
    Encrypted,
    /// Something inside contradicts the format.
    #[error("{0} is not valid")]
    Malformed(&'static str),
}

/// Bytes before the payload of a sealed value: its version and its CRC.
pub(crate) const SEAL_BYTES: usize = 5;

/// Begins a sealed value: room for the seal, then whatever the caller appends.
pub(crate) fn unsealed(capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEAL_BYTES + capacity);
    out.extend_from_slice(&[0; SEAL_BYTES]);
    out
}

/// Fills in the seal of what `unsealed` began.
pub(crate) fn seal(mut out: Vec<u8>, version: u8) -> Vec<u8> {
    let crc = checksum(version, &out[SEAL_BYTES..]);
    out[0] = version;
    out[1..SEAL_BYTES].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Seals bytes that are there already.
pub(crate) fn seal_bytes(body: &[u8], version: u8) -> Vec<u8> {
    let mut out = unsealed(body.len());
    out.extend_from_slice(body);
    seal(out, version)
}

/// Checks the seal and gives what is behind it.
pub(crate) fn open(input: &[u8], known: u8) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new(input);
    let found_version = reader.u8()?;
    let found = reader.u32()?;
    let body = &input[SEAL_BYTES..];
    let computed = checksum(found_version, body);
    if found != computed {
        return Err(DecodeError::Checksum { found, computed });
    }
    if found_version != known {
        return Err(DecodeError::Version { found: found_version, known });
    }
    Ok(body)
}

fn checksum(version: u8, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[version]);
    hasher.update(body);
    hasher.finalize()
}

/// Reads from the front of a slice.
pub(crate) struct Reader<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.input.len());
        let end = end.ok_or(DecodeError::Truncated { at: self.at })?;
        let taken = &self.input[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn len(&mut self) -> Result<usize, DecodeError> {
        self.u32().map(|len| len as usize)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.len()?;
        self.take(len)
    }

    pub(crate) fn str(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Malformed("text"))
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        if self.at == self.input.len() { Ok(()) } else { Err(DecodeError::Malformed("trailing data")) }
    }
}

/// A length as it is written. Nothing near 4 GiB passes the bound on a transaction, so saturating loses nothing.
pub(crate) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, len32(bytes.len()));
    out.extend_from_slice(bytes);
}
