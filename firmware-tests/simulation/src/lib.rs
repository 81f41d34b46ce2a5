//! Simulation A: a whole cluster in one thread, under a virtual clock, determined by a seed.
//!
//! What runs is what ships: registry, controllers, scheduler, gateways, sessions, and the agents' cores. What stands in
//! is what they run on: an ordered log in raft's place, a network in the broker's, machines, disks and a runtime that
//! runs nothing. All chance comes from one seed, and the clock moves only when nothing is left to do, so that the same
//! seed is the same run, down to the hash of its trace.
//!
//! A run builds a cluster, has a client change what is wanted while servers, leaders, links, messages, disks, nodes and
//! containers fail, heals everything, and then demands that what is becomes what is wanted and that nothing is written
//! any more. Each [`Invariant`] is checked at every step.
//!
//! Deliberately absent: raft itself, the store's files, sockets, and what runs in a container.

mod broker_loss;
mod check;
mod client;
mod dice;
mod knobs;
mod log;
mod net;
mod node;
mod plants;
mod server;
mod settled;
pub mod store;
mod trace;
mod world;

use std::cell::Cell;
use std::sync::{Arc, Once};
use std::time::Duration;

use lichen_artifacts::{Artifacts, CompileCommand};
use lichen_pki::{Authority, Request};
use tempfile::TempDir;

pub use broker_loss::{BrokerLoss, Cut, broker_loss};
pub use plants::{PLANTS, Plant, Planted, STORE_PLANTS};
pub use trace::{Invariant, Violation};
pub use world::{Report, run};

use crate::dice::Dice;

/// What every simulation uses and none changes.
pub struct Assets {
    authority: Arc<Authority>,
    artifacts: Artifacts,
    /// The certificate request that every node joins with.
    csr: Vec<u8>,
    dir: TempDir,
}

impl Assets {
    /// Makes them in a temporary directory.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn new() -> anyhow::Result<Arc<Self>> {
        let dir = tempfile::tempdir()?;
        let authority = Arc::new(Authority::open_or_create(&dir.path().join("pki"))?);
        let compile = CompileCommand::new(Vec::new());
        let artifacts = Artifacts::open(&dir.path().join("artifacts"), compile, authority.clone())?;
        let csr = Request::new()?.csr_der;
        Ok(Arc::new(Self { authority, artifacts, csr, dir }))
    }
}

/// A task that panics is lost silently otherwise. Tells whether one has, on this thread, since it was last asked.
fn watch_for_panics() -> impl Fn() -> bool {
    thread_local! {
        static PANICKED: Cell<bool> = const { Cell::new(false) };
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            before(info);
        }));
    });
    || PANICKED.take()
}

/// How large a simulation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Servers.
    pub servers: u64,
    /// Nodes.
    pub nodes: u64,
    /// Things that a client does.
    pub actions: u64,
    /// Things that go wrong.
    pub faults: u64,
    /// How long they do.
    pub trouble: Duration,
}

impl Size {
    /// What a seed makes it.
    pub fn of(seed: u64) -> Self {
        Self::draw(&Dice::new(seed))
    }

    /// Mostly small, so that many can be played; a few as large as they come.
    fn draw(dice: &Dice) -> Self {
        let nodes = match dice.between(0, 99) {
            0..=69 => dice.between(1, 6),
            70..=94 => dice.between(5, 20),
            95..=98 => dice.between(20, 60),
            _ => dice.between(100, 200),
        };
        Self {
            servers: dice.between(1, 3),
            nodes,
            actions: dice.between(5, 40),
            faults: dice.between(0, 60),
            trouble: Duration::from_secs(dice.between(60, 600)),
        }
    }
}
