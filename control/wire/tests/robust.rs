//! No bytes make a decoder panic, and none that were not sealed by a key's holder do anything.

use lichen_wire::FRAME_BYTES_MAX;
use lichen_wire::body::{Blob, Body, Fragment, Head, Hello, Solicit, Welcome};
use lichen_wire::codec::{decode, encode};
use lichen_wire::frame::Header;
use lichen_wire::join::{JoinReply, JoinRequest, Joiner, Token};
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{AgentConfig, Config, GatewayConfig, Growable, Limits, Session, Timing};
use lichen_wire::topic::Topic;
use proptest::prelude::*;

fn agent() -> Session<Growable> {
    let config = AgentConfig {
        node: "edge-1".try_into().unwrap(),
        key: NodeKey::from_bytes([8; 32]),
        boot_id: [6; 16],
        agent_version: "1.0.0".try_into().unwrap(),
        profile: "p".try_into().unwrap(),
        epoch_seen: 0,
        synced: None,
        limits: Limits::SERVER,
        timing: Timing::DEFAULT,
    };
    Session::new(Config::Agent(config), [1; 32])
}

fn gateway() -> Session<Growable> {
    let config = GatewayConfig {
        node: "edge-1".try_into().unwrap(),
        key: NodeKey::from_bytes([8; 32]),
        epoch: 1,
        incarnation: 9,
        limits: Limits::SERVER,
        timing: Timing::DEFAULT,
    };
    Session::new(Config::Gateway(config), [2; 32])
}

fn token() -> Token {
    Token::new("abc123", "0123456789abcdef", [1; 32]).unwrap()
}

fn read_everything(bytes: &[u8]) {
    let _ = decode::<Body<'_>>(bytes);
    let _ = decode::<Hello<'_>>(bytes);
    let _ = decode::<Welcome>(bytes);
    let _ = decode::<Solicit>(bytes);
    let _ = decode::<Head>(bytes);
    let _ = decode::<Fragment<'_>>(bytes);
    let _ = decode::<JoinReply<'_>>(bytes);
    let _ = Header::read(bytes);
    let key = NodeKey::from_bytes([8; 32]);
    let _ = JoinRequest::read(bytes).map(|request| {
        assert!(request.verify(&token()).is_err());
        assert!(request.verify_renewal(&key, &[1; 32]).is_err());
    });
    let (token, csr) = (token(), [1, 2, 3]);
    assert!(Joiner::new(&token, "edge-1", &csr, [2; 32], [3; 32]).unwrap().finish(bytes).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        read_everything(&bytes);
        let mut frame = bytes.clone();
        prop_assert!(agent().receive(0, &mut frame, &mut |_| panic!("an event")).is_err());
        let mut frame = bytes;
        prop_assert!(gateway().receive(0, &mut frame, &mut |_| panic!("an event")).is_err());
    }

    #[test]
    fn arbitrary_text_is_read_or_refused(text in "\\PC*") {
        if let Ok(token) = text.parse::<Token>() {
            prop_assert_eq!(token.to_string(), text.trim().to_ascii_lowercase());
        }
        if let Some(topic) = Topic::parse(&text) {
            prop_assert_eq!(topic.to_string(), text);
        }
    }

    #[test]
    fn damaged_messages_are_read_or_refused(
        number in any::<u64>(), body in prop::collection::vec(any::<u8>(), 0..64),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in any::<prop::sample::Index>(),
    ) {
        let bodies = [
            Body::Item { kind: "Pod", key: "default/a", version: number, body: Blob(&body) },
            Body::Report { kind: "Pod", key: "a", uid: "u", body: Blob(&body) },
            Body::StreamData { id: 1, offset: number, data: Blob(&body) },
            Body::StreamEnd { id: 1, error: Some("gone") },
        ];
        for body in bodies {
            let mut out = [0; 256];
            let len = encode(&body, &mut out).unwrap();
            prop_assert_eq!(decode::<Body<'_>>(&out[..len]).unwrap(), body);
            for (index, value) in &flips {
                out[index.index(len)] ^= value;
            }
            read_everything(&out[..len]);
            read_everything(&out[..cut.index(len)]);
        }
    }

    #[test]
    fn damaged_frames_of_a_real_session_do_nothing(
        flip in any::<prop::sample::Index>(), value in 1u8.., cut in any::<prop::sample::Index>(),
    ) {
        let (mut agent, mut gateway) = (agent(), gateway());
        agent.link_up(0);
        gateway.link_up(0);
        gateway.solicit(0);
        agent.report("Node", "edge-1", "", &[1, 2, 3]).unwrap();
        let mut out = vec![0; FRAME_BYTES_MAX];
        for _ in 0..4 {
            for up in [true, false] {
                let (from, to) = if up { (&mut agent, &mut gateway) } else { (&mut gateway, &mut agent) };
                while let Some(len) = from.transmit(0, &mut out) {
                    let mut bad = out[..len].to_vec();
                    bad[flip.index(len)] ^= value;
                    prop_assert!(to.receive(0, &mut bad, &mut |_| panic!("an event")).is_err());
                    let mut short = out[..cut.index(len)].to_vec();
                    prop_assert!(to.receive(0, &mut short, &mut |_| panic!("an event")).is_err());
                    let _ = to.receive(0, &mut out[..len], &mut |_| {});
                }
            }
        }
        prop_assert!(agent.is_up() && gateway.is_up());
    }
}
