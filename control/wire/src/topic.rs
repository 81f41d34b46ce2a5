//! The MQTT topics of a node and of a join attempt.
//!
//! A node has one uplink, one downlink and one presence topic; a join attempt has one topic each way, named
//! by the token's id. A node whose certificate no broker takes any more renews it over such topics too, under an id of
//! the same form that it makes up. Names are checked on the way in, so that no node name can reach into another's topics.

use core::fmt::{self, Write};

use heapless::String;

use crate::NODE_NAME_BYTES_MAX;

/// Longest topic that Lichen uses.
pub const TOPIC_BYTES_MAX: usize = NODE_NAME_BYTES_MAX + 32;

/// What every node's uplink matches; the gateway subscribes to it.
pub const ALL_UP: &str = "lichen/v1/n/+/up";
/// What every node's presence matches; the gateway subscribes to it.
pub const ALL_PRESENCE: &str = "lichen/v1/n/+/presence";
/// What every join request matches; the gateway subscribes to it.
pub const ALL_JOIN_UP: &str = "lichen/v1/join/+/up";

/// Presence payload of a node whose link has just come up.
pub const PRESENCE_UP: &[u8] = b"up";
/// Presence payload of a last will or a clean goodbye. It is a hint: only sealed frames prove anything.
pub const PRESENCE_DOWN: &[u8] = b"down";

/// Which way, or for what, a node's topic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// From the node to the gateway.
    Up,
    /// From the gateway to the node.
    Down,
    /// The node's presence, where its last will appears.
    Presence,
}

/// A topic of Lichen's, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic<'a> {
    /// A node's topic.
    Node {
        /// The node's name.
        node: &'a str,
        /// Which of its topics.
        channel: Channel,
    },
    /// From a machine that wants to join, or a node to renew what it has.
    JoinUp {
        /// The token's id, or that of the attempt.
        token_id: &'a str,
    },
    /// To a machine that wants to join, or a node that renews what it has.
    JoinDown {
        /// The token's id, or that of the attempt.
        token_id: &'a str,
    },
}

/// A topic's text.
pub type TopicName = String<TOPIC_BYTES_MAX>;

impl<'a> Topic<'a> {
    /// Takes a topic apart; `None` if it is not one of Lichen's or names something invalid.
    pub fn parse(topic: &'a str) -> Option<Self> {
        let rest = topic.strip_prefix("lichen/v1/")?;
        let mut parts = rest.split('/');
        let parsed = match (parts.next()?, parts.next()?, parts.next()?) {
            ("n", node, last) if valid_node(node) => Topic::Node {
                node,
                channel: match last {
                    "up" => Channel::Up,
                    "down" => Channel::Down,
                    "presence" => Channel::Presence,
                    _ => return None,
                },
            },
            ("join", token_id, "up") if valid_token_id(token_id) => Topic::JoinUp { token_id },
            ("join", token_id, "down") if valid_token_id(token_id) => Topic::JoinDown { token_id },
            _ => return None,
        };
        parts.next().is_none().then_some(parsed)
    }

    /// The topic's text; `None` if the node name or token id in it is invalid.
    pub fn name(&self) -> Option<TopicName> {
        let valid = match self {
            Topic::Node { node, .. } => valid_node(node),
            Topic::JoinUp { token_id } | Topic::JoinDown { token_id } => valid_token_id(token_id),
        };
        let mut name = TopicName::new();
        (valid && write!(name, "{self}").is_ok()).then_some(name)
    }
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Topic::Node { node, channel } => {
                let last = match channel {
                    Channel::Up => "up",
                    Channel::Down => "down",
                    Channel::Presence => "presence",
                };
                write!(f, "lichen/v1/n/{node}/{last}")
            }
            Topic::JoinUp { token_id } => write!(f, "lichen/v1/join/{token_id}/up"),
            Topic::JoinDown { token_id } => write!(f, "lichen/v1/join/{token_id}/down"),
        }
    }
}

/// Whether a node may have this name: a DNS subdomain that fits the wire.
pub fn valid_node(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NODE_NAME_BYTES_MAX
        && name.split('.').all(|label| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
        })
}

/// Whether a join token may have this id: six lower-case letters or digits, as Kubernetes' own have.
pub fn valid_token_id(id: &str) -> bool {
    id.len() == 6 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(topic: &str, expect: Option<Topic<'_>>) {
        assert_eq!(Topic::parse(topic), expect, "{topic}");
        if let Some(parsed) = expect {
            assert_eq!(parsed.name().as_deref(), Some(topic));
        }
    }

    #[test]
    fn parses_what_it_prints_and_nothing_else() {
        check("lichen/v1/n/a.b-c/up", Some(Topic::Node { node: "a.b-c", channel: Channel::Up }));
        check("lichen/v1/n/edge-1/down", Some(Topic::Node { node: "edge-1", channel: Channel::Down }));
        check("lichen/v1/n/e/presence", Some(Topic::Node { node: "e", channel: Channel::Presence }));
        check("lichen/v1/join/abc123/up", Some(Topic::JoinUp { token_id: "abc123" }));
        check("lichen/v1/join/abc123/down", Some(Topic::JoinDown { token_id: "abc123" }));
        for bad in [
            "",
            "lichen/v1",
            "lichen/v2/n/a/up",
            "lichen/v1/n//up",
            "lichen/v1/n/+/up",
            "lichen/v1/n/#",
            "lichen/v1/n/A/up",
            "lichen/v1/n/a/up/",
            "lichen/v1/n/a/up/x",
            "lichen/v1/n/a/other",
            "lichen/v1/n/-a/up",
            "lichen/v1/n/a..b/up",
            "lichen/v1/join/abc/up",
            "lichen/v1/join/ABC123/up",
        ] {
            check(bad, None);
        }
        assert_eq!(Topic::Node { node: "a/../b", channel: Channel::Up }.name(), None);
        assert_eq!(Topic::JoinUp { token_id: "+" }.name(), None);
    }
}
