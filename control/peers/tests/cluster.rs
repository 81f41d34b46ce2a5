//! Members that join, are removed, die and come back, with real stores over real TLS.

mod common;

use std::sync::Arc;

use common::{Cluster, read, until, write};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response};
use lichen_peers::{Body, Handler, PeersError, RequestError, Status};

fn body(text: impl Into<bytes::Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_join_vote_by_themselves_and_serve_each_other() {
    let mut cluster = Cluster::of(3).await;
    for (round, member) in cluster.members.iter().enumerate() {
        write(&member.store, "a", &round.to_string()).await;
        for other in &cluster.members {
            assert_eq!(read(&other.store, "a").await, Some(round.to_string()));
        }
        let list = member.peers.list().await.unwrap();
        let roles: Vec<_> = list.iter().map(|member| member.role.as_str()).collect();
        assert_eq!(roles.iter().filter(|role| **role == "leader").count(), 1, "{roles:?}");
        assert_eq!(roles.iter().filter(|role| **role == "voter").count(), 2, "{roles:?}");
    }
    // Who lost its reply asks again: nothing changes.
    let before = cluster.members[0].peers.list().await.unwrap();
    let known = cluster.known();
    cluster.members[2].peers.join(&known[..2], &known[2].1).await.unwrap();
    assert_eq!(cluster.members[0].peers.list().await.unwrap().len(), before.len());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_reach_who_mounted_them_with_the_id_of_who_asks() {
    let mut cluster = Cluster::of(2).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let (leader, follower) = (&cluster.members[leader], &cluster.members[follower]);
    let request = || Request::get("/forward/some?path=1").body(body("question")).unwrap();
    let early = follower.peers.request_leader(request()).await.unwrap();
    assert_eq!(early.status(), 503);
    let echo: Arc<dyn Handler> = Arc::new(async |member: u64, request: Request<hyper::body::Incoming>| {
        let uri = request.uri().path_and_query().unwrap().to_string();
        let text = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(body(format!("{member:016x} {uri} {}", String::from_utf8_lossy(&text))))
    });
    leader.peers.mount("/forward/", echo);
    let reply = follower.peers.request_leader(request()).await.unwrap();
    let text = reply.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, format!("{:016x} /forward/some?path=1 question", follower.id()));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_restarts_catches_up_and_the_others_go_on_without_it() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    cluster.members[leader].stop().await;
    let other = (leader + 1) % 3;
    until(async || {
        let store = &cluster.members[other].store;
        store.barrier().await.is_ok() && cluster.members[other].peers.leader().is_some()
    })
    .await;
    write(&cluster.members[other].store, "a", "without it").await;
    let authority = cluster.authority.clone();
    cluster.members[leader].restart(&authority).await;
    let back = &cluster.members[leader].store;
    until(async || back.barrier().await.is_ok()).await;
    assert_eq!(read(back, "a").await.as_deref(), Some("without it"));
    write(back, "b", "through it").await;
    assert_eq!(read(&cluster.members[other].store, "b").await.as_deref(), Some("through it"));
    cluster.shutdown().await;
}

/// A change that is refused with words that say why, and leaves the members as they were.
async fn refused(cluster: &Cluster, change: impl Future<Output = Result<(), PeersError>>, why: &str) {
    let before = cluster.members[0].peers.list().await.unwrap();
    let error = change.await.unwrap_err().to_string();
    assert!(error.contains(why), "{error:?} should say {why:?}");
    let ids = |members: Vec<lichen_peers::Member>| {
        members.into_iter().map(|member| (member.id, member.peer_address)).collect::<Vec<_>>()
    };
    assert_eq!(ids(cluster.members[0].peers.list().await.unwrap()), ids(before), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_changes_are_refused_and_change_nothing() {
    let mut cluster = Cluster::new().await;
    let alone = cluster.members[0].peers.clone();
    let own = cluster.members[0].id();
    refused(&cluster, alone.remove(own), "is the last voter").await;
    refused(&cluster, alone.remove(7), "there is no member 0000000000000007").await;
    refused(&cluster, alone.promote(7), "there is no member 0000000000000007").await;
    refused(&cluster, alone.transfer_leader(7), "there is no member 0000000000000007").await;
    // A stranger at an address that is taken already.
    let known = cluster.known();
    let stranger = cluster.begin(true).await.peers.clone();
    refused(&cluster, stranger.join(&known, &known[0].1), "remove it first").await;
    // Whoever does not belong to the cluster can't change it, though it has a certificate.
    let error = stranger.request(own, Request::get("/forward").body(body("")).unwrap()).await.unwrap_err();
    assert!(matches!(error, RequestError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("does not belong to the cluster"), "{error}");
    let address = cluster.members[1].address.clone();
    stranger.join(&known, &address).await.unwrap();
    cluster.voters(2).await;
    cluster.add().await;
    cluster.voters(3).await;

    // One of three is down: without another one, those that are left would be no majority.
    let leader = cluster.leader().await;
    let (down, up) = ((leader + 1) % 3, (leader + 2) % 3);
    let (down_id, up_id) = (cluster.members[down].id(), cluster.members[up].id());
    cluster.members[down].stop().await;
    let peers = cluster.members[leader].peers.clone();
    let silent = format!("{down_id:016x}");
    until(async || {
        let list = peers.list().await.unwrap();
        list.iter().any(|member| member.id == silent && member.status == Status::NotReady)
    })
    .await;
    let before = cluster.members[leader].peers.list().await.unwrap().len();
    for (change, why) in [
        (peers.remove(up_id).await, "which is no majority"),
        (peers.transfer_leader(down_id).await, "does not answer"),
    ] {
        let error = change.unwrap_err().to_string();
        assert!(error.contains(why), "{error:?} should say {why:?}");
    }
    assert_eq!(peers.list().await.unwrap().len(), before);
    // The one that is down can go, and so can then another one that is up.
    peers.remove(down_id).await.unwrap();
    peers.remove(up_id).await.unwrap();
    assert_eq!(peers.list().await.unwrap().len(), 1);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_changed_while_a_majority_is_down() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let down = [(leader + 1) % 3, (leader + 2) % 3];
    for at in down {
        cluster.members[at].stop().await;
    }
    let left = &cluster.members[leader];
    let before = left.store.members().unwrap();
    let error = left.peers.remove(cluster.members[down[0]].id()).await.unwrap_err().to_string();
    assert!(error.contains("fewer than a majority may be running"), "{error}");
    let addresses = |members: Vec<lichen_store::MemberStatus>| {
        members.into_iter().map(|member| (member.id, member.address)).collect::<Vec<_>>()
    };
    assert_eq!(addresses(left.store.members().unwrap()), addresses(before));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_told_and_never_comes_back_but_its_machine_may() {
    let mut cluster = Cluster::of(3).await;
    let authority = cluster.authority.clone();
    let leader = cluster.leader().await;
    let (told, away) = ((leader + 1) % 3, (leader + 2) % 3);
    write(&cluster.members[leader].store, "a", "1").await;

    // One that runs hears of it at once.
    let mut removed = cluster.members[told].peers.removed();
    cluster.members[leader].peers.remove(cluster.members[told].id()).await.unwrap();
    let why = removed.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(
        why.contains("was removed from the cluster") && why.contains("delete its data directory"),
        "{why}"
    );
    let known = vec![cluster.known()[leader].clone()];
    let address = cluster.members[told].address.clone();
    let error = cluster.members[told].peers.join(&known, &address).await.unwrap_err().to_string();
    assert!(error.contains("was removed from the cluster"), "{error}");
    assert!(cluster.members[told].store.commit(lichen_store::Txn::new()).await.is_err());
    // With an empty disk it is another member.
    cluster.members[told].wipe(&authority).await;
    let anew = &cluster.members[told];
    anew.peers.join(&known, &anew.address).await.unwrap();
    cluster.voters_at(leader, 3).await;
    assert_eq!(read(&cluster.members[told].store, "a").await.as_deref(), Some("1"));

    // One that was away hears of it when it comes back.
    cluster.members[away].stop().await;
    cluster.members[leader].peers.remove(cluster.members[away].id()).await.unwrap();
    cluster.members[away].restart(&authority).await;
    let mut removed = cluster.members[away].peers.removed();
    assert!(removed.wait_for(Option::is_some).await.unwrap().is_some());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moves_is_found_though_its_voice_is_needed_to_note_where() {
    let mut cluster = Cluster::of(2).await;
    let authority = cluster.authority.clone();
    let (leader, moves) = (cluster.leader().await, cluster.follower().await);
    cluster.members[moves].stop().await;
    // What the leader begins alone makes its log the longer one: it alone can lead, and can't without the other one.
    let store = cluster.members[leader].store.clone();
    let before = store.syncs();
    let begun = tokio::spawn({
        let store = store.clone();
        async move { write(&store, "a", "1").await }
    });
    until(async || store.syncs() > before).await;
    cluster.members[moves].address = common::free_address();
    cluster.members[moves].restart(&authority).await;
    let moved = &cluster.members[moves];
    until(async || moved.peers.move_to(&moved.address).await.is_ok()).await;
    // A write waits for 10 s, and a busy machine may take longer: what was begun happens all the same.
    let _ = begun.await;
    assert_eq!(read(&moved.store, "a").await.as_deref(), Some("1"));
    let members = store.members().unwrap();
    assert!(members.iter().any(|member| member.id == moved.id() && member.address == moved.address));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_is_not_taken_for_the_one_it_was() {
    let mut cluster = Cluster::of(3).await;
    let authority = cluster.authority.clone();
    let (leader, wiped) = (cluster.leader().await, cluster.follower().await);
    let old = cluster.members[wiped].id();
    cluster.members[wiped].wipe(&authority).await;
    let known = vec![cluster.known()[leader].clone()];
    let anew = &cluster.members[wiped];
    assert_ne!(anew.id(), old);
    let error = anew.peers.join(&known, &anew.address).await.unwrap_err().to_string();
    assert!(error.contains(&format!("lichen member remove {old:016x}")), "{error}");
    cluster.members[leader].peers.remove(old).await.unwrap();
    anew.peers.join(&known, &anew.address).await.unwrap();
    cluster.voters_at(leader, 3).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_hands_over_before_it_is_removed_and_when_it_is_told_to() {
    let mut cluster = Cluster::of(3).await;
    let first = cluster.leader().await;
    let next = (first + 1) % 3;
    // Whoever is asked passes it on.
    cluster.members[(first + 2) % 3].peers.transfer_leader(cluster.members[next].id()).await.unwrap();
    assert!(cluster.members[next].store.leadership().borrow().term > lichen_store::Term(1));
    assert_eq!(cluster.leader().await, next);
    let mut removed = cluster.members[next].peers.removed();
    cluster.members[next].peers.remove(cluster.members[next].id()).await.unwrap();
    removed.wait_for(Option::is_some).await.unwrap();
    let left = &cluster.members[first];
    assert_eq!(left.peers.list().await.unwrap().len(), 2);
    write(&left.store, "a", "1").await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_other_clusters_and_versions_are_refused_with_the_reason() {
    let (mut ours, mut others) = (Cluster::of(2).await, Cluster::new().await);
    let known = ours.known();
    let stranger = others.begin(true).await.peers.clone();
    let error = stranger.join(&known[..1], "127.0.0.1:1").await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached") && error.contains("certificate"), "{error}");

    // A member of another version, by its own words.
    let (id, address) = known[0].clone();
    for (version, words) in
        [("0", "speaks version 0 of"), ("2", "speaks version 2 of"), ("x", "none that is known")]
    {
        let (code, refusal, text) = common::raw(&ours.authority, known[1].0, id, &address, version).await;
        assert_eq!((code, refusal.as_deref()), (403, Some("protocol")), "{text}");
        assert!(text.contains(words) && text.contains("run the same version of lichen"), "{text}");
    }
    let (code, refusal, text) = common::raw(&ours.authority, 0xbad, id, &address, "1").await;
    assert_eq!((code, refusal.as_deref()), (403, Some("unknown")), "{text}");
    // A member that is told another version by who answers says so, too.
    let old = common::answers(&ours.authority, 0xa11, "2").await;
    let error = ours.members[1].peers.join(&[(0xa11, old)], "127.0.0.1:1").await.unwrap_err().to_string();
    assert!(error.contains("speaks version 2 of the members' protocol"), "{error}");
    ours.shutdown().await;
    others.shutdown().await;
}
