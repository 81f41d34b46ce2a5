//! Who a client is, by its verified certificate, and which topics it reaches.

use std::fmt;
use std::sync::Arc;

use lichen_pki::{Digest, GATEWAY_USER, Identity, public_key_digest};
use lichen_wire::topic::{Channel, Topic};
use rustls::pki_types::CertificateDer;

type Admits = dyn Fn(&str, &Digest) -> bool + Send + Sync;

/// Which nodes a broker lets in: a certificate that verifies may be of a node that was removed since.
#[derive(Clone)]
pub struct Admit(Arc<Admits>);

impl Admit {
    /// Those of which this says so, given the node's name and its certificate's key pair
    /// (see [`lichen_pki::public_key_digest`]).
    pub fn by(admits: impl Fn(&str, &Digest) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(admits))
    }

    /// Every node of the cluster's authority.
    pub fn everyone() -> Self {
        Self::by(|_, _| true)
    }

    /// Whether a node with this key pair is let in.
    pub fn admits(&self, node: &str, public_key: &Digest) -> bool {
        (self.0)(node, public_key)
    }
}

impl fmt::Debug for Admit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admit(..)")
    }
}

/// The node and the key pair that a connection is of.
pub(super) struct Shown {
    node: String,
    public_key: Digest,
}

impl Shown {
    /// What a client has shown; none if it is no node.
    pub(super) fn of(
        certificates: Option<&[CertificateDer<'_>]>,
        principal: Option<&Principal>,
    ) -> Option<Self> {
        let Some(Principal::Node(node)) = principal else { return None };
        let public_key = public_key_digest(certificates?.first()?).ok()?;
        Some(Self { node: node.clone(), public_key })
    }

    /// Whether it still counts.
    pub(super) fn counts(&self, admit: &Admit) -> bool {
        admit.admits(&self.node, &self.public_key)
    }
}

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Principal {
    /// A node: it publishes to its uplink and presence and subscribes to its downlink.
    Node(String),
    /// A gateway: it may do anything.
    Gateway,
    /// A machine without a certificate: it reaches the topics of one join attempt, named by what it uses first.
    Joiner(Option<String>),
}

impl Principal {
    /// Tells who a client is; `None` if its certificate is good for nothing here.
    pub(super) fn of(certificates: Option<&[CertificateDer<'_>]>) -> Option<Self> {
        let Some(certificate) = certificates.and_then(|chain| chain.first()) else {
            return Some(Principal::Joiner(None));
        };
        let identity = Identity::from_certificate(certificate).ok()?;
        match identity.node() {
            Some(node) => Some(Principal::Node(node.to_owned())),
            None => (identity.user == GATEWAY_USER).then_some(Principal::Gateway),
        }
    }

    /// Whether it may publish to a topic.
    pub(super) fn may_publish(&mut self, topic: &str) -> bool {
        match (self, Topic::parse(topic)) {
            (Principal::Gateway, _) => true,
            (Principal::Node(own), Some(Topic::Node { node, channel })) => {
                own == node && channel != Channel::Down
            }
            (Principal::Joiner(own), Some(Topic::JoinUp { token_id })) => bind(own, token_id),
            _ => false,
        }
    }

    /// Whether it may subscribe to a filter.
    pub(super) fn may_subscribe(&mut self, filter: &str) -> bool {
        // A filter with wildcards is no topic of Lichen's, so only a gateway may use one.
        match (self, Topic::parse(filter)) {
            (Principal::Gateway, _) => true,
            (Principal::Node(own), Some(Topic::Node { node, channel })) => {
                own == node && channel == Channel::Down
            }
            (Principal::Joiner(own), Some(Topic::JoinDown { token_id })) => bind(own, token_id),
            _ => false,
        }
    }
}

fn bind(own: &mut Option<String>, token_id: &str) -> bool {
    own.get_or_insert_with(|| token_id.to_owned()) == token_id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_reaches_their_own_topics_only() {
        let node = || Principal::Node("a".into());
        let cases = [
            (node(), "lichen/v1/n/a/up", true, false),
            (node(), "lichen/v1/n/a/presence", true, false),
            (node(), "lichen/v1/n/a/down", false, true),
            (node(), "lichen/v1/n/b/up", false, false),
            (node(), "lichen/v1/n/b/down", false, false),
            (node(), "lichen/v1/n/+/down", false, false),
            (node(), "lichen/v1/n/a/#", false, false),
            (node(), "#", false, false),
            (node(), "lichen/v1/join/abc123/up", false, false),
            (Principal::Joiner(None), "lichen/v1/join/abc123/up", true, false),
            (Principal::Joiner(None), "lichen/v1/join/abc123/down", false, true),
            (Principal::Joiner(None), "lichen/v1/join/+/down", false, false),
            (Principal::Joiner(Some("abc123".into())), "lichen/v1/join/other1/down", false, false),
            (Principal::Joiner(None), "lichen/v1/n/a/down", false, false),
            (Principal::Gateway, "lichen/v1/n/+/up", true, true),
        ];
        for (mut who, topic, publish, subscribe) in cases {
            assert_eq!(who.clone().may_publish(topic), publish, "{who:?} publishes {topic}");
            assert_eq!(who.may_subscribe(topic), subscribe, "{who:?} subscribes {topic}");
        }
    }
}
