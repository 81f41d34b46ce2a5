//! Version 1 as bytes: fixed keys give fixed frames, for ever.
//!
//! With `GOLDEN=print` the lines of `golden.txt` are printed instead of compared, for a new version.

use lichen_wire::FRAME_BYTES_MAX;
use lichen_wire::body::{Blob, Body, Capacity, Hello, SyncPoint};
use lichen_wire::codec::encode;
use lichen_wire::frame::{Header, open, seal};
use lichen_wire::join::{JOIN_BYTES_MAX, JoinRequest, Joiner, Token};
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{AgentConfig, Config, GatewayConfig, Growable, Limits, Session, Timing};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[track_caller]
fn check(name: &str, bytes: &[u8]) {
    if std::env::var_os("GOLDEN").is_some_and(|v| v == "print") {
        println!("GOLDEN {name} {}", hex(bytes));
        return;
    }
    let golden = include_str!("golden.txt");
    let line = golden.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    assert_eq!(line, Some(hex(bytes).as_str()), "{name} {}", hex(bytes));
}

#[test]
fn bodies() {
    let cases = [
        ("snapshot-begin", Body::SnapshotBegin { version: 300, count: 2 }),
        ("item", Body::Item { kind: "Pod", key: "default/a", version: 7, body: Blob(&[1, 2, 3]) }),
        ("remove", Body::Remove { kind: "Pod", key: "default/a", version: 8 }),
        ("snapshot-end", Body::SnapshotEnd { version: 300 }),
        ("synced", Body::Synced { version: 301 }),
        ("report", Body::Report { kind: "Node", key: "edge-1", uid: "u", body: Blob(&[4]) }),
        ("stream-open", Body::StreamOpen { id: 3, credit: 65536, request: Blob(b"get") }),
        ("stream-data", Body::StreamData { id: 3, offset: 70000, data: Blob(b"data") }),
        ("stream-credit", Body::StreamCredit { id: 3, limit: 131072 }),
        ("stream-end", Body::StreamEnd { id: 3, error: Some("gone") }),
        ("stream-end-well", Body::StreamEnd { id: 3, error: None }),
    ];
    for (name, body) in cases {
        let mut out = [0; 256];
        let len = encode(&body, &mut out).unwrap();
        check(name, &out[..len]);
    }
    let hello = Hello {
        node: "edge-1",
        boot_id: Blob(&[5; 16]),
        agent_version: "1.0.0",
        profile: "p",
        epoch_seen: 2,
        synced: Some(SyncPoint { incarnation: 9, version: 300 }),
        capacity: Capacity { fragment_bytes: 512, window_fragments: 4, message_bytes: 1024 },
    };
    let mut out = [0; 256];
    let len = encode(&hello, &mut out).unwrap();
    check("hello", &out[..len]);
}

#[test]
fn sealed_frame() {
    let mut frame = [0; 64];
    let header = Header::Data { session: [1, 2, 3, 4], sequence: 5 };
    frame[14..19].copy_from_slice(b"hello");
    let len = seal(&[7; 32], &header, &mut frame, 5).unwrap();
    check("sealed", &frame[..len]);
    assert_eq!(Header::read(&frame[..len]), Ok(header));
    assert_eq!(open(&[7; 32], &header, &mut frame[..len]), Ok(&b"hello"[..]));
}

#[test]
fn join() {
    let token: Token = format!("abc123.0123456789abcdef.{}", "11".repeat(32)).parse().unwrap();
    assert_eq!(token.to_string(), format!("abc123.0123456789abcdef.{}", "11".repeat(32)));
    let joiner = Joiner::new(&token, "edge-1", b"csr", [2; 32], [3; 32]).unwrap();
    let mut request = [0; JOIN_BYTES_MAX];
    let len = joiner.write_request(&mut request).unwrap();
    check("join-request", &request[..len]);
    let verified = JoinRequest::read(&request[..len]).unwrap().verify(&token).unwrap();
    let mut reply = [0; JOIN_BYTES_MAX];
    let (len, key) = verified.accept(b"certificate", b"ca", [4; 32], &mut reply).unwrap();
    check("join-reply", &reply[..len]);
    check("join-key", key.as_bytes());
}

/// A whole session with fixed seeds, frame by frame.
#[test]
fn session() {
    let key = NodeKey::from_bytes([8; 32]);
    let mut agent = Session::<Growable>::new(
        Config::Agent(AgentConfig {
            node: "edge-1".try_into().unwrap(),
            key: key.clone(),
            boot_id: [6; 16],
            agent_version: "1.0.0".try_into().unwrap(),
            profile: "p".try_into().unwrap(),
            epoch_seen: 0,
            synced: None,
            limits: Limits::SERVER,
            timing: Timing::DEFAULT,
        }),
        [1; 32],
    );
    let mut gateway = Session::<Growable>::new(
        Config::Gateway(GatewayConfig {
            node: "edge-1".try_into().unwrap(),
            key,
            epoch: 1,
            incarnation: 9,
            limits: Limits::SERVER,
            timing: Timing::DEFAULT,
        }),
        [2; 32],
    );
    agent.link_up(0);
    gateway.link_up(0);
    gateway.solicit(0);
    agent.report("Node", "edge-1", "u", &[1, 2, 3]).unwrap();
    let mut out = vec![0; FRAME_BYTES_MAX];
    let mut number = 0;
    loop {
        let before = number;
        while let Some(len) = agent.transmit(0, &mut out) {
            check(&format!("session-up-{number}"), &out[..len]);
            let _ = gateway.receive(0, &mut out[..len], &mut |_| {});
            number += 1;
        }
        while let Some(len) = gateway.transmit(0, &mut out) {
            check(&format!("session-down-{number}"), &out[..len]);
            let _ = agent.receive(0, &mut out[..len], &mut |_| {});
            number += 1;
        }
        if number == before {
            break;
        }
    }
    assert!(agent.is_up() && gateway.is_up() && number >= 5);
}
