//! Simulation B: the replicated store itself, determined by a seed.
//!
//! What runs is what ships: raft, the log, the state machine, the files' formats, watches. What stands in is what they
//! run on: a network, disks, processes and the clock. Members are killed, paused, slowed, cut off, robbed of their
//! power, added, removed and wiped while clients write, read, list and watch through all of them; then everything is
//! healed. What the clients saw is held against what one store that does one thing at a time could have shown them, and
//! every watch against what happened: see `lichen_firmware_tests::history`.

mod client;
mod cluster;
mod disk;
mod journal;
mod nemesis;
mod net;
mod watcher;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use lichen_firmware_tests::history::{Recorder, Revision, Rules};
use lichen_store::simulation::LogBounds;
use lichen_store::{HistoryBounds, Precondition, RangeOptions, Txn};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use self::client::{Client, draft};
use self::cluster::Cluster;
use self::nemesis::Nemesis;
use self::watcher::Watcher;
use crate::dice::Dice;
use crate::trace::{Invariant, Trace, Violation, note};
use crate::watch_for_panics;

/// The revision of an empty store.
const FIRST: Revision = lichen_store::Revision::FIRST.0;
/// How long everything may take to be well again once all is healed.
const RECOVERY_MAX: Duration = Duration::from_secs(180);
/// How long a watch may take to tell what there is.
const WATCH_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// More than all watches together may be behind: nobody sees bytes run out.
const HISTORY_BYTES: usize = 1 << 30;

/// How large a simulation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Members that it begins with.
    pub members: u64,
    /// Clients.
    pub clients: u64,
    /// Watches.
    pub watches: u64,
    /// Keys that they share.
    pub keys: u64,
    /// Things that go wrong.
    pub faults: u64,
    /// How long they do.
    pub trouble: Duration,
    /// Changes that a watch may be behind.
    pub window: usize,
    /// Entries of the log after which it is cut.
    pub log_entries: u64,
}

impl Size {
    fn draw(dice: &Dice) -> Self {
        Self {
            members: *dice.pick(&[3, 3, 3, 5]).unwrap_or(&3),
            clients: dice.between(2, 5),
            watches: dice.between(2, 5),
            keys: dice.between(1, 8),
            faults: dice.between(5, 40),
            trouble: Duration::from_secs(dice.between(20, 90)),
            window: *dice.pick(&[10, 50, 10_000]).unwrap_or(&50) as usize,
            log_entries: *dice.pick(&[15, 60, 500]).unwrap_or(&60),
        }
    }
}

/// How a simulation went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was determined by.
    pub seed: u64,
    /// Over everything that happened.
    pub hash: u64,
    /// Things that happened.
    pub steps: u64,
    /// What clients did that ended.
    pub operations: usize,
    /// How long it took by its own clock.
    pub elapsed: Duration,
    /// How large it was.
    pub size: Size,
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
}

/// Plays a seed from beginning to end, in a size of the caller's if there is one, and prints each step if asked to.
pub fn run(seed: u64, size: Option<Size>, print: bool) -> Report {
    let panicked = watch_for_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    // It opens nothing but memory.
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime can be made: {error}"));
    let report = runtime.block_on(async {
        let world = World::new(seed, size, print);
        let trace = world.trace.clone();
        tokio::select! {
            biased;
            () = trace.violated() => {}
            () = world.play() => {}
        }
        if panicked() {
            trace.violate(Invariant::Panic, "a task panicked");
        }
        Report {
            seed,
            hash: trace.hash(),
            steps: trace.steps(),
            operations: world.recorder.history().operations.len(),
            elapsed: trace.elapsed(),
            size: world.size,
            violation: trace.violation(),
        }
    });
    drop(runtime);
    report
}

struct World {
    size: Size,
    dice: Dice,
    trace: Trace,
    recorder: Recorder,
    cluster: Cluster,
}

impl World {
    fn new(seed: u64, size: Option<Size>, print: bool) -> Self {
        let dice = Dice::new(seed);
        let drawn = Size::draw(&dice);
        let size = size.unwrap_or(drawn);
        let trace = Trace::new(print);
        note!(trace, "seed {seed}: {size:?}");
        let history = HistoryBounds { changes_max: size.window, bytes_max: HISTORY_BYTES };
        let log_bounds = LogBounds {
            snapshot_entries: size.log_entries,
            kept_entries: size.log_entries / 4,
            lag_entries: size.log_entries * 2,
        };
        let recorder = Recorder::default();
        let cluster = Cluster::new(dice.fork(), trace.clone(), recorder.clone(), history, log_bounds);
        Self { size, dice, trace, recorder, cluster }
    }

    async fn play(&self) {
        if !self.cluster.begin(self.size.members).await {
            self.trace.violate(Invariant::Recovery, "no cluster came to be");
            return;
        }
        let (stop, stopped) = watch::channel(false);
        let finish = Finish::default();
        let fenced = Fenced::default();
        let clients: Vec<_> = (0..self.size.clients)
            .map(|number| {
                let client = Client {
                    number,
                    dice: self.dice.fork(),
                    trace: self.trace.clone(),
                    recorder: self.recorder.clone(),
                    cluster: self.cluster.clone(),
                    keys: self.size.keys,
                    fenced: fenced.clone(),
                };
                tokio::spawn(client.work(stopped.clone()))
            })
            .collect();
        let watches: Vec<_> = (0..self.size.watches)
            .map(|number| {
                let watcher = Watcher {
                    // The first one sees everything.
                    prefix: if number % 3 == 2 { "/a/".into() } else { "/".into() },
                    who: format!("watch {number}"),
                    slow: number % 2 == 1,
                    dice: self.dice.fork(),
                    trace: self.trace.clone(),
                    recorder: self.recorder.clone(),
                    cluster: self.cluster.clone(),
                };
                tokio::spawn(watcher.work(finish.clone()))
            })
            .collect();
        let nemesis = Nemesis::new(self.dice.fork(), self.trace.clone(), self.cluster.clone());
        nemesis.trouble(self.size.faults, self.size.trouble).await;
        note!(self.trace, "everything is healed");
        nemesis.heal().await;
        stop.send_replace(true);
        for client in clients {
            let _ = client.await;
        }
        let Ok(Some(last)) = timeout(RECOVERY_MAX, self.recovered()).await else {
            let detail = format!("{:?} after healing: {}", RECOVERY_MAX, self.cluster.describe());
            self.trace.violate(Invariant::Recovery, detail);
            return;
        };
        finish.set(last);
        for watch in watches {
            let _ = watch.await;
        }
        self.cluster.end().await;
        self.judge(&fenced);
    }

    /// Waits until every member takes a write, and all have the same. Tells the last revision.
    async fn recovered(&self) -> Option<Revision> {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let Some(members) = self.cluster.members().await else { continue };
            let mut last = None;
            let mut well = 0;
            for (name, process, store) in &members {
                let value = format!("end-{name}-{}", self.recorder.now());
                let txn = Txn::new().put("/end".into(), Precondition::Any, draft(&value));
                let steps = vec![client::step("/end", &Precondition::Any, Some(&value))];
                let began = self.recorder.now();
                let done = self.cluster.call(process, async { store.commit(txn).await }).await;
                let outcome = client::outcome(done.as_ref());
                self.recorder.operation(began, client::wrote(steps, outcome));
                if let Some(Ok(committed)) = done {
                    last = Some(committed.revision);
                    well += 1;
                }
            }
            if well < members.len() {
                continue;
            }
            // A moment for who only follows.
            tokio::time::sleep(Duration::from_secs(2)).await;
            let states: Vec<_> =
                members.iter().map(|(_, _, store)| store.range("/", &RangeOptions::default())).collect();
            if states.iter().all(|state| *state == states[0]) {
                // Who was never taken in, or removed without an answer, tells watches nothing any more.
                for (name, ..) in self.cluster.up() {
                    if members.iter().all(|(member, ..)| *member != name) {
                        self.cluster.kill(&name, false);
                    }
                }
                return last.map(|last| last.0);
            }
            if states.iter().all(|state| state.as_ref().ok().map(|page| page.revision) == last) {
                self.trace.violate(Invariant::Agreement, format!("at one revision: {states:?}"));
                return None;
            }
        }
    }

    fn judge(&self, fenced: &Fenced) {
        let history = self.recorder.history();
        note!(self.trace, "{} operations, {} watches", history.operations.len(), history.watches.len());
        let rules = Rules { first: FIRST, all: true, window: Some(self.size.window) };
        if let Err(violation) = history.check(&rules) {
            self.trace.violate(Invariant::History(violation.fault), violation.detail);
        }
        let fenced = fenced.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest = 0;
        for (revision, term) in &*fenced {
            if *term < newest {
                let detail = format!("revision {revision} was fenced by term {term}, after one by {newest}");
                self.trace.violate(Invariant::Fence, detail);
            }
            newest = *term;
        }
    }
}

/// The revision at which watches shall finish, once it is known.
#[derive(Clone, Debug, Default)]
struct Finish {
    last: Arc<OnceLock<Revision>>,
    known: Arc<Notify>,
}

impl Finish {
    fn set(&self, last: Revision) {
        // It is set once.
        let _ = self.last.set(last);
        self.known.notify_waiters();
    }

    fn get(&self) -> Option<Revision> {
        self.last.get().copied()
    }

    async fn known(&self) {
        let known = self.known.notified();
        if self.get().is_none() {
            known.await;
        }
    }
}

/// Writes that were fenced by a term.
#[derive(Clone, Debug, Default)]
struct Fenced(Arc<Mutex<BTreeMap<Revision, u64>>>);

impl Fenced {
    fn wrote(&self, revision: Revision, term: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(revision, term);
    }
}
