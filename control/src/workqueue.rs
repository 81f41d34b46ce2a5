//! The keys that wait to be reconciled: each once, one run at a time, later after a failure.
//!
//! A key that took steps is *held* until the view has seen them, so that no run reckons with less than what the run
//! before wrote. Times are passed in, as the time since some start; nothing here waits, and nothing polls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long a key waits after its first failure. Doubled with each further one in a row.
pub const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// The longest that a key waits after a failure.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Known only for its timer.
    Idle,
    /// In the queue.
    Ready,
    /// Taken; `again` if it was added since.
    Running { again: bool },
    /// Waits for the view to see a revision; `again` if it was added since it was taken.
    Held { revision: u64, again: bool },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    failures: u32,
    timer: Option<Duration>,
}

/// The keys that wait to be reconciled. As many as there are objects that concern a reconciler, at most.
#[derive(Clone, Debug)]
pub struct WorkQueue<K> {
    entries: BTreeMap<K, Entry>,
    ready: VecDeque<K>,
    timers: BTreeSet<(Duration, K)>,
    held: BTreeSet<(u64, K)>,
}

impl<K> Default for WorkQueue<K> {
    fn default() -> Self {
        WorkQueue {
            entries: BTreeMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            held: BTreeSet::new(),
        }
    }
}

impl<K: Ord + Clone> WorkQueue<K> {
    /// Adds a key. One that is in the queue is not added twice; one that runs, or is held, runs again afterwards.
    pub fn add(&mut self, key: K) {
        let entry = self.entry(&key);
        match &mut entry.state {
            State::Idle => {
                entry.state = State::Ready;
                self.ready.push_back(key);
            }
            State::Ready => {}
            State::Running { again } | State::Held { again, .. } => *again = true,
        }
    }

    /// Adds a key at a later time, or earlier if it already has an earlier one.
    pub fn add_at(&mut self, key: K, at: Duration) {
        let entry = self.entry(&key);
        let before = entry.timer;
        if before.is_none_or(|before| at < before) {
            entry.timer = Some(at);
            if let Some(before) = before {
                self.timers.remove(&(before, key.clone()));
            }
            self.timers.insert((at, key));
        }
    }

    /// Takes the next key. It runs until [`WorkQueue::finish`].
    pub fn take(&mut self, now: Duration) -> Option<K> {
        self.fire(now);
        let key = self.ready.pop_front()?;
        self.entry(&key).state = State::Running { again: false };
        Some(key)
    }

    /// A run is over. The next one waits until the view has seen `revision`; after a failure, for a back-off too.
    pub fn finish(&mut self, key: K, revision: u64, failed: bool, seen: u64, now: Duration) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let State::Running { again } = entry.state else { return };
        entry.state = State::Held { revision, again };
        entry.failures = if failed { entry.failures.saturating_add(1) } else { 0 };
        let failures = entry.failures;
        self.held.insert((revision, key.clone()));
        if failed {
            let backoff = BACKOFF_MIN.saturating_mul(1 << (failures - 1).min(20)).min(BACKOFF_MAX);
            self.add_at(key, now.saturating_add(backoff));
        }
        self.saw(seen);
    }

    /// The view has seen everything up to this revision.
    pub fn saw(&mut self, revision: u64) {
        while let Some((wanted, key)) = self.held.first().cloned() {
            if wanted > revision {
                break;
            }
            self.held.pop_first();
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let again = matches!(entry.state, State::Held { again: true, .. });
            entry.state = State::Idle;
            if again {
                self.add(key);
            } else {
                self.forget_idle(&key);
            }
        }
    }

    /// When there is something to take: zero if there is already, `None` if only an addition or a revision brings it.
    pub fn due(&self) -> Option<Duration> {
        if self.ready.is_empty() { self.timers.first().map(|(at, _)| *at) } else { Some(Duration::ZERO) }
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn fire(&mut self, now: Duration) {
        while let Some((at, key)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.entry(&key).timer = None;
            self.add(key);
        }
    }

    fn entry(&mut self, key: &K) -> &mut Entry {
        self.entries.entry(key.clone()).or_insert(Entry { state: State::Idle, failures: 0, timer: None })
    }

    fn forget_idle(&mut self, key: &K) {
        if self.entries.get(key).is_some_and(|entry| entry.state == State::Idle && entry.timer.is_none()) {
            self.entries.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Duration = Duration::ZERO;

    fn drain(queue: &mut WorkQueue<&'static str>, now: Duration) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.take(now)).collect()
    }

    #[test]
    fn a_key_waits_once_and_runs_once_at_a_time() {
        let mut queue = WorkQueue::default();
        for key in ["a", "b", "a"] {
            queue.add(key);
        }
        assert_eq!(drain(&mut queue, ZERO), ["a", "b"]);
        queue.add("a");
        assert_eq!(queue.take(ZERO), None);
        queue.finish("a", 0, false, 0, ZERO);
        queue.finish("b", 0, false, 0, ZERO);
        assert_eq!(drain(&mut queue, ZERO), ["a"]);
        queue.finish("a", 0, false, 0, ZERO);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_key_is_held_until_its_writes_are_seen() {
        let mut queue = WorkQueue::default();
        queue.add("a");
        queue.take(ZERO);
        queue.finish("a", 7, false, 6, ZERO);
        queue.add("a");
        assert_eq!((queue.take(ZERO), queue.due()), (None, None));
        queue.saw(6);
        assert_eq!(queue.take(ZERO), None);
        queue.saw(7);
        assert_eq!(queue.take(ZERO), Some("a"));
        queue.finish("a", 7, false, 7, ZERO);
        assert!(queue.is_empty());
    }

    #[test]
    fn failures_back_off_doubling_up_to_a_bound() {
        let mut queue = WorkQueue::default();
        queue.add("a");
        let mut now = ZERO;
        let mut waits = Vec::new();
        for _ in 0..16 {
            assert_eq!(queue.take(now), Some("a"));
            queue.finish("a", 0, true, 0, now);
            let due = queue.due().unwrap();
            waits.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(&waits[..4], [5, 10, 20, 40]);
        assert_eq!(waits.last(), Some(&60_000));
        assert_eq!(queue.take(now), Some("a"));
        queue.finish("a", 0, false, 0, now);
        queue.add("a");
        queue.take(now);
        queue.finish("a", 0, true, 0, now);
        assert_eq!(queue.due(), Some(now + BACKOFF_MIN), "a success starts over");
    }

    #[test]
    fn a_failure_is_not_tried_again_before_its_writes_are_seen() {
        let mut queue = WorkQueue::default();
        queue.add("a");
        queue.take(ZERO);
        queue.finish("a", 7, true, 6, ZERO);
        assert_eq!(queue.take(BACKOFF_MAX), None);
        queue.saw(7);
        assert_eq!(queue.take(BACKOFF_MAX), Some("a"));
    }

    #[test]
    fn the_earliest_timer_counts_and_fires_once() {
        let mut queue = WorkQueue::default();
        let second = Duration::from_secs;
        queue.add_at("a", second(9));
        queue.add_at("a", second(3));
        queue.add_at("a", second(5));
        assert_eq!(queue.due(), Some(second(3)));
        assert_eq!(queue.take(second(2)), None);
        assert_eq!(drain(&mut queue, second(3)), ["a"]);
        queue.finish("a", 0, false, 0, second(3));
        assert!(queue.is_empty());
    }
}
