//! The link against the embedded broker, over real TLS and MQTT.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lichen_gateway::broker::{Admit, Broker, Config as BrokerConfig, Limits as BrokerLimits, Port, Seat};
use lichen_gateway::bus::Message;
use lichen_link::{Config, JoinConfig, JoinError, Link, LinkEvent, LinkStream, StreamError, join};
use lichen_pki::{Authority, ClientTrust, Credentials, Digest, client_config, server_config};
use lichen_wire::FRAME_BYTES_MAX;
use lichen_wire::join::{JOIN_BYTES_MAX, JoinRequest, Refusal, Token};
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{
    AgentConfig, Config as SessionConfig, Event, GatewayConfig, Growable, Limits, Session, StreamId, Timing,
};
use lichen_wire::topic;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Long enough for a busy machine; nothing here waits for it unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// The key that a node has after it was renewed.
const RENEWED: [u8; 32] = [8; 32];

struct World {
    authority: Authority,
    server: Credentials,
    broker: Option<Broker>,
    /// Key pairs that are not let in.
    revoked: Arc<Mutex<BTreeSet<Digest>>>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path()).unwrap();
        let server = authority.issue_server(&["127.0.0.1".into(), "localhost".into()]).unwrap();
        let mut world = Self { authority, server, broker: None, revoked: Arc::default(), _folder: folder };
        world.start(([127, 0, 0, 1], 0).into()).await;
        world
    }

    async fn start(&mut self, listen: SocketAddr) {
        let tls = server_config(&self.server, self.authority.ca_pem(), &[]).unwrap();
        let revoked = self.revoked.clone();
        let admit = Admit::by(move |_, public_key| !revoked.lock().unwrap().contains(public_key));
        let limits = BrokerLimits::default();
        let config = BrokerConfig { tls: Arc::new(tls), limits, admit };
        self.broker = Some(Broker::start(&Seat::bind(listen).unwrap(), config).unwrap());
    }

    fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    fn address(&self) -> String {
        self.broker().local_addr().to_string()
    }

    /// A certificate for a node, ready to be shown, and its key pair.
    fn certificate(&self, node: &str) -> (Arc<rustls::ClientConfig>, Digest) {
        let request = lichen_pki::Request::new().unwrap();
        let issued = self.authority.certify_node(&request.csr_der, node, PATIENCE).unwrap();
        let own = Credentials { chain_pem: issued.chain_pem, key_pem: request.key_pem };
        let trust = ClientTrust::Authority(self.authority.ca_pem().into());
        (Arc::new(client_config(&trust, Some(&own)).unwrap()), issued.public_key)
    }

    fn link(&self, node: &str) -> (Link, mpsc::Receiver<LinkEvent>) {
        self.link_with(node, self.certificate(node).0)
    }

    fn link_with(&self, node: &str, tls: Arc<rustls::ClientConfig>) -> (Link, mpsc::Receiver<LinkEvent>) {
        let session = AgentConfig {
            node: node.try_into().unwrap(),
            key: NodeKey::from_bytes([9; 32]),
            boot_id: [1; 16],
            agent_version: "1.0.0".try_into().unwrap(),
            profile: "test".try_into().unwrap(),
            epoch_seen: 0,
            synced: None,
            limits: Limits::SERVER,
            timing: Timing::DEFAULT,
        };
        let mut config = Config::new(self.address(), tls, session);
        config.retry_max = Duration::from_millis(500);
        Link::spawn(config)
    }
}

/// A gateway for one node: settles every report, answers every stream with as many bytes as it asks for.
struct Gateway {
    port: Port,
    session: Session<Growable>,
    down: String,
    began: Instant,
    scratch: Vec<u8>,
    reports: mpsc::UnboundedSender<(String, Vec<u8>)>,
    presence: mpsc::UnboundedSender<Bytes>,
    serving: Vec<(StreamId, usize)>,
    /// Opened by the gateway once connected; what comes back.
    ask: Option<Vec<u8>>,
    answer: mpsc::UnboundedSender<Vec<u8>>,
}

struct Seen {
    reports: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
    presence: mpsc::UnboundedReceiver<Bytes>,
    answer: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Gateway {
    fn spawn(port: Port, node: &str, epoch: u64, ask: Option<Vec<u8>>) -> Seen {
        port.subscribe(topic::ALL_UP).unwrap();
        port.subscribe(topic::ALL_PRESENCE).unwrap();
        let session = Session::new(
            SessionConfig::Gateway(GatewayConfig {
                node: node.try_into().unwrap(),
                key: NodeKey::from_bytes([9; 32]),
                epoch,
                incarnation: 5,
                limits: Limits::SERVER,
                timing: Timing::DEFAULT,
            }),
            rand::random(),
        );
        let ((reports, r), (presence, p), (answer, a)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let mut gateway = Self {
            port,
            session,
            down: format!("lichen/v1/n/{node}/down"),
            began: Instant::now(),
            scratch: vec![0; FRAME_BYTES_MAX],
            reports,
            presence,
            serving: Vec::new(),
            ask,
            answer,
        };
        // A key that the node may have been given meanwhile.
        gateway.session.offer_key(NodeKey::from_bytes(RENEWED));
        tokio::spawn(gateway.run());
        Seen { reports: r, presence: p, answer: a }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    async fn run(mut self) {
        self.session.link_up(0);
        self.session.solicit(0);
        loop {
            self.serve();
            let now_ms = self.now_ms();
            while let Some(len) = self.session.transmit(now_ms, &mut self.scratch) {
                self.port.publish(&self.down, Bytes::copy_from_slice(&self.scratch[..len])).unwrap();
            }
            let wait_ms = self.session.next_timeout().map_or(1_000, |at| at.saturating_sub(now_ms).max(1));
            match timeout(Duration::from_millis(wait_ms), self.port.recv()).await {
                Ok(Some(message)) => self.message(message),
                Ok(None) => return,
                Err(_) => {
                    let now_ms = self.now_ms();
                    self.session.tick(now_ms, &mut |_| {});
                }
            }
        }
    }

    fn message(&mut self, message: Message) {
        if message.topic.ends_with("/presence") {
            let _ = self.presence.send(message.payload);
            return;
        }
        let now_ms = self.now_ms();
        let (mut settle, mut connected, mut grant) = (None, false, None);
        let mut frame = message.payload.to_vec();
        let _ = self.session.receive(now_ms, &mut frame, &mut |event| match event {
            Event::NodeConnected(_) => connected = true,
            Event::Report { id, key, body, .. } => {
                let _ = self.reports.send((key.to_owned(), body.to_vec()));
                settle = Some(id);
            }
            Event::StreamOpened { id, request } => {
                self.serving.push((id, std::str::from_utf8(request).unwrap().parse().unwrap()));
            }
            Event::StreamData { id, data } => {
                let _ = self.answer.send(data.to_vec());
                grant = Some((id, data.len() as u64));
            }
            _ => {}
        });
        if let Some(id) = settle {
            self.session.settle(id);
        }
        if let Some((id, bytes)) = grant {
            let _ = self.session.stream_grant(id, bytes);
        }
        if connected {
            self.session.snapshot_begin(1, 1).unwrap();
            self.session.item("ConfigMap", "default/big", 1, &vec![7; 200_000]).unwrap();
            self.session.snapshot_end(1).unwrap();
            if let Some(request) = self.ask.take() {
                let id = self.session.stream_open(&request).unwrap();
                self.session.stream_finish(id).unwrap();
            }
        }
    }

    fn serve(&mut self) {
        self.serving.retain_mut(|(id, left)| {
            let Ok(taken) = self.session.stream_write(*id, &vec![3; *left]) else { return false };
            *left -= taken;
            if *left == 0 {
                self.session.stream_finish(*id).unwrap();
            }
            *left > 0
        });
    }
}

async fn event(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("the link lives")
}

async fn connected(events: &mut mpsc::Receiver<LinkEvent>) -> u64 {
    loop {
        if let LinkEvent::Connected { epoch, .. } = event(events).await {
            return epoch;
        }
    }
}

async fn heard<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(PATIENCE, receiver.recv()).await.expect("something in time").expect("the gateway lives")
}

async fn read_all(stream: &mut LinkStream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(data) = stream.read().await? {
        all.extend_from_slice(&data);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_reports_and_streams_cross_the_link() {
    let world = World::new().await;
    let mut seen = Gateway::spawn(world.broker().port(), "edge-1", 3, Some(b"logs".to_vec()));
    let (link, mut events) = world.link("edge-1");
    assert_eq!(connected(&mut events).await, 3);
    // Streams share the session with desired state and overtake it.
    let (mut logs, mut snapshot) = (None, Vec::new());
    while logs.is_none() || snapshot.len() < 3 {
        match event(&mut events).await {
            LinkEvent::Stream { request, stream } => {
                assert_eq!(&request[..], b"logs");
                logs = Some(stream);
            }
            LinkEvent::SnapshotBegin { version, count } => snapshot.push(format!("begin {version} {count}")),
            LinkEvent::Item { kind, key, body, .. } => {
                snapshot.push(format!("item {kind} {key} {}", body.len()));
            }
            LinkEvent::SnapshotEnd { version } => snapshot.push(format!("end {version}")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(snapshot, ["begin 1 1", "item ConfigMap default/big 200000", "end 1"]);
    let mut logs = logs.unwrap();
    assert_eq!(logs.read().await.unwrap(), None);
    let lines = vec![5; 300_000];
    let (written, mut answer) = tokio::join!(logs.write(&lines), async {
        let mut got = Vec::new();
        while got.len() < lines.len() {
            got.extend(heard(&mut seen.answer).await);
        }
        got
    });
    written.unwrap();
    logs.finish().await.unwrap();
    assert_eq!(answer.len(), lines.len());
    assert!(answer.drain(..).all(|b| b == 5));

    let handle = link.handle();
    handle.report("Node", "edge-1", "", b"status".to_vec()).await.unwrap();
    assert_eq!(heard(&mut seen.reports).await, ("edge-1".to_owned(), b"status".to_vec()));
    let mut artifact = handle.open_stream(b"1500000".to_vec()).await.unwrap();
    artifact.finish().await.unwrap();
    let bytes = timeout(PATIENCE, read_all(&mut artifact)).await.unwrap().unwrap();
    assert_eq!(bytes, vec![3; 1_500_000]);

    assert_eq!(heard(&mut seen.presence).await, topic::PRESENCE_UP);
    link.shutdown().await;
    assert_eq!(heard(&mut seen.presence).await, topic::PRESENCE_DOWN);
    assert!(handle.report("Node", "edge-1", "", Vec::new()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_broker_is_found_again_and_reports_are_kept() {
    let mut world = World::new().await;
    drop(Gateway::spawn(world.broker().port(), "edge-1", 1, None));
    let (link, mut events) = world.link("edge-1");
    connected(&mut events).await;
    let mut stream = link.handle().open_stream(b"100000000".to_vec()).await.unwrap();
    let address = world.broker().local_addr();
    world.broker.take().unwrap().shutdown().await;
    let lost = timeout(PATIENCE, read_all(&mut stream)).await.unwrap();
    assert_eq!(lost, Err(StreamError::Lost));
    link.handle().report("Pod", "default/a", "u1", b"while away".to_vec()).await.unwrap();
    world.start(address).await;
    let mut seen = Gateway::spawn(world.broker().port(), "edge-1", 2, None);
    assert_eq!(connected(&mut events).await, 2);
    assert_eq!(heard(&mut seen.reports).await, ("default/a".to_owned(), b"while away".to_vec()));
    link.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_joins_with_its_token_only() {
    let world = World::new().await;
    let token = Token::new("abc123", "0123456789abcdef", world.authority.ca_digest()).unwrap();
    let mut port = world.broker().port();
    port.subscribe(topic::ALL_JOIN_UP).unwrap();
    let (held, ca) = (token.clone(), world.authority.ca_der().to_vec());
    let gateway = tokio::spawn(async move {
        let mut keys = Vec::new();
        while let Some(message) = port.recv().await {
            let request = JoinRequest::read(&message.payload).unwrap();
            let mut out = vec![0; JOIN_BYTES_MAX];
            let len = match request.verify(&held) {
                Ok(verified) => {
                    let (len, key) = verified.accept(b"certificate", &ca, rand::random(), &mut out).unwrap();
                    keys.push(key);
                    len
                }
                Err(_) => request.refuse(Refusal::Token, &mut out).unwrap(),
            };
            port.publish("lichen/v1/join/abc123/down", Bytes::copy_from_slice(&out[..len])).unwrap();
            if keys.len() == 1 {
                break;
            }
        }
        keys.pop()
    });
    let attempt = |token: Token, pin: [u8; 32]| JoinConfig {
        broker: world.address(),
        server_name: None,
        tls: Arc::new(client_config(&ClientTrust::Pinned(pin), None).unwrap()),
        login: None,
        token,
        node: "edge-1".into(),
        csr: b"request".to_vec(),
        own_broker: true,
        timeout: PATIENCE,
    };
    let pin = world.authority.ca_digest();
    let wrong = Token::new("abc123", "fedcba9876543210", pin).unwrap();
    let refused = join(attempt(wrong, pin)).await;
    assert!(matches!(refused, Err(JoinError::Exchange(_))), "{refused:?}");
    let elsewhere = join(attempt(token.clone(), [0; 32])).await;
    assert!(matches!(elsewhere, Err(JoinError::Connect { .. })), "{elsewhere:?}");
    let joined = join(attempt(token, pin)).await.unwrap();
    assert_eq!(joined.certificate, b"certificate");
    assert_eq!(joined.ca, world.authority.ca_der());
    assert_eq!(Some(joined.key), gateway.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_goes_on_under_another_key_and_certificate() {
    let world = World::new().await;
    let mut seen = Gateway::spawn(world.broker().port(), "edge-1", 1, None);
    let (old, old_key) = world.certificate("edge-1");
    let (new, new_key) = world.certificate("edge-1");
    let (link, mut events) = world.link_with("edge-1", old);
    connected(&mut events).await;
    let mut refused = link.handle().refused();
    // From here on the broker takes the new certificate only, and the session the new key only once it was used.
    world.revoked.lock().unwrap().insert(old_key);
    link.handle().replace(NodeKey::from_bytes(RENEWED), Some(new)).await.unwrap();
    link.handle().report("Pod", "default/a", "u1", b"in between".to_vec()).await.unwrap();
    connected(&mut events).await;
    assert_eq!(heard(&mut seen.reports).await, ("default/a".to_owned(), b"in between".to_vec()));
    assert!(!*refused.borrow_and_update());
    // Shut out, it says so, and goes on trying.
    world.revoked.lock().unwrap().insert(new_key);
    world.broker().port().publisher().disconnect_node("edge-1");
    timeout(PATIENCE, refused.wait_for(|refused| *refused)).await.unwrap().unwrap();
    world.revoked.lock().unwrap().clear();
    connected(&mut events).await;
    assert!(!*refused.borrow());
    link.shutdown().await;
}
