//! An ordered log in raft's place: one leader a term, members that lag, acknowledgements that get lost.
//!
//! What is in the log has happened; nothing is ever taken out. A proposal is refused before it is in the log, or its
//! outcome is told after, or whoever made it learns nothing. A duplicate is what a layer below makes of one proposal:
//! the same transaction once more, under the same term.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lichen_store::{
    Applier, CommitError, Committed, HistoryBounds, Key, Leadership, Order, RangeOptions, Record, Rejection,
    Store, Term, Txn,
};
use tokio::sync::{Notify, watch};

use crate::check::Checks;
use crate::dice::Dice;
use crate::knobs::Knobs;
use crate::trace::{Invariant, Trace, note};

/// The longest until a leader hears that it was deposed.
const DEPOSED_MS_MAX: u64 = 5_000;

/// The log. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Log {
    inner: Arc<Mutex<Inner>>,
    dice: Dice,
    knobs: Knobs,
    trace: Trace,
    checks: Checks,
}

struct Inner {
    entries: Vec<Entry>,
    /// What the log comes to.
    decided: Applier,
    state: Store,
    term: u64,
    leader: Option<u64>,
    members: BTreeMap<u64, Member>,
    instances: u64,
}

struct Entry {
    term: Term,
    txn: Arc<Txn>,
    result: Result<Committed, Rejection>,
}

/// A member that is up.
struct Member {
    /// Which start of it this is.
    instance: u64,
    applier: Applier,
    applied: usize,
    believes: watch::Sender<Leadership>,
    news: Arc<Notify>,
}

/// A store that has just been opened.
pub(crate) struct Opened {
    pub(crate) store: Store,
    /// Whether it leads.
    pub(crate) leads: watch::Receiver<Leadership>,
}

impl Log {
    pub(crate) fn new(dice: Dice, knobs: Knobs, trace: Trace, checks: Checks) -> Self {
        let decided = Applier::new(HistoryBounds { changes_max: 1, bytes_max: 1 << 20 });
        // Nobody proposes to what is decided.
        let state = Store::ordered(decided.clone(), Nobody);
        let inner = Inner {
            entries: Vec::new(),
            decided,
            state,
            term: 0,
            leader: None,
            members: BTreeMap::new(),
            instances: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), dice, knobs, trace, checks }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a member, which reads the log from its beginning.
    pub(crate) fn open(&self, member: u64, history: HistoryBounds) -> Opened {
        let applier = Applier::new(history);
        let (believes, leads) = watch::channel(Leadership::default());
        let news = Arc::new(Notify::new());
        let mut inner = self.lock();
        inner.instances += 1;
        let instance = inner.instances;
        let new = Member { instance, applier: applier.clone(), applied: 0, believes, news: news.clone() };
        inner.members.insert(member, new);
        let end = inner.entries.len();
        self.catch_up(&mut inner, member, end);
        drop(inner);
        let seat = Seat { log: self.clone(), member, instance };
        tokio::spawn(seat.clone().follow(news));
        Opened { store: Store::ordered(applier, seat), leads }
    }

    /// Ends a member as a crash does: whoever it still owes an answer never gets one.
    pub(crate) fn kill(&self, member: u64) {
        let mut inner = self.lock();
        inner.members.remove(&member);
        if inner.leader == Some(member) {
            inner.leader = None;
        }
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        self.lock().leader
    }

    /// Everything there is.
    pub(crate) fn state(&self) -> Vec<(Key, Record)> {
        // The newest state can always be read.
        self.lock().state.range("/", &RangeOptions::default()).map(|page| page.items).unwrap_or_default()
    }

    /// The revision of what is decided.
    pub(crate) fn revision(&self) -> u64 {
        self.lock().state.revision().0
    }

    /// Begins a new term, with a leader or without. Whoever led before hears of it later.
    pub(crate) fn elect(&self, leader: Option<u64>) {
        let mut inner = self.lock();
        inner.term += 1;
        let term = Term(inner.term);
        let leader = leader.filter(|leader| inner.members.contains_key(leader));
        let before = std::mem::replace(&mut inner.leader, leader);
        note!(self.trace, "term {term} leader {leader:?}");
        if let Some(new) = leader {
            // A leader says so when its state has everything from before its term.
            let end = inner.entries.len();
            self.catch_up(&mut inner, new, end);
            believe(&inner, new, Leadership { leader: true, term });
        }
        drop(inner);
        if let Some(old) = before.filter(|old| Some(*old) != leader) {
            let (log, wait) = (self.clone(), self.dice.between(0, DEPOSED_MS_MAX));
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let inner = log.lock();
                if inner.leader != Some(old) {
                    believe(&inner, old, Leadership { leader: false, term: Term(inner.term) });
                }
            });
        }
    }

    /// Applies the log to a member, up to an entry.
    fn catch_up(&self, inner: &mut Inner, member: u64, end: usize) {
        let Inner { entries, members, .. } = inner;
        let Some(member) = members.get_mut(&member) else { return };
        for entry in entries.iter().take(end).skip(member.applied) {
            let result = member.applier.apply(entry.term, &entry.txn).map(|(committed, _)| committed);
            if result != entry.result {
                let detail = format!("a member decided {result:?}, the log {:?}", entry.result);
                self.trace.violate(Invariant::Revisions, detail);
            }
        }
        member.applied = member.applied.max(end);
    }

    fn append(&self, inner: &mut Inner, term: Term, txn: Arc<Txn>) -> usize {
        let result = inner.decided.apply(term, &txn);
        let index = inner.entries.len();
        match &result {
            Ok((committed, changes)) => self.checks.committed(index, *committed, changes),
            Err(rejection) => note!(self.trace, "log {index} {rejection}"),
        }
        let result = result.map(|(committed, _)| committed);
        inner.entries.push(Entry { term, txn, result });
        inner.members.values().for_each(|member| member.news.notify_one());
        index
    }

    async fn rest(&self, most_ms: u64) {
        let wait = self.dice.between(0, most_ms);
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }
}

fn believe(inner: &Inner, member: u64, leadership: Leadership) {
    if let Some(member) = inner.members.get(&member) {
        member.applier.lead(leadership);
        member.believes.send_replace(leadership);
    }
}

/// One start of a member, as its store proposes through it.
#[derive(Clone)]
struct Seat {
    log: Log,
    member: u64,
    instance: u64,
}

/// What a dead process is told: nothing, ever.
enum Fate {
    Dead,
    Refused(CommitError),
}

impl Seat {
    /// Applies what others proposed, later.
    async fn follow(self, news: Arc<Notify>) {
        loop {
            news.notified().await;
            self.log.rest(self.log.knobs.get().lag_ms).await;
            let mut inner = self.log.lock();
            if !self.lives(&inner) {
                return;
            }
            let end = inner.entries.len();
            self.log.catch_up(&mut inner, self.member, end);
        }
    }

    fn lives(&self, inner: &Inner) -> bool {
        inner.members.get(&self.member).is_some_and(|member| member.instance == self.instance)
    }

    /// The term that this member believes it leads in.
    fn believed(&self) -> Result<Term, Fate> {
        let inner = self.log.lock();
        if !self.lives(&inner) {
            return Err(Fate::Dead);
        }
        let believes = inner.members.get(&self.member).map(|member| *member.believes.borrow());
        match believes.filter(|believes| believes.leader) {
            Some(leadership) => Ok(leadership.term),
            None => Err(Fate::Refused(CommitError::NotLeader { leader: inner.leader })),
        }
    }

    /// The log, if this member really leads in a term.
    fn leading(&self, term: Term) -> Result<MutexGuard<'_, Inner>, Fate> {
        let inner = self.log.lock();
        if !self.lives(&inner) {
            Err(Fate::Dead)
        } else if inner.leader == Some(self.member) && inner.term == term.0 {
            Ok(inner)
        } else {
            Err(Fate::Refused(CommitError::Unknown))
        }
    }

    async fn try_propose(&self, txn: Txn) -> Result<Committed, Fate> {
        let (log, levels) = (&self.log, self.log.knobs.get());
        let term = self.believed()?;
        log.rest(levels.commit_ms).await;
        if log.dice.chance(levels.unavailable) {
            return Err(Fate::Refused(CommitError::Unavailable("so the dice say".to_owned())));
        }
        let txn = Arc::new(txn);
        let index = {
            let mut inner = self.leading(term)?;
            log.append(&mut inner, term, txn.clone())
        };
        if log.dice.chance(levels.duplicate) {
            let seat = self.clone();
            tokio::spawn(async move {
                seat.log.rest(levels.commit_ms).await;
                if let Ok(mut inner) = seat.leading(term) {
                    note!(seat.log.trace, "log: {index} once more");
                    seat.log.append(&mut inner, term, txn);
                }
            });
        }
        log.rest(levels.commit_ms).await;
        let mut inner = self.leading(term)?;
        log.catch_up(&mut inner, self.member, index + 1);
        if log.dice.chance(levels.unacknowledged) {
            note!(log.trace, "log {index} is not acknowledged");
            return Err(Fate::Refused(CommitError::Unknown));
        }
        inner.entries[index].result.map_err(|rejection| Fate::Refused(rejection.into()))
    }

    async fn try_barrier(&self) -> Result<(), Fate> {
        let term = self.believed()?;
        self.log.rest(self.log.knobs.get().commit_ms).await;
        let mut inner = self.leading(term).map_err(|fate| match fate {
            Fate::Refused(_) => Fate::Refused(CommitError::NotLeader { leader: None }),
            Fate::Dead => Fate::Dead,
        })?;
        let end = inner.entries.len();
        self.log.catch_up(&mut inner, self.member, end);
        Ok(())
    }
}

async fn told<T>(result: Result<T, Fate>) -> Result<T, CommitError> {
    match result {
        Ok(value) => Ok(value),
        Err(Fate::Refused(error)) => Err(error),
        Err(Fate::Dead) => std::future::pending().await,
    }
}

impl Order for Seat {
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        self.try_propose(txn).then(told).boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), CommitError>> {
        self.try_barrier().then(told).boxed()
    }
}

/// What is decided is only read.
struct Nobody;

impl Order for Nobody {
    fn propose(&self, _: Txn) -> BoxFuture<'_, Result<Committed, CommitError>> {
        std::future::ready(Err(CommitError::NotLeader { leader: None })).boxed()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<(), CommitError>> {
        std::future::ready(Ok(())).boxed()
    }
}
