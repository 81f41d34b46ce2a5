//! Whether what clients saw could have been seen of one register a key that does one thing at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::net::Cluster;
use super::{put, value};
use crate::{CommitError, ErrorKind, HistoryBounds, Store};

/// What a client did to a key.
#[derive(Clone, Debug)]
enum Did {
    Wrote(u64),
    Read(Option<u64>),
}

/// An operation as its client saw it, in a time that only counts.
#[derive(Clone, Debug)]
struct Operation {
    began: u64,
    /// `None` if its outcome is not known: it may have happened at any time since, or never.
    ended: Option<u64>,
    did: Did,
}

/// Looks for an order in which the operations could have happened one by one. (Wing and Gong, with states that were
/// visited before left out, as Lowe has it.)
fn linearizable(history: &[Operation]) -> bool {
    let mut visited = BTreeSet::new();
    let mut open: Vec<(BTreeSet<usize>, Option<u64>)> = vec![(BTreeSet::new(), None)];
    while let Some((done, register)) = open.pop() {
        let left = || history.iter().enumerate().filter(|(index, _)| !done.contains(index));
        // Whatever is next began before any other that is left had ended.
        let Some(first_end) = left().filter_map(|(_, operation)| operation.ended).min() else { return true };
        for (index, operation) in left().filter(|(_, operation)| operation.began < first_end) {
            let after = match operation.did {
                Did::Wrote(value) => Some(value),
                Did::Read(value) if value == register => register,
                Did::Read(_) => continue,
            };
            let mut done = done.clone();
            done.insert(index);
            if visited.insert((done.clone(), after)) {
                open.push((done, after));
            }
        }
    }
    false
}

#[test]
fn the_checker_knows_good_histories_from_bad_ones() {
    let wrote = |began, ended, value| Operation { began, ended, did: Did::Wrote(value) };
    let read = |began, ended, value| Operation { began, ended: Some(ended), did: Did::Read(value) };
    let check = |expected: bool, what: &str, history: &[Operation]| {
        assert_eq!(linearizable(history), expected, "{what}");
    };
    check(true, "nothing", &[]);
    check(true, "one after the other", &[wrote(0, Some(1), 1), read(2, 3, Some(1))]);
    check(true, "a read beside a write sees it", &[wrote(0, Some(3), 1), read(1, 2, Some(1))]);
    check(true, "a read beside a write does not", &[wrote(0, Some(3), 1), read(1, 2, None)]);
    check(true, "an unknown write never happened", &[wrote(0, None, 1), read(1, 2, None), read(3, 4, None)]);
    check(true, "it happened late", &[wrote(0, None, 1), read(1, 2, None), read(3, 4, Some(1))]);
    check(false, "it came and went", &[wrote(0, None, 1), read(1, 2, Some(1)), read(3, 4, None)]);
    check(false, "a stale read", &[wrote(0, Some(1), 1), wrote(2, Some(3), 2), read(4, 5, Some(1))]);
    check(false, "a lost write", &[wrote(0, Some(1), 1), read(2, 3, None)]);
    check(false, "a value from nowhere", &[wrote(0, Some(1), 1), read(2, 3, Some(9))]);
    let swapped = [wrote(0, Some(9), 1), wrote(0, Some(9), 2), read(1, 2, Some(1)), read(3, 4, Some(2))];
    check(true, "two writes at once", &swapped);
    check(false, "and back again", &[swapped.as_slice(), &[read(5, 6, Some(1))]].concat());
}

/// What clients did, by key.
#[derive(Clone, Default)]
struct Recorder {
    clock: Arc<AtomicU64>,
    histories: Arc<Mutex<BTreeMap<String, Vec<Operation>>>>,
}

/// A bug that is put into a client, which stands for the same one in the store.
#[derive(Clone, Copy, PartialEq)]
enum Planted {
    None,
    /// Reads do not ask whether the member is up to date.
    StaleReads,
}

impl Recorder {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn record(&self, key: &str, operation: Operation) {
        self.histories.lock().unwrap().entry(key.into()).or_default().push(operation);
    }

    async fn write(&self, store: &Store, key: &str) {
        let began = self.now();
        let did = Did::Wrote(began);
        match store.commit(put(key, &began.to_string())).await {
            Err(CommitError::Unknown | CommitError::Stalled(_)) => {
                self.record(key, Operation { began, ended: None, did });
            }
            Ok(_) => {
                self.record(key, Operation { began, ended: Some(self.now()), did });
            }
            // Nothing happened.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Retryable, "{error}"),
        }
    }

    async fn read(&self, store: &Store, key: &str, planted: Planted) {
        let began = self.now();
        if planted != Planted::StaleReads
            && let Err(error) = store.barrier().await
        {
            assert_eq!(error.kind(), ErrorKind::Retryable, "{error}");
            return;
        }
        let found = value(store, key).map(|value| value.parse().unwrap());
        self.record(key, Operation { began, ended: Some(self.now()), did: Did::Read(found) });
    }

    fn acknowledged(&self, key: &str) -> usize {
        let histories = self.histories.lock().unwrap();
        histories[key].iter().filter(|operation| operation.ended.is_some()).count()
    }

    fn good(&self) -> bool {
        self.histories.lock().unwrap().values().all(|history| linearizable(history))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_see_is_linearizable_whatever_the_network_does() {
    let cluster = Cluster::new(3, HistoryBounds::default()).await;
    let recorder = Recorder::default();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4usize)
        .map(|client| {
            let (recorder, stop) = (recorder.clone(), stop.clone());
            let store = cluster.nodes[client % 3].store.clone();
            tokio::spawn(async move {
                let mut round = client;
                while !stop.load(Ordering::Relaxed) {
                    // Few operations a key, so that every order can be tried.
                    let key = format!("k{}", round / 12 * 2 + round % 2);
                    match round % 3 {
                        0 => recorder.write(&store, &key).await,
                        _ => recorder.read(&store, &key, Planted::None).await,
                    }
                    round += 1;
                }
            })
        })
        .collect();
    let progress = async |count: u64| {
        let from = recorder.clock.load(Ordering::SeqCst);
        while recorder.clock.load(Ordering::SeqCst) < from + count {
            tokio::time::sleep(super::net::LOOK).await;
        }
    };
    for round in 0..3 {
        progress(100).await;
        let leader = cluster.leader().await.name.clone();
        let follower = cluster.followers().await[round % 2].name.clone();
        match round {
            0 => cluster.isolate(&leader),
            1 => cluster.mute(&leader),
            _ => cluster.isolate(&follower),
        }
        progress(60).await;
        cluster.heal();
    }
    progress(60).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    cluster.agree().await;
    let histories = recorder.histories.lock().unwrap().clone();
    for (key, history) in &histories {
        assert!(linearizable(history), "{key}: {history:#?}");
    }
    cluster.shutdown().await;
}

/// A leader that was deposed without knowing, with and without the bug that each check is there for.
async fn deposed(planted: Planted) -> bool {
    let cluster = Cluster::new(3, HistoryBounds::default()).await;
    let recorder = Recorder::default();
    let old = cluster.leader().await;
    let other = cluster.followers().await[0];
    recorder.write(&old.store, "k").await;
    cluster.isolate(&old.name);
    // Until one is acknowledged: those before it may ask the old leader and never hear.
    let before = recorder.acknowledged("k");
    while recorder.acknowledged("k") == before {
        recorder.write(&other.store, "k").await;
    }
    recorder.read(&old.store, "k", planted).await;
    cluster.heal();
    recorder.read(&other.store, "k", Planted::None).await;
    recorder.read(&old.store, "k", Planted::None).await;
    cluster.shutdown().await;
    recorder.good()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_catches_planted_bugs() {
    let (good, stale) = tokio::join!(deposed(Planted::None), deposed(Planted::StaleReads));
    assert!(good);
    assert!(!stale, "a read of a deposed leader's state");
}
