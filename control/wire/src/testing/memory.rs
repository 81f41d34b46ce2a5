//! A carrier in memory with a virtual clock, as bad as its faults say.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{Arrival, Carrier, Rng, Side};

/// How bad a link is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// How many of a hundred frames are lost.
    pub loss_percent: u64,
    /// How many of a hundred frames arrive twice.
    pub repeat_percent: u64,
    /// How many of a hundred frames have a bit flipped.
    pub damage_percent: u64,
    /// How many of a hundred frames are followed by one from the past.
    pub replay_percent: u64,
    /// Longest delay; frames with different delays overtake each other.
    pub delay_max_ms: u64,
}

/// The carrier.
#[derive(Debug)]
pub struct MemoryCarrier {
    now_ms: u64,
    rng: Rng,
    faults: Faults,
    /// What will arrive, by time and order of sending.
    due: BTreeMap<(u64, u64), Arrival>,
    sent: u64,
    past: Vec<(Side, Vec<u8>)>,
    up: [bool; 2],
}

/// Shortest delay.
const DELAY_MIN_MS: u64 = 5;
/// Most frames that are kept to be replayed.
const PAST_MAX: usize = 512;

impl MemoryCarrier {
    /// A carrier whose sides are about to connect.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mut carrier = Self {
            now_ms: 1_000,
            rng: Rng::new(seed),
            faults,
            due: BTreeMap::new(),
            sent: 0,
            past: Vec::new(),
            up: [false; 2],
        };
        carrier.push(0, Arrival::Up(Side::Gateway));
        carrier.push(0, Arrival::Up(Side::Agent));
        carrier
    }

    /// How many frames were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    fn push(&mut self, delay_ms: u64, arrival: Arrival) {
        self.sent += 1;
        self.due.insert((self.now_ms + delay_ms, self.sent), arrival);
    }

    fn is_up(&self, side: Side) -> bool {
        self.up[side as usize]
    }
}

impl Carrier for MemoryCarrier {
    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn send(&mut self, from: Side, frame: &[u8]) {
        let to = if from == Side::Agent { Side::Gateway } else { Side::Agent };
        let mut frame = frame.to_vec();
        if self.past.len() < PAST_MAX {
            self.past.push((to, frame.clone()));
        } else {
            let index = self.rng.below(PAST_MAX as u64) as usize;
            self.past[index] = (to, frame.clone());
        }
        if !self.is_up(from) || self.rng.percent(self.faults.loss_percent) {
            return;
        }
        let repeated = self.rng.percent(self.faults.repeat_percent);
        let delay_ms = |rng: &mut Rng, faults: &Faults| DELAY_MIN_MS + rng.below(faults.delay_max_ms);
        if repeated {
            let again_ms = delay_ms(&mut self.rng, &self.faults);
            self.push(again_ms, Arrival::Frame(to, frame.clone()));
        }
        if self.rng.percent(self.faults.replay_percent) {
            let index = self.rng.below(self.past.len() as u64) as usize;
            let (side, old) = self.past[index].clone();
            let replay_ms = delay_ms(&mut self.rng, &self.faults);
            self.push(replay_ms, Arrival::Frame(side, old));
        }
        if self.rng.percent(self.faults.damage_percent) {
            let bit = self.rng.below(frame.len() as u64 * 8) as usize;
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        let delay_ms = delay_ms(&mut self.rng, &self.faults);
        self.push(delay_ms, Arrival::Frame(to, frame));
    }

    fn next(&mut self, until_ms: u64) -> Option<Arrival> {
        loop {
            let due = self.due.first_key_value().map(|(key, _)| *key).filter(|(at, _)| *at <= until_ms);
            let Some(key) = due else {
                self.now_ms = self.now_ms.max(until_ms);
                return None;
            };
            self.now_ms = self.now_ms.max(key.0);
            let arrival = self.due.remove(&key)?;
            match &arrival {
                // A clean session: what arrives for a side that is not connected is lost.
                Arrival::Frame(to, _) if !self.is_up(*to) => continue,
                Arrival::Frame(..) => {}
                Arrival::Up(side) => self.up[*side as usize] = true,
                Arrival::Down(side) => self.up[*side as usize] = false,
            }
            return Some(arrival);
        }
    }

    fn cut(&mut self, side: Side) {
        let back_ms = 100 + self.rng.below(5_000);
        self.push(0, Arrival::Down(side));
        self.push(back_ms, Arrival::Up(side));
    }

    fn heal(&mut self) {
        self.faults = Faults::default();
    }
}
