//! Bugs that can be planted, one at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use lichen_firmware_tests::history::Fault;
use lichen_store::simulation::plant;

use crate::Invariant;

/// A bug that can be planted: in the code that ships, behind a feature that only the simulation asks for.
#[derive(Clone, Copy)]
pub struct Plant {
    /// What it is called on the command line.
    pub name: &'static str,
    switch: &'static AtomicBool,
    /// The invariant that it breaks.
    pub breaks: Invariant,
}

/// All of them.
pub const PLANTS: &[Plant] = &[
    Plant { name: "older-epoch", switch: &lichen_wire::plant::OLDER_EPOCH, breaks: Invariant::Epoch },
    Plant { name: "in-flight", switch: &lichen_scheduler::plant::IN_FLIGHT, breaks: Invariant::Capacity },
    Plant { name: "by-name", switch: &lichen_controllers::plant::BY_NAME, breaks: Invariant::Convergence },
    Plant {
        name: "stale-snapshot",
        switch: &lichen_gateway::plant::STALE_SNAPSHOT,
        breaks: Invariant::Convergence,
    },
    Plant {
        name: "reports-overtake",
        switch: &lichen_gateway::plant::REPORTS_OVERTAKE,
        breaks: Invariant::Status,
    },
];

/// Those of the store, which its own simulation finds.
pub const STORE_PLANTS: &[Plant] = &[
    Plant { name: "unsynced", switch: &plant::UNSYNCED, breaks: Invariant::History(Fault::Contradiction) },
    Plant { name: "vote", switch: &plant::VOTE, breaks: Invariant::Open },
    Plant { name: "stale-read", switch: &plant::STALE_READ, breaks: Invariant::History(Fault::Stale) },
    Plant { name: "watch-gap", switch: &plant::WATCH_GAP, breaks: Invariant::History(Fault::Gap) },
    Plant { name: "ahead", switch: &plant::AHEAD, breaks: Invariant::History(Fault::Wrong) },
    Plant { name: "repeat", switch: &plant::REPEAT, breaks: Invariant::History(Fault::Repeated) },
];

impl Plant {
    /// Plants the bug in this whole process until what is returned is dropped.
    #[must_use]
    pub fn plant(self) -> Planted {
        self.switch.store(true, Ordering::Relaxed);
        Planted(self)
    }
}

/// A bug that is planted.
pub struct Planted(Plant);

impl Drop for Planted {
    fn drop(&mut self) {
        self.0.switch.store(false, Ordering::Relaxed);
    }
}
