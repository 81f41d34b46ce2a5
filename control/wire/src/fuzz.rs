//! Every decoder of what a peer sends, over the corpus in `tests/corpus`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use lichen_fuzz::Fuzz;
use serde::Serialize;

use crate::FRAME_BYTES_MAX;
use crate::body::{Blob, Body, Capacity, Fragment, Head, Hello, Solicit, SyncPoint, Welcome};
use crate::codec::{self, Reader};
use crate::frame::{self, Header};
use crate::join::{JOIN_BYTES_MAX, JoinReply, JoinRequest, Joiner, Refusal, Token};
use crate::keys::NodeKey;
use crate::session::{AgentConfig, Config, GatewayConfig, Growable, Limits, Session, Timing};
use crate::stream::{ArtifactHead, ImageHead, StreamError, StreamErrorCode, StreamRequest};
use crate::topic::Topic;

const KEY: [u8; 32] = [7; 32];
const SECRET: &str = "0123456789abcdef";
const CA: &[u8] = b"the authority";

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = vec![0; FRAME_BYTES_MAX];
    let len = codec::encode(value, &mut out).unwrap();
    out.truncate(len);
    out
}

/// Whether the bytes are a value of the type; what they are must read back from its own encoding.
macro_rules! stable {
    ($bytes:expr, $type:ty) => {
        match codec::decode::<$type>($bytes) {
            Ok(value) => {
                let again = encoded(&value);
                assert_eq!(codec::decode::<$type>(&again), Ok(value));
                true
            }
            Err(_) => false,
        }
    };
}

fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let body = |name, body: Body<'_>| (name, encoded(&body));
    vec![
        body("snapshot-begin", Body::SnapshotBegin { version: 7, count: 3 }),
        body("item", Body::Item { kind: "Pod", key: "default/a", version: 8, body: Blob(b"\xa1\x61a\x01") }),
        body("remove", Body::Remove { kind: "Secret", key: "default/s", version: 9 }),
        body("snapshot-end", Body::SnapshotEnd { version: 7 }),
        body("synced", Body::Synced { version: 1 << 40 }),
        body("report", Body::Report { kind: "Node", key: "edge-1", uid: "u-1", body: Blob(b"\xa0") }),
        body("stream-open", Body::StreamOpen { id: 2, credit: 65_536, request: Blob(b"request") }),
        body("stream-data", Body::StreamData { id: 2, offset: 5, data: Blob(&[0; 40]) }),
        body("stream-credit", Body::StreamCredit { id: 2, limit: 1 << 20 }),
        body("stream-end", Body::StreamEnd { id: 2, error: None }),
        body("stream-failed", Body::StreamEnd { id: 2, error: Some("NotFound: no such pod") }),
        body("leave", Body::Leave),
    ]
}

#[test]
fn bodies_are_stable() {
    fuzz("body").examples(bodies()).run(|bytes| stable!(bytes, Body<'_>));
}

#[test]
fn handshakes_are_stable() {
    let capacity = Limits::SERVER.capacity();
    let hello = Hello {
        node: "edge-1",
        boot_id: Blob(&[9; 16]),
        agent_version: "0.1.0",
        profile: "48-x86_64",
        epoch_seen: 3,
        synced: Some(SyncPoint { incarnation: 5, version: 6 }),
        capacity,
    };
    let welcome = Welcome { epoch: 3, incarnation: 5, keepalive_ms: 20_000, capacity };
    let examples = [
        ("hello", encoded(&hello)),
        ("hello-first", encoded(&Hello { synced: None, profile: "", ..hello })),
        ("welcome", encoded(&welcome)),
        ("solicit", encoded(&Solicit { epoch: 4 })),
    ];
    fuzz("handshake")
        .examples(examples)
        .run(|bytes| stable!(bytes, Hello<'_>) | stable!(bytes, Welcome) | stable!(bytes, Solicit));
}

#[test]
fn frames_hold_what_was_sealed_or_nothing() {
    let header = Header::Data { session: [1, 2, 3, 4], sequence: 5 };
    let sealed = |header: Header, payload: &[u8]| {
        let mut out = vec![0; header.len()];
        out.extend_from_slice(payload);
        out.resize(out.len() + frame::TAG_BYTES, 0);
        frame::seal(&KEY, &header, &mut out, payload.len()).map(|_| out)
    };
    let examples = [
        ("hello", Header::Hello([1; 32])),
        ("welcome", Header::Welcome([2; 32])),
        ("solicit", Header::Solicit([3; 32])),
        ("data", header),
    ];
    let examples = examples.map(|(name, header)| (name, sealed(header, b"some payload").unwrap()));
    fuzz("frame").examples(examples).run(|bytes| {
        // As a payload it comes back, and not once a bit of the frame has changed.
        if let Ok(mut frame) = sealed(header, bytes) {
            let mut damaged = frame.clone();
            let at = bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>() % damaged.len();
            damaged[at] ^= 1;
            let read = Header::read(&damaged);
            assert!(read.is_err() || frame::open(&KEY, &read.unwrap(), &mut damaged).is_err(), "bit of {at}");
            assert_eq!(Header::read(&frame), Ok(header));
            assert_eq!(frame::open(&KEY, &header, &mut frame), Ok(bytes));
        }
        let Ok(header) = Header::read(bytes) else { return false };
        frame::open(&KEY, &header, &mut bytes.to_vec()).is_ok()
    });
}

fn token() -> Token {
    use sha2::Digest;
    Token::new("abcdef", SECRET, sha2::Sha256::digest(CA).into()).unwrap()
}

#[test]
fn join_messages_need_the_token() {
    let token = token();
    let joiner = Joiner::new(&token, "edge-1", b"certificate request", [1; 32], [2; 32]).unwrap();
    let mut request = vec![0; JOIN_BYTES_MAX];
    let len = joiner.write_request(&mut request).unwrap();
    request.truncate(len);
    let read = JoinRequest::read(&request).unwrap();
    let mut accepted = vec![0; JOIN_BYTES_MAX];
    let (len, _) = read.verify(&token).unwrap().accept(b"certificate", CA, [3; 32], &mut accepted).unwrap();
    accepted.truncate(len);
    let mut refused = vec![0; JOIN_BYTES_MAX];
    let len = read.refuse(Refusal::NameTaken, &mut refused).unwrap();
    refused.truncate(len);
    let (key, ca_digest) = (NodeKey::from_bytes(KEY), *token.ca_digest());
    let renewer = Joiner::renew(&key, ca_digest, "edge-1", b"request", 9, [4; 32], [5; 32]).unwrap();
    let mut renewal = vec![0; JOIN_BYTES_MAX];
    let len = renewer.write_request(&mut renewal).unwrap();
    renewal.truncate(len);
    let renewing = JoinRequest::read(&renewal).unwrap();
    let mut renewed = vec![0; JOIN_BYTES_MAX];
    let granted = renewing.verify_renewal(&key, &ca_digest).unwrap();
    let (len, _) = granted.accept(b"certificate", CA, [6; 32], &mut renewed).unwrap();
    renewed.truncate(len);
    let examples = [
        ("request", request.clone()),
        ("accepted", accepted.clone()),
        ("refused", refused.clone()),
        ("renewal", renewal.clone()),
        ("renewed", renewed.clone()),
    ];
    fuzz("join").examples(examples).run(|bytes| {
        // What is let in is what was sent: the MACs cover every field.
        let asked = JoinRequest::read(bytes);
        if let Ok(asked) = &asked
            && asked.verify(&token).is_ok()
        {
            assert_eq!(asked, &read);
        }
        if let Ok(asked) = &asked
            && asked.verify_renewal(&key, &ca_digest).is_ok()
        {
            assert_eq!(asked, &renewing);
        }
        for joined in [joiner.finish(bytes), renewer.finish(bytes)].into_iter().flatten() {
            assert_eq!((joined.ca, joined.certificate), (CA, &b"certificate"[..]));
        }
        let rest = bytes.get(1..).unwrap_or_default();
        asked.is_ok() | stable!(rest, JoinRequest<'_>) | stable!(rest, JoinReply<'_>)
    });
}

#[test]
fn texts_print_what_they_were_read_from() {
    let topics = ["lichen/v1/n/edge-1/up", "lichen/v1/n/edge-1/down", "lichen/v1/n/edge-1/presence"];
    let joins = ["lichen/v1/join/abcdef/up", "lichen/v1/join/abcdef/down"];
    let error = StreamError { code: StreamErrorCode::Unavailable, message: "later" };
    let mut examples =
        vec![("token".to_string(), token().to_string()), ("error".to_string(), error.to_string())];
    let numbered = |(index, topic): (usize, &&str)| (format!("topic-{index}"), topic.to_string());
    examples.extend(topics.iter().chain(&joins).enumerate().map(numbered));
    fuzz("text").examples(examples).run(|bytes| {
        let Ok(text) = core::str::from_utf8(bytes) else { return false };
        let token = text.parse::<Token>().ok();
        if let Some(token) = &token {
            assert_eq!(token.to_string().parse::<Token>().as_ref(), Ok(token));
        }
        let topic = Topic::parse(text);
        if let Some(topic) = &topic {
            let name = topic.name().unwrap();
            assert_eq!((name.as_str(), Topic::parse(&name)), (text, Some(*topic)));
        }
        let error = StreamError::parse(text);
        let printed: String = error.to_string();
        assert_eq!(StreamError::parse(&printed), error);
        token.is_some() || topic.is_some() || printed == text
    });
}

#[test]
fn stream_messages_are_stable() {
    let artifact = StreamRequest::Artifact { image: "hello:v1", profile: "48-x86_64", offset: 7 };
    let logs = StreamRequest::Logs {
        namespace: "default",
        pod: "a",
        uid: "u",
        container: "main",
        follow: true,
        tail_lines: Some(10),
        since_unix_ms: Some(-1),
        timestamps: false,
        previous: true,
        limit_bytes: None,
    };
    let head = ArtifactHead {
        manifest: [1; 32],
        component: [2; 32],
        sha256: [3; 32],
        len: 1 << 20,
        signature: Blob(&[4; 70]),
    };
    let mut written = vec![0; 2048];
    let len = head.write(&mut written).unwrap();
    written.truncate(len);
    let image = StreamRequest::Image { image: "web:v1", platform: "linux/arm64" };
    let blob = StreamRequest::Blob { sha256: [5; 32], offset: 7 };
    let image_head = ImageHead { manifest: [6; 32], len: 700 };
    let renew = StreamRequest::Renew { request: Blob(b"a renewal") };
    let examples = [
        ("artifact", encoded(&artifact)),
        ("logs", encoded(&logs)),
        ("head", written),
        ("image", encoded(&image)),
        ("blob", encoded(&blob)),
        ("image-head", encoded(&image_head)),
        ("renew", encoded(&renew)),
    ];
    fuzz("stream").examples(examples).run(|bytes| {
        let head = ArtifactHead::read(bytes);
        if let Ok(Some((head, len))) = &head {
            assert!(*len <= bytes.len());
            let mut out = vec![0; 4096];
            let len = head.write(&mut out).unwrap();
            assert_eq!(ArtifactHead::read(&out), Ok(Some((*head, len))));
            let _ = head.statement(core::str::from_utf8(&bytes[..bytes.len().min(300)]).unwrap_or_default());
        }
        matches!(head, Ok(Some(_))) | stable!(bytes, StreamRequest<'_>) | stable!(bytes, ImageHead)
    });
}

/// A session on both sides, as far as the agent's limits allow one.
fn connected(limits: Limits) -> [Session<Growable>; 2] {
    let (node, key) = (heapless::String::try_from("edge-1").unwrap(), NodeKey::from_bytes(KEY));
    let timing = Timing::DEFAULT;
    let agent = AgentConfig {
        node: node.clone(),
        key: key.clone(),
        boot_id: [1; 16],
        agent_version: heapless::String::new(),
        profile: heapless::String::new(),
        epoch_seen: 0,
        synced: None,
        limits,
        timing,
    };
    let gateway = GatewayConfig { node, key, epoch: 1, incarnation: 2, limits: Limits::SERVER, timing };
    let mut sides =
        [Session::new(Config::Agent(agent), [1; 32]), Session::new(Config::Gateway(gateway), [2; 32])];
    sides.iter_mut().for_each(|side| side.link_up(0));
    exchange(&mut sides);
    sides
}

/// Carries frames both ways until neither side has any, which must come soon.
fn exchange(sides: &mut [Session<Growable>; 2]) {
    let mut out = vec![0; FRAME_BYTES_MAX];
    for _ in 0..64 {
        let mut silent = true;
        for from in [0, 1] {
            let mut frames = 0;
            while let Some(len) = sides[from].transmit(0, &mut out) {
                silent = false;
                frames += 1;
                assert!(frames < 4096, "a side never stops sending");
                let _ = sides[1 - from].receive(0, &mut out[..len], &mut |_| {});
            }
        }
        if silent {
            return;
        }
    }
    panic!("the sides never fall silent");
}

/// The payload of a frame with these messages.
fn payload(messages: &[Vec<u8>], cut: Option<usize>) -> Vec<u8> {
    let mut out = encoded(&Head { fragments: messages.len() as u8, ..Head::default() });
    for message in messages {
        let data = &message[..cut.unwrap_or(message.len())];
        out.extend(encoded(&Fragment { more: cut.is_some(), data: Blob(data) }));
    }
    out
}

#[test]
fn a_peer_cannot_upset_a_session() {
    let bodies = bodies();
    let mut examples: Vec<(String, Vec<u8>)> = bodies
        .iter()
        .map(|(name, body)| (name.to_string(), payload(core::slice::from_ref(body), None)))
        .collect();
    let all: Vec<Vec<u8>> = bodies.iter().map(|(_, body)| body.clone()).collect();
    examples.push(("from-agent".to_string(), payload(&all[5..11], None)));
    examples.push(("from-gateway".to_string(), payload(&all[..5], None)));
    examples.push(("cut".to_string(), payload(&all[1..2], Some(5))));
    examples.push(("bye".to_string(), encoded(&Head { bye: true, ..Head::default() })));
    let asks = Head { answer: true, settled: 9, ..Head::default() };
    examples.push(("asks".to_string(), encoded(&asks)));
    fuzz("session").examples(examples).iterations(1_500).run(|bytes| {
        let mut reader = Reader::new(bytes, &mut []);
        let readable = reader.value::<Head>().is_ok();
        for side in [0, 1] {
            let mut sides = connected(Limits::SERVER);
            assert!(sides[side].is_up());
            let _ = sides[side].stream_open(b"request");
            let _ = sides[side].receive_opened(0, bytes, &mut |_| {});
            let _ = sides[side].stream_open(b"request");
            exchange(&mut sides);
        }
        readable
    });
}

#[test]
fn any_capacity_is_lived_with() {
    let example = |capacity: Capacity| {
        [capacity.fragment_bytes, capacity.window_fragments, capacity.message_bytes]
            .map(u32::to_be_bytes)
            .concat()
    };
    let examples = [
        ("server", example(Limits::SERVER.capacity())),
        ("small", example(Limits::SMALL.capacity())),
        ("nothing", vec![0; 12]),
        ("everything", vec![0xff; 12]),
    ];
    fuzz("capacity").examples(examples).iterations(500).run(|bytes| {
        let number = |at: usize| bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four));
        let (Some(fragment), Some(window), Some(message)) = (number(0), number(4), number(8)) else {
            return false;
        };
        let mut sides = connected(Limits {
            fragment_bytes_max: fragment,
            window_fragments_max: window,
            message_bytes_max: message,
            ..Limits::SERVER
        });
        let _ = sides[1].item("Pod", "default/a", 1, &[0; 2_000]);
        let _ = sides[0].report("Pod", "default/a", "u", &[0; 2_000]);
        let _ = sides[1].stream_open(b"request");
        exchange(&mut sides);
        true
    });
}
