//! New inputs out of a corpus, the same ones for the same seed.

/// Bytes that are often special somewhere: ends of ranges, delimiters, markers of nesting.
const SPECIAL: &[u8] = b"\x00\x01\x7f\x80\xff\x1f\x5f\x9f\xbf\n\" ,:;=/.%*&-{}[]()!|<>$+#@0129aeE";
/// Numbers that overflow, wrap or exhaust when they are taken as a length.
const NUMBERS: [u64; 8] =
    [0, 1, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_ffff_ffff];

pub(crate) struct Mutator {
    state: u64,
    corpus: Vec<Vec<u8>>,
    bytes_max: usize,
}

impl Mutator {
    pub(crate) fn new(seed: u64, corpus: Vec<Vec<u8>>, bytes_max: usize) -> Self {
        Self { state: seed, corpus, bytes_max }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `end`, or zero.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        // Short ranges mostly; now and then any.
        let most = if self.below(4) == 0 { len - start } else { (len - start).min(16) };
        start..start + self.below(most + 1)
    }

    fn example(&mut self) -> Vec<u8> {
        let index = self.below(self.corpus.len());
        self.corpus.get(index).cloned().unwrap_or_default()
    }

    /// The next input.
    pub(crate) fn input(&mut self) -> Vec<u8> {
        if self.below(16) == 0 {
            let len = self.below(64);
            return self.bytes(len);
        }
        let mut input = self.example();
        for _ in 0..=self.below(4) {
            self.change(&mut input);
        }
        input.truncate(self.bytes_max);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len());
        match self.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = SPECIAL[self.below(SPECIAL.len())],
            2 if !input.is_empty() => input[at] = input[at].wrapping_add([1, 255][self.below(2)]),
            3 => input.truncate(at),
            4 => drop(input.drain(self.range(input.len()))),
            5 => {
                let len = 1 + self.below(8);
                let insertion = match self.below(2) {
                    0 => self.bytes(len),
                    _ => vec![SPECIAL[self.below(SPECIAL.len())]; len],
                };
                input.splice(at..at, insertion);
            }
            6 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let bytes = if self.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
                let bytes = &bytes[..[2, 4, 8][self.below(3)]];
                let end = input.len().min(at + bytes.len());
                input.splice(at..end, bytes.iter().copied());
            }
            7 => {
                let repeated = input[self.range(input.len())].repeat(1 + self.below(8));
                input.splice(at..at, repeated);
            }
            _ => {
                let other = self.example();
                let piece = other[self.range(other.len())].to_vec();
                input.splice(at..at, piece);
            }
        }
    }
}

/// A name for an input (FNV-1a).
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
