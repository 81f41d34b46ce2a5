//! The questions.

use std::sync::Arc;
use std::time::Instant;

use lichen_mqtt::packet::{Connect, ConnectReturnCode, Packet, Publish, QoS};
use lichen_mqtt::{Connection, Endpoint};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, getrlimit, pidfd_getfd, pidfd_open, setrlimit,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bed::{Bed, Kind, MANY, number};
use crate::client::{Client, PATIENCE};

fn topic(node: &str, last: &str) -> String {
    format!("lichen/v1/n/{node}/{last}")
}

pub(crate) async fn a_will_appears_after_a_loss_and_none_after_a_goodbye(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let mut polite = Client::open(&bed, &bed.node("a")).await.unwrap();
    polite.connected_with_will("a", "a", "never").await;
    polite.goodbye().await;
    let mut lost = Client::open(&bed, &bed.node("b")).await.unwrap();
    lost.connected_with_will("b", "b", "down").await;
    lost.cut();
    assert_eq!(gateway.heard().await, (topic("b", "presence"), b"down".to_vec()));
}

pub(crate) async fn a_second_connection_under_a_client_id_takes_over(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let mut first = bed.connected("a").await;
    first.subscribe(&topic("a", "down")).await;
    let mut second = bed.connected("a").await;
    second.subscribe(&topic("a", "down")).await;
    assert_eq!(first.next().await, None, "the first one is cut off");
    gateway.publish(&topic("a", "down"), "once").await;
    gateway.publish(&topic("a", "down"), "twice").await;
    assert_eq!(second.heard().await.1, b"once");
    assert_eq!(second.heard().await.1, b"twice");
    second.publish(&topic("a", "up"), "said").await;
    assert_eq!(gateway.heard().await, (topic("a", "up"), b"said".to_vec()));
}

pub(crate) async fn large_packets_pass(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let mut node = bed.connected("a").await;
    node.subscribe(&topic("a", "down")).await;
    for len in [0, 1, 127, 128, 16_383, 16_384, lichen_wire::FRAME_BYTES_MAX] {
        let payload = vec![7; len];
        node.publish(&topic("a", "up"), payload.clone()).await;
        assert_eq!(gateway.heard().await, (topic("a", "up"), payload.clone()));
        gateway.publish(&topic("a", "down"), payload.clone()).await;
        assert_eq!(node.heard().await, (topic("a", "down"), payload));
    }
}

pub(crate) async fn quality_1_is_acknowledged(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let mut node = bed.connected("a").await;
    for id in 1..=50 {
        let mut publish = Publish::new(topic("a", "up"), QoS::AtLeastOnce, vec![id as u8]);
        publish.pkid = id;
        node.send(Packet::Publish(publish)).await;
        match node.next().await {
            Some(Packet::PubAck(ack)) => assert_eq!(ack.pkid, id),
            other => panic!("{other:?}"),
        }
        // Delivered at quality 1 since both sides asked for it, under a number of the broker's own.
        match gateway.next().await {
            Some(Packet::Publish(publish)) => {
                assert_eq!((publish.qos, &publish.payload[..]), (QoS::AtLeastOnce, &[id as u8][..]));
                assert_ne!(publish.pkid, 0);
                gateway.send(Packet::PubAck(lichen_mqtt::packet::PubAck::new(publish.pkid))).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn nothing_waits_for_who_is_away(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let mut node = bed.connected("a").await;
    node.subscribe(&topic("a", "down")).await;
    node.goodbye().await;
    let mut stale = Publish::new(topic("a", "down"), QoS::AtLeastOnce, "stale");
    stale.pkid = 1;
    gateway.send(Packet::Publish(stale)).await;
    assert!(matches!(gateway.next().await, Some(Packet::PubAck(_))));
    let mut node = bed.connected("a").await;
    gateway.publish(&topic("a", "down"), "before it subscribes").await;
    gateway.send(Packet::PingReq).await;
    assert_eq!(gateway.next().await, Some(Packet::PingResp));
    node.subscribe(&topic("a", "down")).await;
    gateway.publish(&topic("a", "down"), "fresh").await;
    assert_eq!(node.heard().await.1, b"fresh");
}

pub(crate) async fn who_is_silent_is_given_up(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let mut node = Client::open(&bed, &bed.node("a")).await.unwrap();
    let mut connect = Connect::new("a");
    connect.keep_alive = 1;
    connect.last_will =
        Some(lichen_mqtt::packet::LastWill::new(topic("a", "presence"), "down", QoS::AtMostOnce, false));
    assert_eq!(node.connect(connect).await, Some(ConnectReturnCode::Success));
    assert_eq!(gateway.heard().await, (topic("a", "presence"), b"down".to_vec()));
    assert_eq!(node.next().await, None);

    // Lichen's own client keeps its connection, however little is said.
    let who = bed.node("b");
    let endpoint = Endpoint {
        broker: bed.address().to_string(),
        server_name: None,
        tls: bed.tls(&who),
        login: who.login,
        client_id: "b".into(),
        keepalive: std::time::Duration::from_secs(1),
        timeout: PATIENCE,
        will: Some((topic("b", "presence"), "lost".into())),
        subscribe: vec![topic("b", "down")],
        packet_bytes_max: 100_000,
    };
    let Connection { mut sender, mut receiver } = Connection::open(&endpoint).await.unwrap();
    for _ in 0..4 {
        tokio::select! {
            () = sender.idle() => sender.ping().await.unwrap(),
            lost = receiver.next() => panic!("{lost:?}"),
        }
    }
    gateway.publish(&topic("b", "down"), "still there?").await;
    assert_eq!(&receiver.next().await.unwrap().payload[..], b"still there?");
    sender.publish(&topic("b", "up").into(), "yes".into()).await.unwrap();
    assert_eq!(gateway.heard().await, (topic("b", "up"), b"yes".to_vec()));
}

pub(crate) async fn a_node_reaches_its_own_topics_only(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let mut curious = Vec::new();
    for filter in ["lichen/v1/n/b/down", "lichen/v1/n/+/down", "lichen/v1/#", "#", "lichen/v1/n/b/up"] {
        // Under the same name each would take over the one before.
        let mut node = Client::open(&bed, &bed.node("a")).await.unwrap();
        node.connected(&format!("a{}", curious.len())).await;
        if node.subscribe(filter).await && node.subscribe(&topic("a", "down")).await {
            curious.push((filter, node));
        }
    }
    let mut other = bed.connected("b").await;
    other.publish(&topic("b", "up"), "of b").await;
    assert_eq!(gateway.heard().await, (topic("b", "up"), b"of b".to_vec()));
    gateway.publish(&topic("b", "down"), "for b").await;
    gateway.publish(&topic("a", "down"), "for a").await;
    for (filter, node) in &mut curious {
        assert_eq!(node.heard().await, (topic("a", "down"), b"for a".to_vec()), "{filter}");
    }
    for forged in [topic("b", "up"), topic("b", "presence"), topic("b", "down"), topic("a", "down")] {
        let mut node = bed.connected("a").await;
        node.publish(&forged, "forged").await;
        node.send(Packet::PingReq).await;
        // Whether it answers or hangs up, it has read what came before.
        node.next().await;
    }
    let mut node = Client::open(&bed, &bed.node("a")).await.unwrap();
    node.connected_with_will("a", "b", "forged").await;
    node.cut();
    bed.connected("a").await.publish(&topic("a", "up"), "of a").await;
    assert_eq!(gateway.heard().await, (topic("a", "up"), b"of a".to_vec()), "nothing else got through");
    other.subscribe(&topic("b", "down")).await;
    gateway.publish(&topic("b", "down"), "end").await;
    assert_eq!(other.heard().await.1, b"end");
}

pub(crate) async fn a_stranger_reaches_no_node(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let mut let_in = 0;
    for who in bed.strangers() {
        let Ok(mut stranger) = Client::open(&bed, &who).await else { continue };
        if stranger.connect(Connect::new("a")).await != Some(ConnectReturnCode::Success) {
            continue;
        }
        let_in += 1;
        assert!(!stranger.subscribe(&topic("a", "down")).await);
        stranger.publish(&topic("a", "up"), "forged").await;
        assert_eq!(stranger.next().await, None);
    }
    // The embedded broker serves who has no certificate of its cluster, so that machines can join.
    assert_eq!(let_in > 0, bed.kind == Kind::Embedded);
    bed.connected("a").await.publish(&topic("a", "up"), "of a").await;
    assert_eq!(gateway.heard().await, (topic("a", "up"), b"of a".to_vec()));
}

/// TCP_NODELAY is set on both ends of each connection: without it, a round trip takes as long as a delayed
/// acknowledgement. How long it takes is printed, not judged.
pub(crate) async fn packets_go_out_at_once(bed: Arc<Bed>) {
    let mut gateway = bed.listening().await;
    let who = bed.node("a");
    let endpoint = Endpoint {
        broker: bed.address().to_string(),
        server_name: None,
        tls: bed.tls(&who),
        login: who.login,
        client_id: "a".into(),
        keepalive: PATIENCE,
        timeout: PATIENCE,
        will: None,
        subscribe: vec![topic("a", "down")],
        packet_bytes_max: 100_000,
    };
    let Connection { mut sender, mut receiver } = Connection::open(&endpoint).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        sender.publish(&topic("a", "up").into(), "ping".into()).await.unwrap();
        gateway.heard().await;
        gateway.publish(&topic("a", "down"), "pong").await;
        receiver.next().await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    println!(
        "{:?}: round trip p50 {:?}, p99 {:?}",
        bed.kind,
        took[took.len() / 2],
        took[took.len() * 99 / 100]
    );
    let port = bed.address().port();
    // Each connection is seen from both ends: two clients here, and the broker, which may be here as well.
    let here = delays(std::process::id(), port);
    let there = delays(bed.process(), port);
    assert!(here.len() >= 2 && there.len() >= 2, "{here:?} {there:?}");
    assert!(here.iter().chain(&there).all(|nodelay| *nodelay), "{here:?} {there:?}");
}

/// Whether TCP_NODELAY is set, for each connection of a process with a port of the loopback on either end.
fn delays(process: u32, port: u16) -> Vec<bool> {
    let pid = Pid::from_raw(process.cast_signed()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/fd")).unwrap() {
        let name = entry.unwrap().file_name();
        let number = name.to_string_lossy().parse().unwrap();
        // The folder's own descriptor is gone by now.
        let Ok(fd) = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) else { continue };
        let ends = (rustix::net::getsockname(&fd), rustix::net::getpeername(&fd));
        let (Ok(own), Ok(Some(peer))) = ends else { continue };
        let on = |address: rustix::net::SocketAddrAny| {
            std::net::SocketAddr::try_from(address).is_ok_and(|address| address.port() == port)
        };
        if on(own) || on(peer) {
            found.push(rustix::net::sockopt::tcp_nodelay(&fd).unwrap());
        }
    }
    found
}

pub(crate) async fn thousands_of_clients_are_served(bed: Arc<Bed>) {
    // The broker's descriptors and, for the embedded one, the clients' as well.
    let wanted = 2 * MANY as u64 + 500;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = limit.maximum.map_or(Some(wanted), |maximum| Some(maximum.min(wanted)));
        setrlimit(Resource::Nofile, limit).unwrap();
    }
    let many = getrlimit(Resource::Nofile).current.map_or(MANY, |most| MANY.min((most as usize - 200) / 2));
    let mut gateway = bed.listening().await;
    let before = resident_bytes(bed.process());
    let mut connecting = JoinSet::new();
    let room = Arc::new(tokio::sync::Semaphore::new(32));
    for index in 0..many {
        let (bed, room) = (bed.clone(), room.clone());
        connecting.spawn(async move {
            let _room = room.acquire().await.unwrap();
            let node = number(index);
            let mut client = bed.connected(&node).await;
            assert!(client.subscribe(&topic(&node, "down")).await);
            client.publish(&topic(&node, "up"), node.clone()).await;
            (node, client)
        });
    }
    let mut clients = Vec::new();
    while let Some(connected) = connecting.join_next().await {
        clients.push(connected.unwrap());
    }
    let mut heard = std::collections::BTreeSet::new();
    while heard.len() < many {
        let (from, payload) = gateway.heard().await;
        let node = String::from_utf8(payload).unwrap();
        assert_eq!(from, topic(&node, "up"));
        heard.insert(node);
    }
    let each = resident_bytes(bed.process()).saturating_sub(before) / many as u64;
    println!("{:?}: {many} clients, {each} bytes each of the broker's process", bed.kind);
    for (node, _) in &clients {
        gateway.publish(&topic(node, "down"), node.clone()).await;
    }
    let answered = async {
        for (node, client) in &mut clients {
            assert_eq!(client.heard().await, (topic(node, "down"), node.clone().into_bytes()));
        }
    };
    timeout(PATIENCE * 2, answered).await.expect("everybody is served");
    assert!(each < CLIENT_BYTES_MAX, "{each} bytes a client");
}

/// What a client that says nothing may cost; the embedded broker's clients stand in the same process and count.
const CLIENT_BYTES_MAX: u64 = 150_000;

fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}
