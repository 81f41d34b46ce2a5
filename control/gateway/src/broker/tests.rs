use std::time::Duration;

use bytes::BytesMut;

use lichen_mqtt::packet::{
    ConnAck, Connect, ConnectReturnCode, Error as MqttError, LastWill, Packet, PubAck, Publish, SubAck,
    Subscribe, SubscribeReasonCode,
};
use lichen_pki::{Authority, ClientTrust, Credentials, client_config, server_config};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// Long enough for a busy machine; nothing waits for it unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

type Removed = Arc<std::sync::Mutex<std::collections::BTreeSet<String>>>;

struct World {
    authority: Authority,
    broker: Broker,
    /// Nodes that are not let in.
    removed: Removed,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path()).unwrap();
        let server = authority.issue_server(&["localhost".into()]).unwrap();
        let tls = Arc::new(server_config(&server, authority.ca_pem(), &[]).unwrap());
        let seat = Seat::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let removed = Removed::default();
        let out = removed.clone();
        let admit = Admit::by(move |node, _| !out.lock().unwrap().contains(node));
        let broker = Broker::start(&seat, Config { tls, limits, admit }).unwrap();
        Self { authority, broker, removed, _folder: folder }
    }

    async fn stream(&self, credentials: Option<&Credentials>) -> TlsStream<TcpStream> {
        let trust = ClientTrust::Authority(self.authority.ca_pem().into());
        let tls = TlsConnector::from(Arc::new(client_config(&trust, credentials).unwrap()));
        let socket = TcpStream::connect(self.broker.local_addr()).await.unwrap();
        tls.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap()
    }

    async fn node(&self, node: &str) -> Client {
        let own = self.authority.issue_client(&format!("system:node:{node}"), Some("system:nodes")).unwrap();
        Client { stream: self.stream(Some(&own)).await, buffer: BytesMut::new() }
    }

    async fn connected(&self, node: &str) -> Client {
        let mut client = self.node(node).await;
        assert_eq!(client.connect(Connect::new(node)).await, ConnectReturnCode::Success);
        client
    }
}

/// A client that does exactly what it is told, unlike a well-behaved one.
struct Client {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Client {
    async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        self.raw(&bytes).await;
    }

    /// The other side may have closed already, which is for the reader to find.
    async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next packet; `None` if the connection was closed.
    async fn next(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.buffer, 1 << 20) {
                Ok(packet) => return Some(packet),
                Err(MqttError::InsufficientBytes(_)) => {}
                Err(error) => panic!("the broker sent {error}"),
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await.expect("in time");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn connect(&mut self, connect: Connect) -> ConnectReturnCode {
        self.send(Packet::Connect(connect)).await;
        match self.next().await {
            Some(Packet::ConnAck(ConnAck { code, session_present: false })) => code,
            other => panic!("{other:?}"),
        }
    }

    async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 7;
        self.send(Packet::Subscribe(subscribe)).await;
        match self.next().await {
            Some(Packet::SubAck(SubAck { pkid: 7, return_codes })) => return_codes[0],
            other => panic!("{other:?}"),
        }
    }

    async fn publish(&mut self, topic: &str, qos: QoS, payload: &[u8]) {
        let mut publish = Publish::new(topic, qos, payload);
        publish.pkid = if qos == QoS::AtMostOnce { 0 } else { 9 };
        self.send(Packet::Publish(publish)).await;
    }
}

async fn heard(port: &mut Port) -> (String, Vec<u8>) {
    let message = timeout(PATIENCE, port.recv()).await.expect("in time").expect("the broker lives");
    (message.topic.to_string(), message.payload.to_vec())
}

fn port(world: &World, filter: &str) -> Port {
    let port = world.broker.port();
    port.subscribe(filter).unwrap();
    port
}

#[tokio::test]
async fn frames_pass_both_ways_at_both_qualities() {
    let world = World::new(Limits::default()).await;
    let mut port = port(&world, "lichen/v1/n/+/up");
    let mut node = world.connected("a").await;
    assert_eq!(node.subscribe("lichen/v1/n/a/down").await, SubscribeReasonCode::Success(QoS::AtLeastOnce));
    node.publish("lichen/v1/n/a/up", QoS::AtMostOnce, b"0").await;
    node.publish("lichen/v1/n/a/up", QoS::AtLeastOnce, b"1").await;
    assert_eq!(node.next().await, Some(Packet::PubAck(PubAck::new(9))));
    assert_eq!(heard(&mut port).await, ("lichen/v1/n/a/up".into(), b"0".to_vec()));
    assert_eq!(heard(&mut port).await, ("lichen/v1/n/a/up".into(), b"1".to_vec()));
    let large = vec![5; 64 * 1024];
    port.publish("lichen/v1/n/a/down", large.clone().into()).unwrap();
    match node.next().await {
        Some(Packet::Publish(publish)) => assert_eq!(publish.payload, large),
        other => panic!("{other:?}"),
    }
    node.send(Packet::PingReq).await;
    assert_eq!(node.next().await, Some(Packet::PingResp));
    world.broker.shutdown().await;
    assert_eq!(node.next().await, None);
    assert!(timeout(PATIENCE, port.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_node_reaches_its_own_topics_only() {
    let world = World::new(Limits::default()).await;
    let mut port = port(&world, "#");
    let mut node = world.connected("a").await;
    for filter in ["lichen/v1/n/b/down", "lichen/v1/n/+/down", "#", "lichen/v1/join/abc123/down"] {
        assert_eq!(node.subscribe(filter).await, SubscribeReasonCode::Failure, "{filter}");
    }
    for topic in ["lichen/v1/n/b/up", "lichen/v1/n/a/down", "lichen/v1/join/abc123/up", "other"] {
        let mut node = world.connected("a").await;
        node.publish(topic, QoS::AtMostOnce, b"forged").await;
        assert_eq!(node.next().await, None, "{topic}");
    }
    let mut will = Connect::new("a");
    will.last_will = Some(LastWill::new("lichen/v1/n/b/presence", b"down".to_vec(), QoS::AtMostOnce, false));
    assert_eq!(world.node("a").await.connect(will).await, ConnectReturnCode::NotAuthorized);
    // Nothing of it got through.
    world.connected("a").await.publish("lichen/v1/n/a/up", QoS::AtMostOnce, b"own").await;
    assert_eq!(heard(&mut port).await.1, b"own");
}

#[tokio::test]
async fn who_has_no_certificate_may_join_and_nothing_else() {
    let world = World::new(Limits::default()).await;
    let mut port = port(&world, topic_of_joins());
    let mut joiner = Client { stream: world.stream(None).await, buffer: BytesMut::new() };
    assert_eq!(joiner.connect(Connect::new("a")).await, ConnectReturnCode::Success);
    assert_eq!(joiner.subscribe("lichen/v1/n/a/down").await, SubscribeReasonCode::Failure);
    assert_eq!(joiner.subscribe("lichen/v1/join/+/down").await, SubscribeReasonCode::Failure);
    assert!(matches!(joiner.subscribe("lichen/v1/join/abc123/down").await, SubscribeReasonCode::Success(_)));
    assert_eq!(joiner.subscribe("lichen/v1/join/other1/down").await, SubscribeReasonCode::Failure);
    joiner.publish("lichen/v1/join/abc123/up", QoS::AtMostOnce, b"request").await;
    assert_eq!(heard(&mut port).await.1, b"request");
    joiner.publish("lichen/v1/n/a/up", QoS::AtMostOnce, b"forged").await;
    assert_eq!(joiner.next().await, None);
    // A certificate that names neither a node nor a gateway is good for nothing here.
    let admin = world.authority.issue_client("admin", Some("system:masters")).unwrap();
    let mut admin = Client { stream: world.stream(Some(&admin)).await, buffer: BytesMut::new() };
    assert_eq!(admin.connect(Connect::new("admin")).await, ConnectReturnCode::NotAuthorized);
}

fn topic_of_joins() -> &'static str {
    lichen_wire::topic::ALL_JOIN_UP
}

#[tokio::test]
async fn wills_appear_unless_the_client_said_goodbye() {
    let world = World::new(Limits::default()).await;
    let mut port = port(&world, "lichen/v1/n/+/presence");
    let presence = |node: &str| format!("lichen/v1/n/{node}/presence");
    let with_will = |node: &str, said: &str| {
        let mut connect = Connect::new(node);
        connect.last_will =
            Some(LastWill::new(presence(node), said.as_bytes().to_vec(), QoS::AtLeastOnce, false));
        connect
    };
    let mut polite = world.node("polite").await;
    polite.connect(with_will("polite", "never")).await;
    polite.send(Packet::Disconnect).await;
    assert_eq!(polite.next().await, None);
    let mut gone = world.node("gone").await;
    gone.connect(with_will("gone", "down")).await;
    drop(gone);
    assert_eq!(heard(&mut port).await, (presence("gone"), b"down".to_vec()));
    // A second connection of the same node takes over; the first one's will appears before anything of the second.
    let mut first = world.node("a").await;
    first.connect(with_will("a", "first")).await;
    let mut second = world.connected("a").await;
    second.publish(&presence("a"), QoS::AtMostOnce, b"up").await;
    assert_eq!(heard(&mut port).await, (presence("a"), b"first".to_vec()));
    assert_eq!(heard(&mut port).await, (presence("a"), b"up".to_vec()));
    assert_eq!(first.next().await, None);
    // Another node under the same client id takes over nothing.
    let mut other = world.node("b").await;
    other.connect(Connect::new("a")).await;
    second.send(Packet::PingReq).await;
    assert_eq!(second.next().await, Some(Packet::PingResp));
    world.broker.port().publisher().disconnect_node("a");
    assert_eq!(second.next().await, None);
    other.send(Packet::PingReq).await;
    assert_eq!(other.next().await, Some(Packet::PingResp));
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_nobody_else_notices() {
    let limits = Limits { queue_bytes_max: 200_000, ..Limits::default() };
    let world = World::new(limits).await;
    let port = world.broker.port();
    let mut slow = world.connected("slow").await;
    slow.subscribe("lichen/v1/n/slow/down").await;
    let mut good = world.connected("good").await;
    good.subscribe("lichen/v1/n/good/down").await;
    // More than the kernel's buffers take, so that the queue fills whatever their size.
    for _ in 0..2_000 {
        port.publish("lichen/v1/n/slow/down", vec![0; 60_000].into()).unwrap();
        tokio::task::yield_now().await;
    }
    port.publish("lichen/v1/n/good/down", Bytes::from_static(b"hello")).unwrap();
    assert!(matches!(good.next().await, Some(Packet::Publish(_))));
    while slow.next().await.is_some() {}
}

#[tokio::test]
async fn who_stays_silent_is_cut_off() {
    let world = World::new(Limits { connect_timeout: Duration::from_secs(1), ..Limits::default() }).await;
    let mut mute = Client { stream: world.stream(None).await, buffer: BytesMut::new() };
    assert_eq!(mute.next().await, None);
    let mut node = world.node("a").await;
    let mut connect = Connect::new("a");
    connect.keep_alive = 1;
    assert_eq!(node.connect(connect).await, ConnectReturnCode::Success);
    assert_eq!(node.next().await, None);
}

#[tokio::test]
async fn malformed_and_misplaced_packets_end_the_connection_only() {
    let world = World::new(Limits::default()).await;
    let mut connect = BytesMut::new();
    Packet::Connect(Connect::new("a")).write(&mut connect, usize::MAX).unwrap();
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for round in 0..60 {
        let mut node = world.node("a").await;
        let mut bytes = if round % 2 == 0 { connect.to_vec() } else { Vec::new() };
        if round % 4 == 0 {
            let at = random() % bytes.len();
            bytes[at] ^= 1 << (random() % 8);
        }
        bytes.extend((0..random() % 200).map(|_| random() as u8));
        node.raw(&bytes).await;
        let _ = node.stream.shutdown().await;
        while node.stream.read_buf(&mut node.buffer).await.unwrap_or(0) > 0 {}
    }
    let over = [
        Packet::Connect(Connect::new("again")),
        Packet::PingResp,
        Packet::Publish({
            let mut publish = Publish::new("lichen/v1/n/a/up", QoS::ExactlyOnce, "x");
            publish.pkid = 1;
            publish
        }),
        Packet::Publish(Publish::new("lichen/v1/n/a/up", QoS::AtMostOnce, vec![0; 100_000])),
    ];
    for packet in over {
        let mut node = world.connected("a").await;
        node.send(packet.clone()).await;
        assert_eq!(node.next().await, None, "{:?}", packet.size());
    }
    let mut node = world.connected("a").await;
    node.send(Packet::PingReq).await;
    assert_eq!(node.next().await, Some(Packet::PingResp));
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let world = World::new(Limits::default()).await;
    let listen = world.broker.local_addr();
    let error = Seat::bind(listen).unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("the MQTT broker cannot listen on {listen}: ")),
        "{error}"
    );
    assert!(matches!(world.broker.port().subscribe("a#"), Err(BrokerError::Topic(_))));
    assert!(matches!(world.broker.port().publish("a/+", Bytes::new()), Err(BrokerError::Topic(_))));
}

/// The codec must survive whatever arrives: a panic would end the task without a word to the client.
#[test]
fn the_codec_survives_arbitrary_bytes() {
    let mut seed = 7u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for _ in 0..200_000 {
        let len = random() % 40;
        let mut bytes: Vec<u8> = (0..len + 2).map(|_| random() as u8).collect();
        bytes[0] = (random() as u8 % 15) << 4 | (random() as u8 & 6);
        bytes[1] = len as u8;
        if random() % 2 == 0 && len > 2 {
            bytes[2] = 0;
            bytes[3] = (random() % 12) as u8;
        }
        let _ = Packet::read(&mut BytesMut::from(&bytes[..]), 72 * 1024);
    }
}

#[tokio::test]
async fn a_node_that_was_removed_is_cut_off_and_not_let_in_again() {
    let world = World::new(Limits::default()).await;
    let (mut gone, mut other) = (world.connected("gone").await, world.connected("other").await);
    world.removed.lock().unwrap().insert("gone".to_owned());
    world.broker.port().publisher().disconnect_node("gone");
    assert_eq!(gone.next().await, None);
    let mut again = world.node("gone").await;
    assert_eq!(again.connect(Connect::new("gone")).await, ConnectReturnCode::NotAuthorized);
    other.send(Packet::PingReq).await;
    assert_eq!(other.next().await, Some(Packet::PingResp));
}
