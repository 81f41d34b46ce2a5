//! Bytes in whole blocks.

use super::segment::BLOCK_BYTES;

/// Bytes beyond which the room for one write is not kept for the next.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// Puts together what is written, at an address from which a disk takes it without a copy.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    bytes: Vec<u8>,
}

impl Blocks {
    /// The parts one after the other, and zeros up to the end of the last block.
    pub(super) fn fill(&mut self, parts: &[&[u8]]) -> &[u8] {
        let total = parts.iter().map(|part| part.len()).sum::<usize>().next_multiple_of(BLOCK_BYTES);
        if self.bytes.len() < total + BLOCK_BYTES || self.bytes.len() > total.max(KEPT_BYTES_MAX) * 2 {
            self.bytes = vec![0; total + BLOCK_BYTES];
        }
        let start = match self.bytes.as_ptr().align_offset(BLOCK_BYTES) {
            start if start <= BLOCK_BYTES => start,
            // It may not be told, and is then done without.
            _ => 0,
        };
        let out = &mut self.bytes[start..start + total];
        let mut at = 0;
        for part in parts {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        out[at..].fill(0);
        out
    }
}
