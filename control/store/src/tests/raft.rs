//! Raft's own suite over our log and state machine, and what a follower will need.

use std::sync::Arc;

use futures_util::stream;
use openraft::storage::{RaftLogStorage as _, RaftStateMachine as _};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt as _;
use openraft::{RaftLogReader as _, RaftSnapshotBuilder as _, StorageError};
use tempfile::TempDir;

use super::{draft, key, put};
use crate::file::StateFile;
use crate::flush::Flusher;
use crate::health::Health;
use crate::hub::{Event, Hub, WatchError};
use crate::log::LogStore;
use crate::machine::Machine;
use crate::runner::Runner;
use crate::snapshot::SnapshotData;
use crate::state::State;
use crate::types::{Command, Entry, LogId, Payload, Types};
use crate::volume::{Dir, Volume};
use crate::{HistoryBounds, Revision, View as _};

struct Builder;

struct Guard {
    _dir: TempDir,
    log: LogStore,
    machine: Machine,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.log.stop();
        self.machine.flusher().stop();
    }
}

fn build() -> (Guard, LogStore, Machine, Arc<Hub>) {
    let dir = tempfile::tempdir().unwrap();
    let (log, writer) =
        LogStore::open(&volume(&dir), health(&dir), Runner::Threads, 1, Arc::default()).unwrap();
    Runner::Threads.start("store-log", None, writer).unwrap();
    let (machine, hub) = machine(&dir);
    (Guard { _dir: dir, log: log.clone(), machine: machine.clone() }, log, machine, hub)
}

fn health(dir: &TempDir) -> Arc<Health> {
    Arc::new(Health::new(dir.path()))
}

fn volume(dir: &TempDir) -> Arc<dyn Volume> {
    Arc::new(Dir::new(dir.path()))
}

fn machine(dir: &TempDir) -> (Machine, Arc<Hub>) {
    let bounds = HistoryBounds::default();
    let file = Arc::new(StateFile::open(&volume(dir), 1, Arc::default()).unwrap());
    let image = file.load().unwrap();
    let position = image.position.clone();
    let (flusher, _) =
        Flusher::start(file.clone(), health(dir), Runner::Threads, None, position.clone()).unwrap();
    let hub = Arc::new(Hub::new(State::restore(image, bounds)));
    (Machine::new(hub.clone(), file, flusher, health(dir), Runner::Threads, &position, bounds), hub)
}

impl StoreBuilder<Types, LogStore, Machine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, Machine), StorageError<Types>> {
        let (guard, log, machine, _) = build();
        Ok((guard, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite() {
    Suite::test_all(Builder).await.unwrap();
}

fn entry(index: u64, name: &str, value: &str) -> Entry {
    let log_id = LogId { leader_id: 1.into(), index };
    Entry { log_id, payload: Payload::Normal(Command(put(name, value).into())) }
}

async fn apply(machine: &mut Machine, entries: impl IntoIterator<Item = Entry>) {
    let entries: Vec<_> = entries.into_iter().collect();
    let entries = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(stream::iter(entries)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_carries_state_and_history() {
    let (_leader, _, mut leader, leader_hub) = build();
    apply(&mut leader, (0..20).map(|index| entry(index, &format!("k{}", index % 3), "v"))).await;
    let built = leader.build_snapshot().await.unwrap();
    let mut stream = Vec::new();
    built.snapshot.write_to(&mut stream).unwrap();

    // A follower that was at an early revision, with watches at that one and before.
    let (follower_guard, _, mut follower, hub) = build();
    apply(&mut follower, (0..5).map(|index| entry(index, &format!("k{}", index % 3), "v"))).await;
    let mut watch = hub.watch("/", hub.read().revision()).unwrap();
    let received = SnapshotData::read_from(&mut stream.as_slice()).unwrap();
    follower.install_snapshot(&built.meta, received).await.unwrap();
    let all = |hub: &Hub| hub.read().range("/", &crate::RangeOptions::default()).unwrap();
    assert_eq!(all(&hub), all(&leader_hub));
    assert_eq!(follower.applied_state().await.unwrap().0, built.meta.last_log_id);
    for expected in 7..=21 {
        let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
        assert_eq!(change.revision, Revision(expected), "a watch goes on over an installed snapshot");
    }
    // And it is at rest, too.
    let image = follower.file().load().unwrap();
    assert_eq!((image.position.applied, image.records.len()), (built.meta.last_log_id, 3));
    drop(follower_guard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_a_snapshot_overtakes_is_cut_off() {
    let (_guard, _, mut follower, hub) = build();
    let mut watch = hub.watch("/", Revision::FIRST).unwrap();
    let image = crate::file::Image {
        position: crate::file::Position { revision: Revision(50), floor: Revision(50), ..Default::default() },
        records: Default::default(),
        history: Vec::new(),
    };
    let meta = crate::types::SnapshotMeta {
        last_log_id: Some(LogId { leader_id: 1.into(), index: 60 }),
        ..Default::default()
    };
    follower.install_snapshot(&meta, SnapshotData::Image(Box::new(image))).await.unwrap();
    assert_eq!(watch.next().await, Err(WatchError::Lagged));
    assert_eq!(hub.read().revision(), Revision(50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_cut_or_damaged_is_refused() {
    let (_guard, _, mut leader, _) = build();
    apply(&mut leader, (0..4).map(|index| entry(index, "k", "v"))).await;
    let mut stream = Vec::new();
    leader.build_snapshot().await.unwrap().snapshot.write_to(&mut stream).unwrap();
    SnapshotData::read_from(&mut stream.as_slice()).unwrap();
    for cut in 0..stream.len() {
        assert!(SnapshotData::read_from(&mut &stream[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..stream.len() {
        let mut damaged = stream.clone();
        damaged[at] ^= 0x10;
        assert!(SnapshotData::read_from(&mut damaged.as_slice()).is_err(), "damaged at {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_apply_the_same_log_are_the_same() {
    let (_a, _, mut a, hub_a) = build();
    let (_b, _, mut b, hub_b) = build();
    let entries: Vec<_> = (0..300).map(|index| entry(index, &format!("k{}", index * 7 % 11), "v")).collect();
    apply(&mut a, entries.clone()).await;
    for chunk in entries.chunks(13) {
        apply(&mut b, chunk.to_vec()).await;
    }
    let all = |hub: &Hub| hub.read().range("/", &crate::RangeOptions::default()).unwrap();
    assert_eq!(all(&hub_a), all(&hub_b));
    a.flusher().flush().await.unwrap();
    b.flusher().flush().await.unwrap();
    let (a, b) = (a.file().load().unwrap(), b.file().load().unwrap());
    assert_eq!((a.position, a.records, a.history), (b.position, b.records, b.history));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_left_the_cache_are_read_from_the_disk() {
    let (_guard, mut log, _, _) = build();
    let large = "x".repeat(256 * 1024);
    for index in 0..40 {
        let entry = Entry {
            log_id: LogId { leader_id: 1.into(), index },
            payload: Payload::Normal(Command(
                crate::Txn::new().put(key("k"), crate::Precondition::Any, draft("k", &large)).into(),
            )),
        };
        let (done, flushed) = Types::oneshot();
        log.append([entry], openraft::storage::IOFlushed::signal(done)).await.unwrap();
        flushed.await.unwrap().unwrap();
    }
    let entries = log.try_get_log_entries(3..37).await.unwrap();
    assert_eq!(
        entries.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(),
        (3..37).collect::<Vec<_>>()
    );
}
