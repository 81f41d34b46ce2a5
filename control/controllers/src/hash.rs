//! Names out of what is known: hashes, in letters that make no words.

/// The letters of generated names, as Kubernetes has them: no vowels, and no digits that look like letters.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many letters a generated name ends in.
const SUFFIX_LETTERS: usize = 5;

/// FNV-1a over several parts, with 64 bits.
pub(crate) fn fnv(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        // The length separates the parts, so that ("a", "bc") and ("ab", "c") differ.
        for byte in (part.len() as u64).to_le_bytes().iter().chain(*part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// The end of a generated name.
pub(crate) fn suffix(parts: &[&[u8]]) -> String {
    letters(fnv(parts), SUFFIX_LETTERS)
}

/// A hash as text of `count` letters.
pub(crate) fn letters(mut hash: u64, count: usize) -> String {
    let base = LETTERS.len() as u64;
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        text.push(char::from(LETTERS[(hash % base) as usize]));
        hash /= base;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_names_are_letters() {
        assert_ne!(fnv(&[b"a", b"bc"]), fnv(&[b"ab", b"c"]));
        let name = suffix(&[b"uid", b"7"]);
        assert_eq!(name.len(), SUFFIX_LETTERS);
        assert!(name.bytes().all(|letter| LETTERS.contains(&letter)));
    }
}
