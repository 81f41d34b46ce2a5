//! Version 1 as bytes: fixed keys give fixed frames, for ever and on every target. Needs no heap.
//!
//! For a new version, `cargo test -p lichen-wire -- --ignored --nocapture print_golden` prints the lines of `golden.txt`.

use core::fmt::Write;

use sha2::{Digest, Sha256};

use crate::body::{Blob, Body, Capacity, Hello, SyncPoint};
use crate::codec::encode;
use crate::frame::{Header, open, seal};
use crate::join::{JoinRequest, Joiner, Token};
use crate::keys::NodeKey;
use crate::session::{AgentConfig, Config, Fixed, GatewayConfig, Limits, Session, Storage, Timing};

const TOKEN: &str =
    "abc123.0123456789abcdef.1111111111111111111111111111111111111111111111111111111111111111";

/// Is shown every piece of bytes with its name.
pub type Check<'a> = &'a mut dyn FnMut(&str, &[u8]);
/// Makes bytes and shows them.
pub type Test = fn(Check<'_>);

/// Every test, by name.
pub const TESTS: &[(&str, Test)] = &[
    ("bodies", bodies),
    ("a sealed frame", sealed_frame),
    ("a join", join),
    ("a renewal", renewal),
    ("a session", session::<Fixed<8, 640>, Fixed<8, 640>>),
];

/// Compares bytes with those that version 1 has under this name.
///
/// # Panics
/// If they differ.
pub fn check(name: &str, bytes: &[u8]) {
    let find = |line: &'static str| line.strip_prefix(name)?.strip_prefix(' ');
    let golden = include_str!("golden.txt").lines().find_map(find).unwrap_or("missing");
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or_default();
    let hex = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    assert!(hex.eq(golden.chars()), "{name} should be {golden}, not {bytes:02x?}");
}

fn bodies(check: Check<'_>) {
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
        ("leave", Body::Leave),
    ];
    for (name, body) in cases {
        let mut out = [0; 256];
        let len = encode(&body, &mut out).expect("it fits");
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
    let len = encode(&hello, &mut out).expect("it fits");
    check("hello", &out[..len]);
}

fn sealed_frame(check: Check<'_>) {
    let mut frame = [0; 64];
    let header = Header::Data { session: [1, 2, 3, 4], sequence: 5 };
    frame[14..19].copy_from_slice(b"hello");
    let len = seal(&[7; 32], &header, &mut frame, 5).expect("it fits");
    check("sealed", &frame[..len]);
    assert_eq!(Header::read(&frame[..len]), Ok(header));
    assert_eq!(open(&[7; 32], &header, &mut frame[..len]), Ok(&b"hello"[..]));
}

fn join(check: Check<'_>) {
    let token: Token = TOKEN.parse().expect("a token");
    let mut text = heapless::String::<128>::new();
    write!(text, "{token}").expect("it fits");
    assert_eq!(text, TOKEN);
    let joiner = Joiner::new(&token, "edge-1", b"csr", [2; 32], [3; 32]).expect("a node's name");
    let mut request = [0; 512];
    let len = joiner.write_request(&mut request).expect("it fits");
    check("join-request", &request[..len]);
    let request = JoinRequest::read(&request[..len]).expect("a request");
    let verified = request.verify(&token).expect("the token's holder");
    let mut reply = [0; 512];
    let (len, key) = verified.accept(b"certificate", b"ca", [4; 32], &mut reply).expect("it fits");
    check("join-reply", &reply[..len]);
    check("join-key", key.as_bytes());
}

fn renewal(check: Check<'_>) {
    let key = NodeKey::from_bytes([8; 32]);
    let ca: [u8; 32] = Sha256::digest(b"ca").into();
    let joiner = Joiner::renew(&key, ca, "edge-1", b"csr", 7, [2; 32], [3; 32]).expect("a node's name");
    let mut request = [0; 512];
    let len = joiner.write_request(&mut request).expect("it fits");
    check("renew-request", &request[..len]);
    let request = JoinRequest::read(&request[..len]).expect("a request");
    assert!(request.is_renewal() && request.serial() == 7);
    let verified = request.verify_renewal(&key, &ca).expect("the key's holder");
    let mut reply = [0; 512];
    let (len, new) = verified.accept(b"certificate", b"ca", [4; 32], &mut reply).expect("it fits");
    check("renew-reply", &reply[..len]);
    check("renew-key", new.as_bytes());
    assert_eq!(joiner.finish(&reply[..len]).map(|renewed| renewed.key), Ok(new));
}

/// A whole session with fixed seeds, frame by frame.
fn session<A: Storage, G: Storage>(check: Check<'_>) {
    let key = NodeKey::from_bytes([8; 32]);
    let mut agent = Session::<A>::new(
        Config::Agent(AgentConfig {
            node: "edge-1".try_into().expect("it fits"),
            key: key.clone(),
            boot_id: [6; 16],
            agent_version: "1.0.0".try_into().expect("it fits"),
            profile: "p".try_into().expect("it fits"),
            epoch_seen: 0,
            synced: None,
            limits: Limits::SERVER,
            timing: Timing::DEFAULT,
        }),
        [1; 32],
    );
    let mut gateway = Session::<G>::new(
        Config::Gateway(GatewayConfig {
            node: "edge-1".try_into().expect("it fits"),
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
    agent.report("Node", "edge-1", "u", &[1, 2, 3]).expect("the outbox is empty");
    let mut out = [0; 1024];
    let mut number = 0;
    loop {
        let before = number;
        while let Some(len) = agent.transmit(0, &mut out) {
            check(&frame_name("up", &mut number), &out[..len]);
            // One of two hellos is refused, since the session stands by then; whether it does shows in the end.
            let _ = gateway.receive(0, &mut out[..len], &mut |_| {});
        }
        while let Some(len) = gateway.transmit(0, &mut out) {
            check(&frame_name("down", &mut number), &out[..len]);
            let _ = agent.receive(0, &mut out[..len], &mut |_| {});
        }
        if number == before {
            break;
        }
    }
    assert!(agent.is_up() && gateway.is_up() && number >= 5);
}

fn frame_name(way: &str, number: &mut u32) -> heapless::String<32> {
    let mut name = heapless::String::new();
    write!(name, "session-{way}-{number}").expect("it fits");
    *number += 1;
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Growable;

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        for (_, test) in TESTS {
            test(&mut check);
        }
    }

    #[test]
    fn a_session_on_the_heap_sends_the_same_frames() {
        session::<Growable, Growable>(&mut check);
    }

    #[test]
    #[ignore = "prints the lines of golden.txt, for a new version"]
    fn print_golden() {
        for (_, test) in TESTS {
            test(&mut |name, bytes| {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                println!("{name} {hex}");
            });
        }
    }
}
