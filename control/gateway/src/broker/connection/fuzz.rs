//! Packets from clients, over the corpus in `tests/corpus`.

use bytes::BytesMut;
use lichen_fuzz::Fuzz;
use lichen_mqtt::packet::{SubscribeFilter, Unsubscribe};

use super::*;
use crate::broker::trie::Trie;

fn packet(packet: Packet) -> Vec<u8> {
    let mut out = BytesMut::new();
    packet.write(&mut out, usize::MAX).unwrap();
    out.to_vec()
}

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

#[test]
fn packets_are_read_or_refused() {
    let mut connect = Connect::new("edge-1");
    connect.keep_alive = 20;
    let plain = connect.clone();
    connect.last_will = Some(LastWill::new("lichen/v1/n/edge-1/presence", "gone", QoS::AtLeastOnce, false));
    connect.set_login("user", "password");
    let mut publish = Publish::new("lichen/v1/n/edge-1/up", QoS::AtLeastOnce, "payload");
    publish.pkid = 7;
    let mut subscribe = Subscribe::new("lichen/v1/n/edge-1/down", QoS::AtLeastOnce);
    subscribe.filters.push(SubscribeFilter::new("lichen/v1/n/edge-1/#".to_owned(), QoS::AtMostOnce));
    subscribe.pkid = 8;
    let mut unsubscribe = Unsubscribe::new("lichen/v1/n/edge-1/down");
    unsubscribe.pkid = 9;
    let examples = [
        ("connect", packet(Packet::Connect(plain))),
        ("connect-will", packet(Packet::Connect(connect))),
        ("publish", packet(Packet::Publish(publish))),
        ("publish-0", packet(Packet::Publish(Publish::new("a/b", QoS::AtMostOnce, "")))),
        ("subscribe", packet(Packet::Subscribe(subscribe))),
        ("unsubscribe", packet(Packet::Unsubscribe(unsubscribe))),
        ("puback", packet(Packet::PubAck(PubAck::new(7)))),
        ("pingreq", packet(Packet::PingReq)),
        ("disconnect", packet(Packet::Disconnect)),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    fuzz("mqtt").examples(examples).iterations(20_000).run(|bytes| {
        let mut reader = PacketReader::new(bytes, 1 << 20);
        let mut taken = false;
        while let Ok(packet) = runtime.block_on(reader.next()) {
            taken = true;
            match packet {
                Packet::Connect(connect) => {
                    let mut principal = Principal::Joiner(None);
                    admit(&connect, &mut principal, ConnectReturnCode::Success);
                }
                Packet::Publish(publish) => {
                    let _ =
                        valid_topic(&publish.topic) && Principal::Joiner(None).may_publish(&publish.topic);
                }
                Packet::Subscribe(subscribe) => {
                    for filter in &subscribe.filters {
                        let _ =
                            valid_filter(&filter.path) && Principal::Joiner(None).may_subscribe(&filter.path);
                    }
                }
                _ => {}
            }
        }
        taken
    });
}

#[test]
fn subscriptions_leave_nothing_behind() {
    let examples = [("one", "a/b"), ("wildcards", "a/+/c\n#\n+/+\na/#"), ("server", "$SYS/#\n+/x")];
    fuzz("filters").examples(examples).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let filters: Vec<&str> = text.split('\n').filter(|filter| valid_filter(filter)).collect();
        let mut trie = Trie::default();
        for (id, filter) in filters.iter().enumerate() {
            trie.insert(filter, id as SubscriberId, QoS::AtLeastOnce);
            if valid_topic(filter) {
                assert!(trie.matches(filter).contains_key(&(id as SubscriberId)), "{filter:?}");
            }
        }
        for (id, filter) in filters.iter().enumerate() {
            trie.remove(filter, id as SubscriberId);
        }
        assert!(trie.is_empty());
        !filters.is_empty()
    });
}
