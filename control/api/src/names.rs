//! Names and times that the server makes.

use jiff::Timestamp;

/// Longest name that generateName yields.
const GENERATED_NAME_BYTES_MAX: usize = 63;
/// Length of the random part.
pub const SUFFIX_BYTES: usize = 5;
/// The letters of the random part: no vowels, so that no words come out, and nothing that looks alike.
pub const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name from `metadata.generateName` and a random suffix.
pub fn generate(prefix: &str, suffix: &str) -> String {
    let mut end = prefix.len().min(GENERATED_NAME_BYTES_MAX - SUFFIX_BYTES);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &prefix[..end])
}

/// A random suffix out of random bits that the caller drew.
pub fn suffix(mut bits: u64) -> String {
    let base = SUFFIX_ALPHABET.len() as u64;
    (0..SUFFIX_BYTES)
        .map(|_| {
            let letter = SUFFIX_ALPHABET[(bits % base) as usize];
            bits /= base;
            char::from(letter)
        })
        .collect()
}

/// RFC 3339 in UTC with whole seconds, as `creationTimestamp` has it.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 in UTC with microseconds, as `renewTime` and `eventTime` have it.
pub fn rfc3339_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
