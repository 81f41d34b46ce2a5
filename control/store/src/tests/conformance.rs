//! What every store owes, run over each kind of it.

use std::collections::BTreeMap;

use super::{draft, key, put, small_history, value, write};
use crate::{
    ChangeKind, CommitError, Config, ErrorKind, Event, Key, Precondition, RangeError, RangeOptions, Revision,
    Store, TXN_OPS_MAX, Term, Txn, WatchError,
};

macro_rules! suite {
    ($($test:ident)*) => {
        mod memory {
            $(#[tokio::test] async fn $test() { super::$test(crate::Store::memory(super::small_history())).await; })*
        }
        mod raft {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                let dir = tempfile::tempdir().unwrap();
                let config = super::Config { history: super::small_history(), ..super::Config::new(dir.path()) };
                let store = crate::Store::open(config).await.unwrap();
                super::$test(store.clone()).await;
                store.shutdown().await;
            })*
        }
        mod cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() {
                let cluster = crate::tests::net::Cluster::new(3, super::small_history()).await;
                super::$test(cluster.leader().await.store.clone()).await;
                cluster.shutdown().await;
            })*
        }
    };
}

suite! {
    reads_what_was_written
    preconditions_hold_for_the_whole_transaction
    a_fence_of_another_term_is_refused
    nothing_changed_is_no_revision
    bounds_are_enforced
    ranges_are_pages
    ranges_go_back_in_time
    a_watch_is_complete_and_ordered
    a_watch_tells_old_and_new
    a_watch_resumes_from_any_revision_in_the_window
    a_slow_watch_is_cut_off
    thousands_of_watches_share_one_history
    a_watch_of_a_quiet_prefix_survives_noise
    progress_follows_the_store
    shutdown_ends_everything
    concurrent_writers_lose_no_update
    random_transactions_match_a_model
}

async fn reads_what_was_written(store: Store) {
    assert_eq!(store.get(&key("a")), None);
    let first = write(&store, "a", "1").await;
    let record = store.get(&key("a")).unwrap();
    assert_eq!((record.revision(), record.created()), (first, first));
    assert_eq!(record.value().unwrap()["metadata"]["resourceVersion"], first.to_string());
    let second = write(&store, "a", "2").await;
    assert_eq!(second, first.next());
    assert_eq!(store.revision(), second);
    let record = store.get(&key("a")).unwrap();
    assert_eq!((record.revision(), record.created()), (second, first));
    assert_eq!(value(&store, "a").as_deref(), Some("2"));
    store.barrier().await.unwrap();
    store.commit(Txn::new().delete(key("a"), Precondition::Present)).await.unwrap();
    assert_eq!(store.get(&key("a")), None);
    let third = write(&store, "a", "3").await;
    assert_eq!(store.get(&key("a")).unwrap().created(), third);
}

async fn preconditions_hold_for_the_whole_transaction(store: Store) {
    let a = write(&store, "a", "1").await;
    let check = async |pre: Precondition, name: &str, actual: Option<Revision>| {
        let before = store.revision();
        let txn = put("other", "x").put(key(name), pre, draft(name, "y"));
        let error = store.commit(txn).await.unwrap_err();
        assert_eq!(error, CommitError::Conflict { index: 1, actual });
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert_eq!((store.revision(), store.get(&key("other"))), (before, None));
    };
    check(Precondition::Absent, "a", Some(a)).await;
    check(Precondition::Present, "b", None).await;
    check(Precondition::Revision(a.next()), "a", Some(a)).await;
    check(Precondition::Revision(a), "b", None).await;
    let txn = Txn::new()
        .check(key("a"), Precondition::Revision(a))
        .put(key("b"), Precondition::Absent, draft("b", "1"))
        .put(key("c"), Precondition::Absent, draft("c", "1"));
    let revision = store.commit(txn).await.unwrap().revision;
    let revisions = ["a", "b", "c"].map(|name| store.get(&key(name)).unwrap().revision());
    assert_eq!(revisions, [a, revision, revision]);
}

async fn a_fence_of_another_term_is_refused(store: Store) {
    let leadership = *store.leadership().borrow();
    assert!(leadership.leader);
    store.commit(put("a", "1").fenced(Some(leadership.term))).await.unwrap();
    let error = store.commit(put("a", "2").fenced(Some(Term(leadership.term.0 + 1)))).await.unwrap_err();
    assert_eq!(error, CommitError::Fenced { term: leadership.term });
    assert_eq!(value(&store, "a").as_deref(), Some("1"));
}

async fn nothing_changed_is_no_revision(store: Store) {
    let revision = write(&store, "a", "1").await;
    let txn = Txn::new().check(key("a"), Precondition::Present).delete(key("b"), Precondition::Any);
    assert_eq!(store.commit(txn).await.unwrap().revision, revision);
    assert_eq!(store.commit(Txn::new()).await.unwrap().revision, revision);
    assert_eq!(store.revision(), revision);
}

async fn bounds_are_enforced(store: Store) {
    let mut txn = Txn::new();
    for index in 0..=TXN_OPS_MAX {
        txn = txn.check(key(&index.to_string()), Precondition::Any);
    }
    assert!(
        matches!(store.commit(txn).await, Err(CommitError::TooLarge { ops, .. }) if ops == TXN_OPS_MAX + 1)
    );
    let large = "x".repeat(crate::TXN_BYTES_MAX);
    assert!(matches!(store.commit(put("a", &large)).await, Err(CommitError::TooLarge { .. })));
    let twice = put("a", "1").delete(key("a"), Precondition::Any);
    assert_eq!(store.commit(twice).await, Err(CommitError::Repeated { index: 1 }));
    assert_eq!(store.revision(), Revision::FIRST);
}

fn names(items: &[(Key, crate::Record)]) -> Vec<&str> {
    items.iter().map(|(key, _)| key.name()).collect()
}

async fn ranges_are_pages(store: Store) {
    for name in ["d", "a", "c", "b"] {
        write(&store, name, "1").await;
    }
    let other = Txn::new().put("/core/configmapsx/z".into(), Precondition::Any, draft("z", "1"));
    store.commit(other).await.unwrap();
    let prefix = "/core/configmaps/";
    let page = store.range(prefix, &RangeOptions::default()).unwrap();
    assert_eq!((names(&page.items), page.more), (vec!["a", "b", "c", "d"], false));
    assert_eq!(page.revision, store.revision());
    let page = store.range(prefix, &RangeOptions { limit: Some(3), ..RangeOptions::default() }).unwrap();
    assert_eq!((names(&page.items), page.more), (vec!["a", "b", "c"], true));
    let after = Some(page.items[2].0.clone());
    let page = store.range(prefix, &RangeOptions { limit: Some(1), after, at: Some(page.revision) }).unwrap();
    assert_eq!((names(&page.items), page.more), (vec!["d"], false));
    let none = store.range("/none/", &RangeOptions::default()).unwrap();
    assert_eq!((none.items.len(), none.more), (0, false));
}

async fn ranges_go_back_in_time(store: Store) {
    write(&store, "a", "1").await;
    write(&store, "b", "1").await;
    let then = write(&store, "d", "1").await;
    let before = store.range("/", &RangeOptions::default()).unwrap();
    write(&store, "a", "2").await;
    write(&store, "a", "3").await;
    write(&store, "c", "1").await;
    store.commit(Txn::new().delete(key("b"), Precondition::Any)).await.unwrap();
    let past = store.range("/", &RangeOptions { at: Some(then), ..RangeOptions::default() }).unwrap();
    assert_eq!(past, before);
    let limited = RangeOptions { at: Some(then), limit: Some(1), after: Some(key("a")) };
    let limited = store.range("/", &limited).unwrap();
    assert_eq!((names(&limited.items), limited.more), (vec!["b"], true));
    let newest = store.revision();
    let future = RangeOptions { at: Some(newest.next()), ..RangeOptions::default() };
    assert_eq!(store.range("/", &future), Err(RangeError::Future { wanted: newest.next(), newest }));
    for _ in 0..8 {
        write(&store, "e", "1").await;
    }
    let past = RangeOptions { at: Some(then), ..RangeOptions::default() };
    assert!(matches!(store.range("/", &past), Err(RangeError::Compacted { wanted, .. }) if wanted == then));
}

async fn a_watch_is_complete_and_ordered(store: Store) {
    let mut watch = store.watch("/core/configmaps/", store.revision()).unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for index in 0..6 {
                write(&store, "a", &index.to_string()).await;
            }
        }
    });
    let mut last = Revision::FIRST;
    for _ in 0..6 {
        let Event::Change(change) = watch.next().await.unwrap() else { panic!("no progress is due") };
        assert_eq!((change.revision, change.kind()), (last.next(), ChangeKind::Put));
        last = change.revision;
    }
    writer.await.unwrap();
    assert_eq!(watch.try_next(), Ok(None));
}

async fn a_watch_tells_old_and_new(store: Store) {
    let from = write(&store, "a", "1").await;
    write(&store, "a", "2").await;
    let deleted = store.commit(Txn::new().delete(key("a"), Precondition::Any)).await.unwrap().revision;
    let mut watch = store.watch("/core/configmaps/default/a", from).unwrap();
    let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
    assert_eq!(change.old.as_ref().unwrap().labels().get("app"), Some("1"));
    assert_eq!(change.new.as_ref().unwrap().labels().get("app"), Some("2"));
    let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
    assert_eq!(change.kind(), ChangeKind::Delete);
    let told = change.told().unwrap().value().unwrap();
    assert_eq!(told["metadata"]["resourceVersion"], deleted.to_string());
    assert_eq!(told["data"]["value"], "2");
}

async fn a_watch_resumes_from_any_revision_in_the_window(store: Store) {
    let start = store.revision();
    let mut revisions = vec![start];
    for index in 0..12 {
        revisions.push(write(&store, "a", &index.to_string()).await);
    }
    let compacted = store.watch("/", start).unwrap_err();
    assert_eq!((compacted.wanted, compacted.oldest), (start, revisions[4]));
    for (index, from) in revisions.iter().enumerate().skip(4) {
        let mut watch = store.watch("/", *from).unwrap();
        for expected in &revisions[index + 1..] {
            let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
            assert_eq!(change.revision, *expected);
        }
        assert_eq!(watch.try_next(), Ok(None));
    }
}

async fn a_slow_watch_is_cut_off(store: Store) {
    let mut watch = store.watch("/core/configmaps/", store.revision()).unwrap();
    for _ in 0..9 {
        write(&store, "a", "1").await;
    }
    assert_eq!(watch.next().await, Err(WatchError::Lagged));
}

/// Every watch tells the very change that is in the history, and those that do not read hold on to none.
async fn thousands_of_watches_share_one_history(store: Store) {
    let from = store.revision();
    let mut watches: Vec<_> = (0..4_000).map(|_| store.watch("/core/configmaps/", from).unwrap()).collect();
    let revision = write(&store, "a", "1").await;
    let (reading, slow) = watches.split_at_mut(2_000);
    let mut first = None;
    for watch in reading {
        let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
        assert_eq!(change.revision, revision);
        let first = first.get_or_insert_with(|| change.clone());
        assert!(std::sync::Arc::ptr_eq(first, &change));
    }
    let weak = std::sync::Arc::downgrade(&first.unwrap());
    let resumed = store.revision();
    for _ in 0..9 {
        write(&store, "a", "2").await;
    }
    for watch in slow {
        assert_eq!(watch.next().await, Err(WatchError::Lagged));
    }
    assert_eq!(store.watch("/", resumed).unwrap_err().wanted, resumed, "beyond the window: list again");
    // What nobody has read yet is kept by nobody, once the state has come to rest.
    while weak.upgrade().is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn a_watch_of_a_quiet_prefix_survives_noise(store: Store) {
    let mut watch = store.watch("/core/configmaps/default/quiet", store.revision()).unwrap();
    for _ in 0..20 {
        write(&store, "noise", "1").await;
    }
    let revision = write(&store, "quiet", "1").await;
    let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
    assert_eq!(change.revision, revision);
}

async fn progress_follows_the_store(store: Store) {
    let mut watch = store.watch("/core/secrets/", store.revision()).unwrap();
    assert_eq!(watch.progress(), Ok(store.revision()));
    write(&store, "a", "1").await;
    assert_eq!(watch.progress(), Ok(store.revision()));
    let mut noisy = store.watch("/core/configmaps/", store.revision()).unwrap();
    let from = store.revision();
    write(&store, "a", "2").await;
    let last = write(&store, "a", "3").await;
    assert_eq!(noisy.progress(), Ok(from));
    noisy.next().await.unwrap();
    assert_eq!(noisy.progress(), Ok(from.next()));
    noisy.next().await.unwrap();
    assert_eq!(noisy.progress(), Ok(last));
    for _ in 0..1024 {
        store.commit(put("a", "1")).await.unwrap();
    }
    let Event::Progress(revision) = watch.next().await.unwrap() else { panic!("a change out of nowhere") };
    assert!(revision > last);
}

async fn shutdown_ends_everything(store: Store) {
    let mut watch = store.watch("/", store.revision()).unwrap();
    let revision = write(&store, "a", "1").await;
    store.shutdown().await;
    let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
    assert_eq!(change.revision, revision);
    assert_eq!(watch.next().await, Err(WatchError::Closed));
    assert_eq!(store.watch("/", revision).unwrap().next().await, Err(WatchError::Closed));
    let error = store.commit(put("a", "2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(!store.leadership().borrow().leader);
}

async fn concurrent_writers_lose_no_update(store: Store) {
    write(&store, "counter", "0").await;
    let increment = |store: Store| async move {
        for _ in 0..10 {
            loop {
                let record = store.get(&key("counter")).unwrap();
                let next = value(&store, "counter").unwrap().parse::<u32>().unwrap() + 1;
                let pre = Precondition::Revision(record.revision());
                let txn = Txn::new().put(key("counter"), pre, draft("counter", &next.to_string()));
                match store.commit(txn).await {
                    Ok(_) => break,
                    Err(CommitError::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let writers: Vec<_> = (0..8).map(|_| tokio::spawn(increment(store.clone()))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(value(&store, "counter").as_deref(), Some("80"));
}

/// A fixed sequence, so that a failure repeats: a plain map must agree at every step.
async fn random_transactions_match_a_model(store: Store) {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut model: BTreeMap<String, (Revision, String)> = BTreeMap::new();
    let mut watched = BTreeMap::new();
    let mut watch = store.watch("/", store.revision()).unwrap();
    for step in 0..200 {
        let mut txn = Txn::new();
        let mut next = model.clone();
        let mut holds = true;
        let mut changed = false;
        for name in ["a", "b", "c", "d"] {
            let current = model.get(name).map(|(revision, _)| *revision);
            let (pre, met) = match random(8) {
                0 => (Precondition::Absent, current.is_none()),
                1 => (Precondition::Present, current.is_some()),
                2 => (Precondition::Revision(Revision(step)), current == Some(Revision(step))),
                _ => (Precondition::Any, true),
            };
            match random(4) {
                0 => {
                    txn = txn.delete(key(name), pre);
                    changed |= next.remove(name).is_some();
                }
                1 => txn = txn.check(key(name), pre),
                2 => {
                    let value = step.to_string();
                    txn = txn.put(key(name), pre, draft(name, &value));
                    next.insert(name.to_owned(), (store.revision().next(), value));
                    changed = true;
                }
                _ => continue,
            }
            holds &= met;
        }
        let before = store.revision();
        let result = store.commit(txn).await;
        assert_eq!(result.is_ok(), holds, "step {step}");
        if holds {
            model = next;
        }
        let expected = if holds && changed { before.next() } else { before };
        assert_eq!(store.revision(), expected, "step {step}");
        let page = store.range("/", &RangeOptions::default()).unwrap();
        let state: BTreeMap<_, _> = page
            .items
            .iter()
            .map(|(key, record)| {
                (key.name().to_owned(), (record.revision(), value(&store, key.name()).unwrap()))
            })
            .collect();
        assert_eq!(state, model, "step {step}");
        while let Some(Event::Change(change)) = watch.try_next().unwrap() {
            match &change.new {
                Some(record) => watched.insert(change.key.clone(), record.clone()),
                None => watched.remove(&change.key),
            };
        }
        assert_eq!(watched.into_iter().collect::<Vec<_>>(), page.items, "step {step}");
        watched = page.items.into_iter().collect();
    }
}
