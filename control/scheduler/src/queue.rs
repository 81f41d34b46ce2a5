//! The pods that wait for a node.
//!
//! A pod is *ready* to be tried, *backing off* after its binding failed, or *parked* until a change could help it: it
//! is then ready at once, since a change that helps nobody wakes nobody. What is tried is taken out of the queue: whoever took it puts it back, or it is placed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lichen_api::view::ObjectKey;

use crate::PodInfo;

/// How long a pod backs off after its first failed binding. Doubled with each further one.
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest that a pod backs off.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    BackingOff(Timestamp),
    Parked,
    Taken,
}

#[derive(Clone, Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    state: State,
    failures: u32,
    order: (Reverse<i32>, u64),
}

/// The pods that wait for a node. Bounded by the pods of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    entries: BTreeMap<ObjectKey, Entry>,
    ready: BTreeSet<((Reverse<i32>, u64), ObjectKey)>,
    backing_off: BTreeSet<(Timestamp, ObjectKey)>,
    parked: BTreeSet<ObjectKey>,
    sequence: u64,
}

impl Queue {
    /// Puts a pod in, or takes note of its new version. A parked pod becomes ready if `changed` says that what
    /// decides about it has changed.
    pub fn put(&mut self, pod: Arc<PodInfo>, changed: bool) {
        let key = pod.key.clone();
        let known = self.entries.get_mut(&key).filter(|entry| entry.pod.uid() == pod.uid());
        if let Some(entry) = known {
            entry.pod = pod;
            if changed && entry.state == State::Parked {
                self.set(&key, State::Ready);
            }
            return;
        }
        self.remove(&key);
        self.sequence += 1;
        let priority = pod.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let order = (Reverse(priority), self.sequence);
        let entry = Entry { pod, state: State::Taken, failures: 0, order };
        self.entries.insert(key.clone(), entry);
        self.set(&key, State::Ready);
    }

    /// Takes a pod out for good.
    pub fn remove(&mut self, key: &ObjectKey) {
        if self.entries.contains_key(key) {
            self.set(key, State::Taken);
            self.entries.remove(key);
        }
    }

    /// Takes the pods that are due, at most `limit`: by priority, then in the order in which they came.
    pub fn take(&mut self, now: Timestamp, limit: usize) -> Vec<Arc<PodInfo>> {
        while let Some((until, key)) = self.backing_off.first().cloned() {
            if until > now {
                break;
            }
            self.set(&key, State::Ready);
        }
        let due: Vec<ObjectKey> = self.ready.iter().take(limit).map(|(_, key)| key.clone()).collect();
        due.into_iter()
            .filter_map(|key| {
                self.set(&key, State::Taken);
                self.entries.get(&key).map(|entry| entry.pod.clone())
            })
            .collect()
    }

    /// A pod that was taken fits nowhere: it is parked until a change could help it.
    pub fn park(&mut self, key: &ObjectKey) {
        self.set(key, State::Parked);
    }

    /// A pod that was taken could not be bound: it is tried again after a back-off.
    pub fn retry(&mut self, key: &ObjectKey, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(key) {
            let wait = BACKOFF_MIN.saturating_mul(1 << entry.failures.min(10)).min(BACKOFF_MAX);
            entry.failures = entry.failures.saturating_add(1);
            self.set(key, State::BackingOff(now.checked_add(wait).unwrap_or(now)));
        }
    }

    /// A pod that was taken was not tried: it is ready again, and has lost nothing.
    pub fn put_back(&mut self, key: &ObjectKey) {
        self.set(key, State::Ready);
    }

    /// Makes parked pods ready that `helped` says could now be placed.
    pub fn unpark(&mut self, helped: impl Fn(&PodInfo) -> bool) {
        let woken: Vec<ObjectKey> = self
            .parked
            .iter()
            .filter(|key| self.entries.get(*key).is_some_and(|entry| helped(&entry.pod)))
            .cloned()
            .collect();
        for key in woken {
            self.set(&key, State::Ready);
        }
    }

    /// Whether a pod waits for a change.
    pub fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// When [`Queue::take`] has something: `Some(now)` or earlier if it has already.
    pub fn due(&self) -> Option<Timestamp> {
        if self.ready.is_empty() {
            self.backing_off.first().map(|(until, _)| *until)
        } else {
            Some(Timestamp::MIN)
        }
    }

    /// How many pods wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The only place where a pod goes from one set into another.
    fn set(&mut self, key: &ObjectKey, state: State) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        match entry.state {
            State::Ready => drop(self.ready.remove(&(entry.order, key.clone()))),
            State::BackingOff(until) => drop(self.backing_off.remove(&(until, key.clone()))),
            State::Parked => drop(self.parked.remove(key)),
            State::Taken => {}
        }
        match state {
            State::Ready => drop(self.ready.insert((entry.order, key.clone()))),
            State::BackingOff(until) => drop(self.backing_off.insert((until, key.clone()))),
            State::Parked => drop(self.parked.insert(key.clone())),
            State::Taken => {}
        }
        entry.state = state;
    }
}
