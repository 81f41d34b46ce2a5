//! CBOR in and out of slices, in `serde_cbor`'s packed form and without a heap.

use serde::{Deserialize, Serialize};
use serde_cbor::de::SliceReadFixed;
use serde_cbor::de::from_slice_with_scratch;
use serde_cbor::ser::{Serializer, SliceWrite};
use thiserror::Error;

/// Why bytes could not be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The value does not fit the space given.
    #[error("does not fit into {0} bytes")]
    Space(usize),
    /// The bytes are not what the schema says.
    #[error("malformed CBOR at byte {0}")]
    Malformed(u64),
}

/// Writes a value to the start of `out` and says how many bytes it took.
pub fn encode<T: Serialize>(value: &T, out: &mut [u8]) -> Result<usize, CodecError> {
    let space = out.len();
    let mut serializer = Serializer::new(SliceWrite::new(out)).packed_format();
    value.serialize(&mut serializer).map_err(|_| CodecError::Space(space))?;
    Ok(serializer.into_inner().bytes_written())
}

/// Reads the one value that `bytes` holds. Strings and bytes borrow from it; those of unknown length are refused.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    from_slice_with_scratch(bytes, &mut []).map_err(|e| CodecError::Malformed(e.offset()))
}

/// Reads values one after the other.
pub struct Reader<'a, 'b>(serde_cbor::Deserializer<SliceReadFixed<'a, 'b>>);

impl<'a, 'b> Reader<'a, 'b> {
    /// Begins at the start of `bytes`. `scratch` may be empty, since nothing of unknown length is taken.
    pub fn new(bytes: &'a [u8], scratch: &'b mut [u8]) -> Self {
        Self(serde_cbor::Deserializer::from_slice_with_scratch(bytes, scratch))
    }

    /// Reads the next value.
    pub fn value<T: Deserialize<'a>>(&mut self) -> Result<T, CodecError> {
        T::deserialize(&mut self.0).map_err(|e| CodecError::Malformed(e.offset()))
    }

    /// Checks that nothing is left.
    pub fn end(mut self) -> Result<(), CodecError> {
        self.0.end().map_err(|e| CodecError::Malformed(e.offset()))
    }
}
