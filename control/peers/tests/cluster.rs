//! Members that join, are removed, die and come back, with real stores over real TLS.

mod common;

use std::sync::Arc;

use common::{Cluster, read, until, write};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response};
use lichen_peers::{Body, Handler};

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
