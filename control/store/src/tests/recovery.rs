//! A disk that fails at any step: the store says so, goes on reading, and goes on writing when the disk does.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use redb::{Durability, ReadableTable as _};
use tokio::sync::oneshot;

use super::disk::{FAULTS, Fault, Machine, NO_SPACE};
use super::{noise, put, value};
use crate::disk::{Disk, read_meta, write_meta};
use crate::health::Reopen as _;
use crate::{CommitError, ErrorKind, Store};

/// How often a store is asked whether it has noticed.
const LOOK: Duration = Duration::from_millis(5);
/// How many runs go on at once; most of them wait most of the time.
const RUNS_AT_ONCE: usize = 32;

/// What a run knows to be true.
#[derive(Default)]
struct Known {
    /// What was acknowledged last.
    acknowledged: BTreeMap<String, String>,
    /// What may have happened.
    unknown: Vec<(String, String)>,
    /// What did not.
    refused: Vec<(String, String)>,
}

impl Known {
    async fn put(&mut self, store: &Store, name: &str, new: &str) {
        let pair = (name.to_owned(), new.to_owned());
        match store.commit(put(name, new)).await {
            Ok(_) => {
                self.acknowledged.insert(pair.0, pair.1);
            }
            Err(CommitError::Stalled(_)) => self.unknown.push(pair),
            Err(CommitError::Unavailable(_)) => self.refused.push(pair),
            Err(error) => panic!("{error:?}"),
        }
    }

    fn check(&self, store: &Store, context: &str) {
        for (name, acknowledged) in &self.acknowledged {
            let found = value(store, name).unwrap_or_else(|| panic!("{context}: {name} is missing"));
            let may_be = self.unknown.contains(&(name.clone(), found.clone()));
            assert!(found == *acknowledged || may_be, "{context}: {name} is {found}");
        }
        for (name, refused) in &self.refused {
            assert_ne!(value(store, name).as_ref(), Some(refused), "{context}: {name} was refused");
        }
    }
}

/// A few writes, with the state brought to rest and the log made shorter in between. When the store has noticed that
/// the disk fails, it is looked at, and then the disk is mended.
async fn run(machine: &Machine, store: &Store, dir: &str, known: &mut Known, context: &str) {
    let (mend, mended) = oneshot::channel::<()>();
    let watcher = {
        let (machine, store, dir, context) =
            (machine.clone(), store.clone(), dir.to_owned(), context.to_owned());
        tokio::spawn(async move {
            let mut refused = Vec::new();
            let mut mended = mended;
            while mended.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty) {
                tokio::time::sleep(LOOK).await;
                let Some(fault) = store.any_fault() else { continue };
                assert!(fault.contains(&dir), "{context}: {fault}");
                assert!(fault.contains("writing resumes by itself"), "{context}: {fault}");
                if store.fault().is_some() {
                    match store.commit(put("during", "1")).await {
                        Err(error @ CommitError::Unavailable(_)) => {
                            assert_eq!(error.kind(), ErrorKind::Retryable);
                            assert!(error.to_string().contains(&dir), "{context}: {error}");
                            refused.push(("during".to_owned(), "1".to_owned()));
                        }
                        // The disk may have been mended meanwhile, when it fails for a time only.
                        Err(CommitError::Stalled(_)) | Ok(_) => refused.clear(),
                        Err(error) => panic!("{context}: {error:?}"),
                    }
                    store.barrier().await.unwrap();
                    assert_eq!(value(&store, "before").as_deref(), Some("1"), "{context}");
                }
                machine.heal();
            }
            refused
        })
    };
    for round in 0..3 {
        for name in ["a", "b"] {
            known.put(store, name, &round.to_string()).await;
        }
        store.compact().await;
        known.put(store, "large", &noise(20_000 + round)).await;
    }
    mend.send(()).unwrap();
    known.refused.extend(watcher.await.unwrap());
}

async fn healthy(store: &Store) {
    while store.any_fault().is_some() {
        tokio::time::sleep(LOOK).await;
    }
}

/// One run with a disk that fails from an operation on, for so many of them. Tells how many operations a run has.
async fn fail_at(from: u64, count: u64, fault: Fault) -> u64 {
    let context = format!("{count} from {from} on, {fault:?}");
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::new();
    let store = machine.start(dir.path()).await.unwrap();
    let mut known = Known::default();
    known.put(&store, "before", "1").await;
    store.flush().await;
    let mut watch = store.watch("/", store.revision()).unwrap();
    let term = store.leadership().borrow().term;
    let before = machine.done();
    machine.fail(from, count, fault);
    run(&machine, &store, dir.path().to_str().unwrap(), &mut known, &context).await;
    let operations = machine.done() - before;
    machine.heal();
    healthy(&store).await;
    known.check(&store, &context);
    // It goes on, in the same term, and its watches with it.
    known.put(&store, "after", "1").await;
    assert_eq!(known.acknowledged.get("after").map(String::as_str), Some("1"), "{context}");
    assert_eq!(store.leadership().borrow().term, term, "{context}");
    while watch.try_next().unwrap().is_some() {}
    assert_eq!(watch.progress().unwrap(), store.revision(), "{context}");
    // What was acknowledged is on the disk by now, whatever the failed syncs were believed to have done.
    let machine = machine.after_power_cut(|| false);
    store.shutdown().await;
    let store = machine.start(dir.path()).await.unwrap_or_else(|error| panic!("{context}: {error}"));
    known.check(&store, &format!("{context}, after a power cut"));
    store.shutdown().await;
    operations
}

async fn fail_everywhere(count: u64) {
    let operations = fail_at(u64::MAX / 2, 1, Fault::Refused(NO_SPACE)).await;
    assert!(operations > 50, "{operations}");
    let runs = (0..operations).map(|from| {
        let fault = FAULTS[(from as usize) % FAULTS.len()];
        tokio::spawn(fail_at(from, count, fault))
    });
    let mut runs = stream::iter(runs).buffer_unordered(RUNS_AT_ONCE);
    while let Some(run) = runs.next().await {
        run.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_once_at_any_step_is_not_noticed() {
    fail_everywhere(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_for_a_while_from_any_step_on_is_survived() {
    fail_everywhere(7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_from_any_step_on_is_survived() {
    fail_everywhere(u64::MAX).await;
}

/// What can be read after a failed sync may not be on the disk, and no later sync puts it there.
#[tokio::test]
async fn what_a_failed_sync_left_behind_is_not_believed() {
    const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("table");
    let other = "other";
    for fault in [Fault::Forgotten, Fault::Reverted] {
        let machine = Machine::new();
        let open = |machine: &Machine| {
            Disk::open(&machine.volume(), "file", &|transaction| {
                transaction.open_table(TABLE)?;
                Ok(())
            })
        };
        let disk = open(&machine).unwrap();
        machine.fail(0, 1, fault);
        let failed = disk.write(Durability::Immediate, |transaction| {
            let mut table = transaction.open_table(TABLE)?;
            for index in 0..100 {
                table.insert(index, &*vec![1; 1000])?;
            }
            Ok(())
        });
        assert!(failed.unwrap_err().may_pass());
        disk.reopen(disk.generation()).unwrap();
        let count = |disk: &Disk| disk.read(|view| Ok(view.open_table(TABLE)?.iter()?.count())).unwrap();
        let found = count(&disk);
        assert_eq!(found, if matches!(fault, Fault::Forgotten) { 100 } else { 0 }, "{fault:?}");
        disk.write(Durability::Immediate, |transaction| write_meta(transaction, other, b"1")).unwrap();
        let disk = open(&machine.after_power_cut(|| false)).unwrap();
        assert_eq!(count(&disk), found, "{fault:?}");
        assert_eq!(disk.read(|view| read_meta(view, other)).unwrap().as_deref(), Some(&b"1"[..]));
    }
}
