//! A client: it writes, swaps, deletes, reads and lists, through whichever member is up.

use std::collections::BTreeMap;
use std::time::Duration;

use lichen_firmware_tests::history::{Did, Expect, Outcome, Recorder, Revision, Step};
use lichen_store::simulation::Process;
use lichen_store::{CommitError, Committed, Draft, Key, Precondition, RangeOptions, Record, Store, Txn};
use tokio::sync::watch;

use super::Fenced;
use super::cluster::Cluster;
use crate::dice::Dice;
use crate::trace::{Trace, note};

/// The longest that a client does nothing.
const REST_MS: u64 = 300;

pub(super) struct Client {
    pub(super) number: u64,
    pub(super) dice: Dice,
    pub(super) trace: Trace,
    pub(super) recorder: Recorder,
    pub(super) cluster: Cluster,
    pub(super) keys: u64,
    pub(super) fenced: Fenced,
}

/// What a key holds.
pub(super) fn draft(value: &str) -> Draft {
    Draft::opaque(value.as_bytes())
}

pub(super) fn value(record: &Record) -> String {
    String::from_utf8_lossy(record.body()).into_owned()
}

pub(super) fn step(key: &str, pre: &Precondition, value: Option<&str>) -> Step {
    let expect = match pre {
        Precondition::Any => Expect::Anything,
        Precondition::Absent => Expect::Absent,
        Precondition::Present => Expect::Present,
        Precondition::Revision(revision) => Expect::Revision(revision.0),
    };
    Step { key: key.to_owned(), expect, value: value.map(str::to_owned) }
}

pub(super) fn wrote(steps: Vec<Step>, outcome: Outcome) -> Did {
    Did::Wrote { steps, outcome }
}

/// What is known of a write; nothing if nobody answered.
pub(super) fn outcome(answer: Option<&Result<Committed, CommitError>>) -> Outcome {
    match answer {
        Some(Ok(committed)) => Outcome::Done(committed.revision.0),
        Some(Err(CommitError::Conflict { .. })) => Outcome::Conflict,
        Some(Err(
            CommitError::Fenced { .. }
            | CommitError::Repeated { .. }
            | CommitError::TooLarge { .. }
            | CommitError::Membership(_)
            | CommitError::NotLeader { .. }
            | CommitError::Unavailable(_),
        )) => Outcome::Refused,
        Some(Err(CommitError::Unknown | CommitError::Stalled(_) | CommitError::Closed(_))) | None => {
            Outcome::Unknown
        }
    }
}

impl Client {
    pub(super) async fn work(self, mut stopped: watch::Receiver<bool>) {
        let mut known = BTreeMap::new();
        let mut member = None;
        let mut count = 0;
        while !*stopped.borrow_and_update() {
            tokio::time::sleep(Duration::from_millis(self.dice.between(0, REST_MS))).await;
            if member.is_none() || self.dice.chance(200) {
                member = self.cluster.pick(&self.dice);
            }
            let Some((name, process, store)) = &member else { continue };
            count += 1;
            let what = self.act(count, process, store, &mut known).await;
            note!(self.trace, "client {} at {name}: {what}", self.number);
            if !process.is_alive() {
                member = None;
            }
        }
    }

    fn key(&self) -> String {
        let number = self.dice.between(0, self.keys - 1);
        format!("/{}/{number}", if number.is_multiple_of(2) { "a" } else { "b" })
    }

    async fn act(
        &self,
        count: u64,
        process: &Process,
        store: &Store,
        known: &mut BTreeMap<String, Revision>,
    ) -> String {
        let (key, other) = (self.key(), self.key());
        let value = format!("{}-{count}", self.number);
        let revision = known.get(&key).copied();
        let exactly =
            revision.map_or(Precondition::Absent, |at| Precondition::Revision(lichen_store::Revision(at)));
        let put = |txn: Txn, key: &str, pre, value: &str| txn.put(Key::from(key), pre, draft(value));
        let any = Precondition::Any;
        let (txn, steps) = match self.dice.between(0, 99) {
            0..=29 => (put(Txn::new(), &key, any, &value), vec![step(&key, &any, Some(&value))]),
            30..=44 => (put(Txn::new(), &key, exactly, &value), vec![step(&key, &exactly, Some(&value))]),
            45..=52 => (Txn::new().delete(Key::from(key.as_str()), any), vec![step(&key, &any, None)]),
            53..=56 => {
                (Txn::new().delete(Key::from(key.as_str()), exactly), vec![step(&key, &exactly, None)])
            }
            57..=64 if key != other => {
                let second = format!("{value}-too");
                let txn = put(put(Txn::new(), &key, any, &value), &other, any, &second);
                (txn, vec![step(&key, &any, Some(&value)), step(&other, &any, Some(&second))])
            }
            65..=69 if key != other => {
                let present = Precondition::Present;
                let txn = put(Txn::new().delete(Key::from(other.as_str()), present), &key, any, &value);
                (txn, vec![step(&other, &present, None), step(&key, &any, Some(&value))])
            }
            57..=84 => return self.read(key, process, store, known).await,
            85..=94 => return self.list(process, store).await,
            _ => {
                let leadership = *store.leadership().borrow();
                let txn = put(Txn::new(), &key, any, &value).fenced(Some(leadership.term));
                let steps = vec![step(&key, &any, Some(&value))];
                let done = self.write(txn, steps, process, store).await;
                if let Outcome::Done(revision) = done {
                    self.fenced.wrote(revision, leadership.term.0);
                }
                return format!("{key} = {value}, fenced by {}: {done:?}", leadership.term);
            }
        };
        let told = format!("{steps:?}");
        let done = self.write(txn, steps, process, store).await;
        if let Outcome::Done(revision) = done {
            known.insert(key, revision);
        }
        format!("{told}: {done:?}")
    }

    async fn write(&self, txn: Txn, steps: Vec<Step>, process: &Process, store: &Store) -> Outcome {
        let began = self.recorder.now();
        let answer = self.cluster.call(process, async { store.commit(txn).await }).await;
        let outcome = outcome(answer.as_ref());
        self.recorder.operation(began, wrote(steps, outcome));
        outcome
    }

    async fn read(
        &self,
        key: String,
        process: &Process,
        store: &Store,
        known: &mut BTreeMap<String, Revision>,
    ) -> String {
        let began = self.recorder.now();
        let read = async {
            store.barrier().await?;
            let record = store.get(&Key::from(key.as_str()));
            Ok::<_, CommitError>(record.map(|record| (record.revision().0, value(&record))))
        };
        let found = match self.cluster.call(process, read).await {
            Some(Ok(found)) => found,
            Some(Err(error)) => return format!("{key} can't be read: {error}"),
            None => return format!("{key} can't be read"),
        };
        match &found {
            Some((revision, _)) => known.insert(key.clone(), *revision),
            None => known.remove(&key),
        };
        let told = format!("{key} is {found:?}");
        self.recorder.operation(began, Did::Read { key, found });
        told
    }

    async fn list(&self, process: &Process, store: &Store) -> String {
        let prefix = *self.dice.pick(&["/", "/a/", "/b/"]).unwrap_or(&"/");
        let began = self.recorder.now();
        let list = async {
            store.barrier().await?;
            Ok::<_, CommitError>(store.range(prefix, &RangeOptions::default()))
        };
        let page = match self.cluster.call(process, list).await {
            Some(Ok(Ok(page))) => page,
            Some(Ok(Err(error))) => return format!("{prefix} can't be listed: {error}"),
            Some(Err(error)) => return format!("{prefix} can't be listed: {error}"),
            None => return format!("{prefix} can't be listed"),
        };
        let told = format!("{prefix} has {} keys at revision {}", page.items.len(), page.revision);
        self.recorder.operation(began, listed(prefix, &page));
        told
    }
}

/// A list as it is recorded.
pub(super) fn listed(prefix: &str, page: &lichen_store::Page) -> Did {
    let item = |(key, record): &(Key, Record)| (key.to_string(), (record.revision().0, value(record)));
    Did::Listed {
        prefix: prefix.to_owned(),
        revision: page.revision.0,
        found: page.items.iter().map(item).collect(),
    }
}
