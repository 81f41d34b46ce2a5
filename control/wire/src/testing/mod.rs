//! The conformance suite of sessions: whatever carries frames, a node and its gateway must end up agreeing.
//!
//! A [`Carrier`] moves frames between the two sides, and may lose, repeat, reorder and delay them. The
//! [`Suite`] plays both applications over real sessions, causes what the script asks for, then lets the carrier
//! heal and checks that everything promised has happened. With [`MemoryCarrier`] time is virtual, and the same
//! seed plays the same run. Beside it stand the [`sessions`]' tests, which every target runs.
//!
//! This module is for tests: it panics where a promise is broken.

mod memory;
mod play;
pub mod sessions;
mod suite;

pub use memory::{Faults, MemoryCarrier};
pub use play::{Outcome, Script};
pub use suite::Suite;

use alloc::vec::Vec;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The node.
    Agent,
    /// The control plane.
    Gateway,
}

/// What a carrier brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A frame for this side.
    Frame(Side, Vec<u8>),
    /// This side's connection stands.
    Up(Side),
    /// This side's connection is gone.
    Down(Side),
}

/// Moves frames between a node and its gateway.
pub trait Carrier {
    /// The time, in milliseconds.
    fn now_ms(&self) -> u64;
    /// Sends a frame; it may be lost.
    fn send(&mut self, from: Side, frame: &[u8]);
    /// The next arrival, or `None` once `until_ms` has been reached without one.
    fn next(&mut self, until_ms: u64) -> Option<Arrival>;
    /// Cuts a side's connection; [`Arrival::Down`] and, in time, [`Arrival::Up`] follow.
    fn cut(&mut self, side: Side);
    /// Stops to lose, repeat, reorder and delay.
    fn heal(&mut self);
}

/// A small generator of numbers that depend on nothing but the seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Begins a sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// Whether something happens that does so in `percent` of cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A fresh seed.
    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        for part in seed.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next_u64().to_le_bytes());
        }
        seed
    }
}
