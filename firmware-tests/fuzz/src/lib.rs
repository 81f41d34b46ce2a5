//! Fuzzing under `cargo test`: a target is fed its committed corpus and then a fixed number of mutations of it.
//!
//! A target is a function of bytes that says whether it took them. It must not panic, must not allocate more than a
//! bound that grows with its input, and checks by itself that what it decoded can be encoded and read again. Files of
//! its corpus whose names begin with `ok-` must be taken, so that a corpus cannot rot; each other file is a finding.
//!
//! The same seed gives the same inputs. `LICHEN_FUZZ_SEED` and `LICHEN_FUZZ_ITERATIONS` change them, and with
//! `LICHEN_FUZZ_WRITE=1` examples that the corpus lacks are written. An input that fails is left in the folder for
//! temporary files; committed to the corpus it is tried first from then on.
//!
//! Deliberately absent: guidance by coverage. A target is one function, which libFuzzer can call just as well, on the
//! same corpus; that needs a nightly toolchain, and this does not.

mod meter;
mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::{env, fs};

use mutate::Mutator;

#[global_allocator]
static METER: meter::Meter = meter::Meter;

/// Largest input that is made.
const INPUT_BYTES_MAX: usize = 64 * 1024;

/// A target's corpus and bounds.
#[derive(Debug)]
pub struct Fuzz {
    corpus: PathBuf,
    iterations: u64,
    allocation_base: usize,
    allocation_per_byte: usize,
}

impl Fuzz {
    /// The target `name` of the crate in `manifest_dir`, which is `env!("CARGO_MANIFEST_DIR")` of the caller.
    pub fn new(manifest_dir: &str, name: &str) -> Self {
        let corpus = Path::new(manifest_dir).join("tests/corpus").join(name);
        Self { corpus, iterations: 4_000, allocation_base: 1 << 20, allocation_per_byte: 256 }
    }

    /// How many mutations are tried, if the usual number does not suit.
    #[must_use]
    pub fn iterations(self, iterations: u64) -> Self {
        Self { iterations, ..self }
    }

    /// How much may be allocated whatever the input, if the usual 1 MiB does not suit.
    #[must_use]
    pub fn allocation_base(self, allocation_base: usize) -> Self {
        Self { allocation_base, ..self }
    }

    /// Valid examples of every shape. Each must lie in the corpus, in its present or an older encoding.
    #[must_use]
    pub fn examples<N: AsRef<str>, B: AsRef<[u8]>>(self, examples: impl IntoIterator<Item = (N, B)>) -> Self {
        for (name, bytes) in examples {
            let path = self.corpus.join(format!("ok-{}", name.as_ref()));
            if path.exists() {
                continue;
            }
            assert!(
                env::var_os("LICHEN_FUZZ_WRITE").is_some(),
                "{path:?} is missing: set LICHEN_FUZZ_WRITE=1"
            );
            fs::create_dir_all(&self.corpus).expect("the corpus can be made");
            fs::write(&path, bytes).expect("the corpus can be written");
        }
        self
    }

    /// Feeds the target. Panics where it broke a promise, and says with which input.
    pub fn run(self, mut target: impl FnMut(&[u8]) -> bool) {
        let mut corpus: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(&self.corpus)
            .unwrap_or_else(|error| panic!("the corpus {}: {error}", self.corpus.display()))
            .map(|entry| entry.expect("the corpus can be listed").path())
            .map(|path| (path.clone(), fs::read(path).expect("the corpus can be read")))
            .collect();
        // A folder has no order of its own.
        corpus.sort();
        // Twice, since the first time may fill caches, which count for no single input.
        for measured in [false, true] {
            for (path, bytes) in &corpus {
                let taken = self.feed(&mut target, bytes, measured);
                let valid = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ok-"));
                assert!(taken || !valid, "{} is valid, and was refused", path.display());
            }
        }
        let number = |name| env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
        let corpus = corpus.into_iter().map(|(_, bytes)| bytes).collect();
        let mut mutator = Mutator::new(number("LICHEN_FUZZ_SEED").unwrap_or(1), corpus, INPUT_BYTES_MAX);
        for _ in 0..number("LICHEN_FUZZ_ITERATIONS").unwrap_or(self.iterations) {
            self.feed(&mut target, &mutator.input(), true);
        }
    }

    fn feed(&self, target: &mut impl FnMut(&[u8]) -> bool, input: &[u8], measured: bool) -> bool {
        let most = self.allocation_base + input.len() * self.allocation_per_byte;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let (taken, allocated) = meter::peak_of(|| target(input));
            assert!(
                !measured || allocated <= most,
                "{allocated} bytes allocated for {} of input",
                input.len()
            );
            taken
        }));
        outcome.unwrap_or_else(|panic| {
            let name = self.corpus.file_name().unwrap_or_default().to_string_lossy();
            let path = env::temp_dir().join(format!("lichen-fuzz-{name}-{:016x}", mutate::hash(input)));
            let kept = fs::write(&path, input)
                .map_or_else(|error| error.to_string(), |()| path.display().to_string());
            eprintln!(
                "the input of {} bytes is kept: {kept}\n{}",
                input.len(),
                input[..input.len().min(512)].escape_ascii()
            );
            resume_unwind(panic)
        })
    }
}
