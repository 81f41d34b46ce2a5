//! The little of protocol buffers and gRPC that etcd's three calls need: length-delimited fields, varints, and messages
//! behind a prefix of five bytes.

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes, BytesMut};

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;
/// A flag, for whether it is compressed, and a length.
const PREFIX_BYTES: usize = 5;
/// No message of etcd's that is asked for here is larger.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Appends a length-delimited field.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    put_varint(out, field << 3 | LENGTH_DELIMITED);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A message as it goes over the wire.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(PREFIX_BYTES + message.len());
    out.push(0);
    // What is sent here is a key and a value.
    out.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(message);
    out.into()
}

/// Takes the first whole message out of what has arrived.
pub(super) fn unframed(arrived: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(prefix) = arrived.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 || length > MESSAGE_BYTES_MAX {
        bail!("a gRPC message of {length} bytes, compression {compressed}");
    }
    if arrived.len() < PREFIX_BYTES + length {
        return Ok(None);
    }
    arrived.advance(PREFIX_BYTES);
    Ok(Some(arrived.split_to(length).freeze()))
}

/// A field's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in their order.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The first field of a number.
    pub(super) fn find(self, field: u64) -> Result<Option<Value<'a>>> {
        for entry in self {
            match entry? {
                (number, value) if number == field => return Ok(Some(value)),
                _ => {}
            }
        }
        Ok(None)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().context("a message that is cut short")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a number of more than 64 bits")
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).context("a message that is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            VARINT => Value::Number(self.varint()?),
            LENGTH_DELIMITED => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length)?)?)
            }
            FIXED_64 => Value::Bytes(self.take(8)?),
            FIXED_32 => Value::Bytes(self.take(4)?),
            kind => bail!("a field of kind {kind}"),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_written() {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, b"key");
        put_bytes(&mut message, 300, &[7; 200]);
        // Field 4, a number of two bytes; field 5, four bytes.
        message.extend_from_slice(&[0x20, 0x96, 0x01, 0x2d, 1, 2, 3, 4]);
        let fields: Vec<_> = Fields(&message).collect::<Result<_>>().unwrap();
        assert_eq!(
            fields,
            [
                (1, Value::Bytes(b"key")),
                (300, Value::Bytes(&[7; 200])),
                (4, Value::Number(150)),
                (5, Value::Bytes(&[1, 2, 3, 4])),
            ]
        );
        assert_eq!(Fields(&message).find(4).unwrap(), Some(Value::Number(150)));
        assert_eq!(Fields(&message).find(9).unwrap(), None);
    }

    #[test]
    fn what_is_cut_short_or_absurd_is_refused() {
        for message in [&[0x0a, 5, 1][..], &[0x0a], &[0xff; 11], &[0x0b]] {
            assert!(Fields(message).collect::<Result<Vec<_>>>().is_err(), "{message:?}");
        }
    }

    #[test]
    fn messages_are_taken_when_they_are_whole() {
        let mut arrived = BytesMut::new();
        for byte in framed(b"one") {
            assert_eq!(unframed(&mut arrived).unwrap(), None);
            arrived.extend_from_slice(&[byte]);
        }
        arrived.extend_from_slice(&framed(b""));
        assert_eq!(unframed(&mut arrived).unwrap().unwrap(), "one");
        assert_eq!(unframed(&mut arrived).unwrap().unwrap(), "");
        assert_eq!(unframed(&mut arrived).unwrap(), None);
        assert!(unframed(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err());
        assert!(unframed(&mut BytesMut::from(&[0, 0xff, 0, 0, 0][..])).is_err());
    }
}
