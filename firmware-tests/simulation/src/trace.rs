//! What happened, as one line each: hashed, counted, and printed if asked for.

use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lichen_firmware_tests::history::Fault;
use tokio::sync::Notify;
use tokio::time::Instant;

/// When every simulation begins.
const BEGINNING: Timestamp = Timestamp::constant(1_800_000_000, 0);

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// Revisions only grow, and are the same on every member.
    Revisions,
    /// A watch replayed is the store.
    Replay,
    /// No node is given more than it has.
    Capacity,
    /// Per UID, container and attempt there is at most one start.
    Start,
    /// No acknowledged write is lost.
    Acknowledged,
    /// Owner epochs never go back.
    Epoch,
    /// A status is never overwritten by an older one.
    Status,
    /// Once everything is healed, what is becomes what is wanted.
    Convergence,
    /// A cluster at rest is not written to.
    Quiet,
    /// What clients and watches of the store saw could have been seen of one that does one thing at a time.
    History(Fault),
    /// What was fenced by a term is not written under a later one.
    Fence,
    /// A term has one leader.
    Election,
    /// Members that have the same revision have the same.
    Agreement,
    /// A member starts from whatever a crash left it.
    Open,
    /// Once everything is healed, every member takes writes.
    Recovery,
    /// Nothing panics.
    Panic,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Revisions => "revisions only grow",
            Self::Replay => "a watch replayed is the store",
            Self::Capacity => "no node is over-committed",
            Self::Start => "at most one start an attempt",
            Self::Acknowledged => "no acknowledged write is lost",
            Self::Epoch => "owner epochs never go back",
            Self::Status => "no status is overwritten by an older one",
            Self::Convergence => "after healing, what is becomes what is wanted",
            Self::Quiet => "a cluster at rest is not written to",
            Self::History(fault) => return write!(f, "what clients saw is one store's doing, but {fault:?}"),
            Self::Fence => "what was fenced by a term is not written under a later one",
            Self::Election => "a term has one leader",
            Self::Agreement => "members at one revision agree",
            Self::Open => "a member starts after whatever crash",
            Self::Recovery => "after healing, every member takes writes",
            Self::Panic => "nothing panics",
        })
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What was seen instead.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.detail)
    }
}

/// The trace. Clones write to the same one.
#[derive(Clone)]
pub(crate) struct Trace {
    inner: Arc<Mutex<Inner>>,
    violated: Arc<Notify>,
    start: Instant,
}

struct Inner {
    hash: u64,
    steps: u64,
    print: bool,
    violation: Option<Violation>,
}

impl Trace {
    /// Begins now, by the virtual clock.
    pub(crate) fn new(print: bool) -> Self {
        // The offset basis of FNV-1a.
        let inner = Inner { hash: 0xcbf2_9ce4_8422_2325, steps: 0, print, violation: None };
        Self { inner: Arc::new(Mutex::new(inner)), violated: Arc::default(), start: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the simulation has been going on.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// What a clock on the wall shows.
    pub(crate) fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.elapsed()).unwrap_or(SignedDuration::MAX);
        BEGINNING.saturating_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    /// Notes a step.
    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}\n", self.elapsed().as_secs_f64());
        let mut inner = self.lock();
        for byte in line.bytes() {
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        inner.steps += 1;
        if inner.print {
            // A reader that has seen enough is no reason to stop.
            let _ = std::io::stdout().write_all(line.as_bytes());
        }
    }

    /// Counts a step that is too small to be noted.
    pub(crate) fn step(&self) {
        self.lock().steps += 1;
    }

    /// Notes that an invariant does not hold. The first one ends the simulation.
    pub(crate) fn violate(&self, invariant: Invariant, detail: impl Into<String>) {
        let violation = Violation { invariant, detail: detail.into() };
        self.note(format_args!("VIOLATED {violation}"));
        self.lock().violation.get_or_insert(violation);
        self.violated.notify_one();
    }

    /// Waits for a violation.
    pub(crate) async fn violated(&self) {
        self.violated.notified().await;
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        self.lock().violation.clone()
    }

    pub(crate) fn hash(&self) -> u64 {
        self.lock().hash
    }

    pub(crate) fn steps(&self) -> u64 {
        self.lock().steps
    }
}

/// Writes a step into a trace, as `println!` would.
macro_rules! note {
    ($trace:expr, $($what:tt)*) => { $trace.note(format_args!($($what)*)) };
}
pub(crate) use note;
