//! Which faults come when: drawn from a seed, before anything happens.
//!
//! Each fault ends by itself. At most [`AT_ONCE_MAX`] last at the same time, so that a majority may be lost for moments
//! but never for long.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// How many faults last at the same time.
const AT_ONCE_MAX: usize = 2;
/// The longest time without a fault.
const CALM_MAX: Duration = Duration::from_secs(4);

/// Which way nothing gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Neither to the member nor from it.
    Both,
    /// Not from it.
    Out,
    /// Not to it.
    In,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A member is killed and starts again at the end.
    Kill,
    /// All members are.
    KillAll,
    /// A member's process stands still.
    Pause,
    /// A member is cut off from all others.
    Isolate(Way),
    /// A member is cut off from one other.
    Part(Way),
    /// A minority is cut off from the majority.
    Split,
    /// Another member is asked to lead.
    Transfer,
    /// Whatever makes something durable takes so many milliseconds. It may last while something else befalls the member.
    SlowDisk(u64),
    /// Nothing more fits on a member's disk.
    FullDisk,
    /// Some writes or syncs fail.
    FailingDisk,
    /// A member's clock jumps, and back at the end.
    Clock,
    /// A member is removed, and its machine joins anew with an empty disk.
    Replace,
}

/// Whom it befalls, of those to whom nothing else happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// Whoever leads then.
    Leader,
    /// This one, or the next.
    Member(usize),
}

/// A fault of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// When it begins.
    pub(crate) at: Duration,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// Whom it befalls.
    pub(crate) whom: Whom,
    /// What it is.
    pub(crate) fault: Fault,
    /// What else is left to chance.
    pub(crate) lot: u64,
}

/// How likely a fault is beside the others, and for how many milliseconds it lasts.
const FAULTS: &[(u32, (u64, u64), Fault)] = &[
    (14, (0, 4_000), Fault::Kill),
    (3, (0, 2_000), Fault::KillAll),
    (10, (500, 10_000), Fault::Pause),
    (8, (1_000, 12_000), Fault::Isolate(Way::Both)),
    (5, (1_000, 12_000), Fault::Isolate(Way::Out)),
    (5, (1_000, 12_000), Fault::Isolate(Way::In)),
    (4, (1_000, 12_000), Fault::Part(Way::Both)),
    (4, (1_000, 12_000), Fault::Part(Way::Out)),
    (4, (1_000, 12_000), Fault::Split),
    (5, (0, 0), Fault::Transfer),
    (5, (5_000, 20_000), Fault::SlowDisk(100)),
    (4, (8_000, 25_000), Fault::SlowDisk(7_000)),
    (6, (3_000, 12_000), Fault::FullDisk),
    (6, (2_000, 8_000), Fault::FailingDisk),
    (5, (1_000, 15_000), Fault::Clock),
    (5, (0, 3_000), Fault::Replace),
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |way: &Way| match way {
            Way::Both => "",
            Way::Out => ", one way: nothing gets out",
            Way::In => ", one way: nothing gets in",
        };
        match self {
            Self::Kill => write!(f, "is killed"),
            Self::KillAll => write!(f, "and all others are killed"),
            Self::Pause => write!(f, "stands still"),
            Self::Isolate(cut) => write!(f, "is cut off from all others{}", way(cut)),
            Self::Part(cut) => write!(f, "is cut off from one other{}", way(cut)),
            Self::Split => write!(f, "is of the minority that is cut off"),
            Self::Transfer => write!(f, "is asked to lead"),
            Self::SlowDisk(_) => write!(f, "has a slow disk"),
            Self::FullDisk => write!(f, "has a full disk"),
            Self::FailingDisk => write!(f, "has a failing disk"),
            Self::Clock => write!(f, "has a wrong clock"),
            Self::Replace => write!(f, "is removed and replaced"),
        }
    }
}

/// The faults of so long a time.
pub(crate) fn draw(seed: u64, members: usize, length: Duration) -> Vec<Planned> {
    let mut random = StdRng::seed_from_u64(seed);
    let millis = |random: &mut StdRng, low, high| Duration::from_millis(random.random_range(low..=high));
    let total: u32 = FAULTS.iter().map(|(weight, ..)| weight).sum();
    let mut all: Vec<Planned> = Vec::new();
    loop {
        let mut lot = random.random_range(0..total);
        let entry = FAULTS.iter().find(|(weight, ..)| {
            let chosen = lot < *weight;
            lot = lot.saturating_sub(*weight);
            chosen
        });
        let Some((_, (shortest, longest), fault)) = entry else { unreachable!("a lot is below the total") };
        let lasts = millis(&mut random, *shortest, *longest);
        let whom = match random.random_range(0..5) {
            0 | 1 => Whom::Leader,
            _ => Whom::Member(random.random_range(0..members)),
        };
        let calm = u64::try_from(CALM_MAX.as_millis()).unwrap_or(u64::MAX);
        // Mostly one after the other, sometimes into the last.
        let mut ends: Vec<Duration> = all.iter().map(|planned| planned.at + planned.lasts).collect();
        ends.sort_unstable_by(|one, other| other.cmp(one));
        let last = all.last().map_or(Duration::ZERO, |planned| planned.at);
        let earliest = match random.random_range(0..3) {
            0 => last.max(ends.get(AT_ONCE_MAX - 1).copied().unwrap_or_default()),
            _ => ends.first().copied().unwrap_or_default(),
        };
        let at = earliest + millis(&mut random, 200, calm);
        if at + lasts > length {
            return all;
        }
        all.push(Planned { at, lasts, whom, fault: *fault, lot: random.random() });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_schedule_that_ends_in_time() {
        let length = Duration::from_secs(300);
        for seed in 0..200 {
            let schedule = draw(seed, 3, length);
            assert_eq!(schedule, draw(seed, 3, length));
            assert!(schedule.len() > 15, "{seed}: {}", schedule.len());
            for planned in &schedule {
                assert!(planned.at + planned.lasts <= length);
                let lasts = |other: &&Planned| other.at <= planned.at && planned.at < other.at + other.lasts;
                assert!(schedule.iter().filter(lasts).count() <= AT_ONCE_MAX, "{seed}: {planned:?}");
            }
        }
        assert_ne!(draw(1, 3, length), draw(2, 3, length));
    }

    #[test]
    fn every_fault_comes() {
        let drawn: BTreeSet<Fault> = (0..50)
            .flat_map(|seed| draw(seed, 3, Duration::from_secs(300)))
            .map(|planned| planned.fault)
            .collect();
        let known: BTreeSet<Fault> = FAULTS.iter().map(|(.., fault)| *fault).collect();
        assert_eq!(drawn, known);
    }
}
