//! Several members: what they owe together, whoever of them fails.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::net::{Cluster, LOOK};
use super::{put, small_history, value, write};
use crate::{CommitError, ErrorKind, Event, HistoryBounds, Role, Store, Term};

async fn three() -> Cluster {
    Cluster::new(3, HistoryBounds::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_takes_writes_and_reads_what_was_written() {
    let cluster = three().await;
    for (round, node) in cluster.nodes.iter().enumerate() {
        let revision = write(&node.store, "a", &round.to_string()).await;
        // The one that wrote has it at once, the others after a barrier.
        assert_eq!(value(&node.store, "a"), Some(round.to_string()));
        for other in &cluster.nodes {
            other.store.barrier().await.unwrap();
            assert!(other.store.revision() >= revision);
            assert_eq!(value(&other.store, "a"), Some(round.to_string()));
        }
    }
    let leader = cluster.leader().await;
    let term = leader.store.leadership().borrow().term;
    let follower = cluster.followers().await[0].store.clone();
    // A fence holds wherever the transaction is proposed.
    follower.commit(put("b", "1").fenced(Some(term))).await.unwrap();
    let stale = follower.commit(put("b", "2").fenced(Some(Term(term.0 - 1)))).await;
    assert_eq!(stale, Err(CommitError::Fenced { term }));
    cluster.shutdown().await;
}

/// Writers that count upwards under a key each, at whichever member answers, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, u64>>>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        let stores: Vec<Store> = cluster.nodes.iter().map(|node| node.store.clone()).collect();
        let writers = (0..6)
            .map(|index| {
                let (stop, acknowledged, stores) = (stop.clone(), acknowledged.clone(), stores.clone());
                tokio::spawn(async move {
                    let name = format!("w{index}");
                    let mut at = index;
                    let mut next = 1;
                    while !stop.load(Ordering::Relaxed) {
                        match stores[at % stores.len()].commit(put(&name, &next.to_string())).await {
                            Ok(_) => {
                                acknowledged.lock().unwrap().insert(name.clone(), next);
                                next += 1;
                            }
                            Err(_) => at += 1,
                        }
                    }
                })
            })
            .collect();
        Self { stop, acknowledged, writers }
    }

    fn count(&self) -> u64 {
        self.acknowledged.lock().unwrap().values().sum()
    }

    /// Waits until so many more writes were acknowledged.
    async fn more(&self, count: u64) {
        let before = self.count();
        while self.count() < before + count {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn stop(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        self.acknowledged.lock().unwrap().clone()
    }
}

fn check(store: &Store, acknowledged: &BTreeMap<String, u64>) {
    for (name, acknowledged) in acknowledged {
        let found: u64 = value(store, name).unwrap().parse().unwrap();
        assert!(found >= *acknowledged, "{name} is {found}, acknowledged was {acknowledged}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_takes_no_acknowledged_write_with_it() {
    let mut cluster = three().await;
    let load = Load::start(&cluster);
    let mut terms = Vec::new();
    for _ in 0..2 {
        load.more(30).await;
        let leader = cluster.leader().await;
        let name = leader.name.clone();
        terms.push(leader.store.leadership().borrow().term);
        cluster.kill(&name).await;
        // A write that the dead leader has not heard of waits for the next one.
        let rest: Vec<_> = cluster.nodes.iter().filter(|node| node.name != name).collect();
        write(&rest[0].store, "after", &name).await;
        load.more(30).await;
        cluster.heal();
        cluster.restart(&name).await;
    }
    let acknowledged = load.stop().await;
    terms.push(cluster.leader().await.store.leadership().borrow().term);
    assert!(terms.windows(2).all(|pair| pair[0] < pair[1]), "{terms:?}");
    for node in &cluster.nodes {
        node.store.barrier().await.unwrap();
        check(&node.store, &acknowledged);
    }
    cluster.agree().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_neither_acknowledges_nor_answers() {
    let cluster = three().await;
    write(&cluster.nodes[0].store, "a", "1").await;
    let old = cluster.leader().await;
    let term = old.store.leadership().borrow().term;
    cluster.agree().await;
    let mut watches: Vec<_> =
        cluster.nodes.iter().map(|node| node.store.watch("/", node.store.revision()).unwrap()).collect();
    cluster.isolate(&old.name);
    let rest: Vec<_> = cluster.nodes.iter().filter(|node| node.name != old.name).collect();
    let (lost, (), read) = tokio::join!(
        old.store.commit(put("a", "lost")),
        async {
            // The others find a leader and go on.
            while let Err(error) = rest[0].store.commit(put("a", "2")).await {
                assert_eq!(error.kind(), ErrorKind::Retryable, "{error}");
            }
            assert_eq!(value(&rest[0].store, "a").as_deref(), Some("2"));
        },
        old.store.barrier(),
    );
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Retryable);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Retryable);
    assert_eq!(value(&old.store, "a").as_deref(), Some("1"), "what nobody confirmed is not seen");
    assert!(!old.store.leadership().borrow().leader, "it has heard of nobody for too long");
    cluster.heal();
    old.store.barrier().await.unwrap();
    assert_eq!(value(&old.store, "a").as_deref(), Some("2"));
    // Whoever led before is fenced off, wherever it writes.
    let stale = old.store.commit(put("a", "stale").fenced(Some(term))).await.unwrap_err();
    assert!(matches!(stale, CommitError::Fenced { .. }), "{stale:?}");
    cluster.agree().await;
    let told: Vec<Vec<_>> = watches
        .iter_mut()
        .map(|watch| {
            let mut told = Vec::new();
            while let Some(Event::Change(change)) = watch.try_next().unwrap() {
                told.push((change.revision, change.key.clone(), change.new.clone()));
            }
            told
        })
        .collect();
    assert!(told[0].iter().map(|(revision, ..)| revision.0).is_sorted());
    assert_eq!((&told[0], &told[0]), (&told[1], &told[2]), "watches of all members tell the same");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go() {
    let mut cluster = Cluster::new(1, small_history()).await;
    for index in 0..40 {
        write(&cluster.nodes[0].store, &format!("k{index}"), "1").await;
    }
    // What the log no longer has arrives as a snapshot.
    cluster.nodes[0].store.compact().await;
    cluster.add(small_history()).await;
    cluster.add(small_history()).await;
    let ids: Vec<u64> = cluster.nodes.iter().map(|node| node.store.member_id().unwrap()).collect();
    let leader = cluster.nodes[0].store.clone();
    // One that nobody has taken in yet knows of no leader. What is asked of it waits until it does.
    let joiner = cluster.nodes[1].store.clone();
    let read = tokio::spawn(async move { joiner.barrier().await });
    let joiner = cluster.nodes[1].store.clone();
    let written = tokio::spawn(async move { joiner.commit(put("early", "1")).await });
    tokio::time::sleep(LOOK).await;
    assert!(!read.is_finished() && !written.is_finished());
    leader.add_learner(ids[1], "1").await.unwrap();
    read.await.unwrap().unwrap();
    written.await.unwrap().unwrap();
    let again = leader.add_learner(ids[1], "1").await.unwrap_err();
    assert!(matches!(again, CommitError::Membership(_)), "{again:?}");
    let unknown = leader.promote(7).await.unwrap_err();
    assert_eq!(unknown, CommitError::Membership("there is no member 0000000000000007".into()));
    cluster.promote(ids[1]).await;
    leader.add_learner(ids[2], "2").await.unwrap();
    cluster.agree().await;
    let mut roles = cluster.roles();
    roles.sort_by_key(|role| *role as u8);
    assert_eq!(roles, [Role::Leader, Role::Voter, Role::Learner]);
    cluster.promote(ids[2]).await;
    assert_eq!(value(&cluster.nodes[2].store, "k39").as_deref(), Some("1"));

    // The lead is handed over, and the writes follow it.
    leader.transfer_leader(ids[1]).await.unwrap();
    while !cluster.nodes[1].store.leadership().borrow().leader {
        tokio::time::sleep(LOOK).await;
    }
    write(&leader, "after", "1").await;
    let leader = cluster.nodes[1].store.clone();

    // One that is about to end hands it over by itself.
    leader.hand_over().await;
    while leader.leadership().borrow().leader {
        tokio::time::sleep(LOOK).await;
    }
    let leader = cluster.leader().await.store.clone();
    assert_ne!(leader.member_id(), Some(ids[1]));
    if leader.member_id() == Some(ids[2]) {
        leader.transfer_leader(ids[0]).await.unwrap();
    }
    let leader = cluster.nodes[0].store.clone();
    while !leader.leadership().borrow().leader {
        tokio::time::sleep(LOOK).await;
    }

    // One that comes back with an empty disk is another one.
    cluster.kill("2").await;
    cluster.heal();
    cluster.restart_wiped("2").await;
    let wiped = &cluster.nodes[2].store;
    assert_ne!(wiped.member_id(), Some(ids[2]));
    write(&leader, "meanwhile", "1").await;
    assert!(tokio::time::timeout(LOOK, wiped.barrier()).await.is_err(), "nobody has taken it in");
    assert_eq!(value(wiped, "meanwhile"), None);
    leader.remove_member(ids[2]).await.unwrap();
    leader.add_learner(wiped.member_id().unwrap(), "2").await.unwrap();
    cluster.agree().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_on_where_a_connection_broke() {
    let mut cluster = Cluster::new(1, small_history()).await;
    for index in 0..8 {
        write(&cluster.nodes[0].store, &format!("k{index}"), &"large".repeat(60_000)).await;
    }
    cluster.nodes[0].store.compact().await;
    cluster.add(small_history()).await;
    cluster.net.break_after(3, 2);
    let id = cluster.nodes[1].store.member_id().unwrap();
    cluster.nodes[0].store.add_learner(id, "1").await.unwrap();
    cluster.agree().await;
    let pieces = cluster.net.pieces();
    assert!(pieces.len() > 4, "{pieces:?}");
    let expect: Vec<_> = (0..pieces.len() as u64).map(|number| (pieces[0].0, number)).collect();
    assert_eq!(pieces, expect, "one transfer, and each piece once");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_begins_anew_when_its_receiver_was_restarted_midway() {
    let mut cluster = Cluster::new(1, small_history()).await;
    for index in 0..8 {
        write(&cluster.nodes[0].store, &format!("k{index}"), &"large".repeat(60_000)).await;
    }
    cluster.nodes[0].store.compact().await;
    cluster.add(small_history()).await;
    cluster.net.break_after(3, usize::MAX);
    let id = cluster.nodes[1].store.member_id().unwrap();
    cluster.nodes[0].store.add_learner(id, "1").await.unwrap();
    while cluster.net.pieces().len() < 3 {
        tokio::time::sleep(LOOK).await;
    }
    cluster.nodes[1].store.shutdown().await;
    cluster.restart("1").await;
    cluster.net.break_after(usize::MAX, 0);
    cluster.agree().await;
    let pieces = cluster.net.pieces();
    let (first, last) = (pieces[0].0, pieces.last().unwrap().0);
    assert_ne!(first, last, "what the first transfer had brought was lost with its receiver");
    let last: Vec<_> = pieces.iter().filter(|(transfer, _)| *transfer == last).map(|(_, n)| *n).collect();
    assert!(last.len() > 4, "{pieces:?}");
    assert_eq!(last, (0..last.len() as u64).collect::<Vec<_>>(), "the whole of it: {pieces:?}");
    // It is a member like any other afterwards.
    cluster.promote(id).await;
    write(&cluster.nodes[1].store, "after", "1").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_stops_serving() {
    let cluster = three().await;
    let leader = cluster.leader().await;
    let gone = cluster.followers().await[0];
    leader.store.remove_member(gone.store.member_id().unwrap()).await.unwrap();
    write(&leader.store, "a", "1").await;
    assert!(gone.store.barrier().await.is_err());
    assert!(gone.store.commit(put("a", "2")).await.is_err());
    assert_eq!(value(&leader.store, "a").as_deref(), Some("1"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_removed_changes_no_members() {
    let cluster = three().await;
    let leader = cluster.leader().await.store.clone();
    let other = cluster.followers().await[0].store.member_id().unwrap();
    let own = leader.member_id().unwrap();
    // The second waits for its turn, which comes when the first has removed who was to make it.
    let (removed, refused) = tokio::join!(biased; leader.remove_member(own), leader.remove_member(other));
    removed.unwrap();
    let refused = refused.unwrap_err();
    assert!(matches!(refused, CommitError::NotLeader { .. } | CommitError::Unavailable(_)), "{refused:?}");
    let members: Vec<u64> =
        cluster.leader().await.store.members().unwrap().iter().map(|member| member.id).collect();
    assert!(members.contains(&other) && !members.contains(&own), "{members:x?}");
    cluster.shutdown().await;
}
