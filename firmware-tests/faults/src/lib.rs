//! A control plane of real processes under a schedule of faults.
//!
//! Each member is a process on a machine of its own, which is a network namespace, with a disk of its own, which is a file
//! system in a file. Members are killed, stopped, cut off and replaced, their disks are slow, full and failing and their
//! clocks jump, as a seed says, while clients write, read, list and watch through all of them over the API, and pods run on
//! nodes. Then everything is healed, and what they saw is held against what one store that does one thing at a time could
//! have shown them (`lichen_firmware_tests::history`). No server may end by itself, and all must be well again by
//! themselves.
//!
//! The seed determines the schedule, not what comes of it: processes run as they like. The simulation
//! (`lichen-simulation --store`) plays the same on made-up networks and disks, and repeats itself to the letter.

#![forbid(unsafe_code)]

mod api;
mod client;
mod disk;
mod nemesis;
mod nodes;
mod round;
mod schedule;
mod watcher;
mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::nodes::Nodes;
use crate::round::Summary;
use crate::world::World;

/// The longest that a round lasts.
const ROUND_MAX: Duration = Duration::from_secs(5 * 60);

/// How many nodes there are beside the members.
const NODES: usize = 2;

/// What to play.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program to be tried.
    pub lichen: PathBuf,
    /// How many members there are.
    pub members: usize,
    /// How long faults come.
    pub length: Duration,
    /// What determines which.
    pub seed: u64,
}

/// Plays a schedule, and tells whether that could be done on this machine. This process must be alone in namespaces for
/// mounts, network and processes, see [`machine`](lichen_firmware_tests::mounts::machine). What it leaves in `dir` tells
/// what happened.
///
/// # Errors
/// With what was seen that can't be.
pub fn run(options: &Options, dir: &Path) -> Result<bool> {
    let Options { lichen, members, length, seed } = options;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!(
        "seed {seed}, {members} members, {} s; logs and disks are in {}",
        length.as_secs(),
        dir.display()
    );
    let Some(world) = World::start(lichen, dir, (*members, NODES), runtime.handle().clone())? else {
        return Ok(false);
    };
    world.say("all members vote");
    let mut nodes = Nodes::start(&world)?;
    let rounds = length.as_secs().div_ceil(ROUND_MAX.as_secs()).max(1);
    let each = *length / u32::try_from(rounds)?;
    let mut all = Summary::default();
    for round in 0..rounds {
        // So that a round can be played alone.
        let seed = seed + round;
        let played = round::play(&world, round, seed, each);
        let played = played.and_then(|summary| nodes.check(&world).map(|()| summary));
        if played.is_err() {
            world.tell_logs();
        }
        let summary =
            played.with_context(|| format!("in round {} of {rounds}, whose seed is {seed}", round + 1))?;
        world.say(&format!("round {} of {rounds} is well: {summary:?}", round + 1));
        all += summary;
    }
    println!("all is well: {all:?}");
    Ok(true)
}
