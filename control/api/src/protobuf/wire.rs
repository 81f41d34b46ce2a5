//! Protobuf's wire format: numbered fields.

use super::ProtobufError;

const TRUNCATED: ProtobufError = ProtobufError::Malformed("it ends within a field");
const WRONG_TYPE: ProtobufError = ProtobufError::Malformed("a field has another type than its kind says");

/// One field.
#[derive(Debug)]
pub(super) struct Field<'b> {
    pub(super) number: u32,
    pub(super) payload: Payload<'b>,
}

/// What a field holds.
#[derive(Debug)]
pub(super) enum Payload<'b> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'b [u8]),
}

impl<'b> Field<'b> {
    pub(super) fn bytes(&self) -> Result<&'b [u8], ProtobufError> {
        match self.payload {
            Payload::Bytes(bytes) => Ok(bytes),
            _ => Err(WRONG_TYPE),
        }
    }

    pub(super) fn text(&self) -> Result<String, ProtobufError> {
        let bytes = self.bytes()?.to_vec();
        String::from_utf8(bytes).map_err(|_| ProtobufError::Malformed("a text is not UTF-8"))
    }

    /// Negative numbers are written as their two's complement in 64 bits.
    pub(super) fn integer(&self) -> Result<i64, ProtobufError> {
        match self.payload {
            Payload::Varint(value) => Ok(value.cast_signed()),
            _ => Err(WRONG_TYPE),
        }
    }
}

/// The fields of a message.
pub(super) fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields { rest: bytes }
}

pub(super) struct Fields<'b> {
    rest: &'b [u8],
}

impl<'b> Fields<'b> {
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (first, rest) = self.rest.split_first().ok_or(TRUNCATED)?;
            self.rest = rest;
            if shift == 63 && *first > 1 {
                break;
            }
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Malformed("a number is too long"))
    }

    fn take(&mut self, length: u64) -> Result<&'b [u8], ProtobufError> {
        let length = usize::try_from(length).map_err(|_| TRUNCATED)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<Field<'b>, ProtobufError> {
        let key = self.varint()?;
        let number =
            u32::try_from(key >> 3).map_err(|_| ProtobufError::Malformed("a field's number is too big"))?;
        let payload = match key & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => {
                let mut bits = [0; 8];
                bits.copy_from_slice(self.take(8)?);
                Payload::Fixed64(u64::from_le_bytes(bits))
            }
            2 => {
                let length = self.varint()?;
                Payload::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Payload::Fixed32
            }
            _ => return Err(ProtobufError::Malformed("a field's type is unknown")),
        };
        Ok(Field { number, payload })
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = Result<Field<'b>, ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}
