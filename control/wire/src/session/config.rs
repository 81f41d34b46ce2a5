//! How a session is set up, and every bound it keeps.

use heapless::String;

use crate::NODE_NAME_BYTES_MAX;
use crate::body::{Capacity, SyncPoint};
use crate::keys::NodeKey;

/// The bounds of one session. What storage cannot hold is refused earlier, whatever these say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most messages that wait in the outbox.
    pub outbox_entries_max: usize,
    /// Most bytes that wait in the outbox.
    pub outbox_bytes_max: usize,
    /// Most fragments that are sent and not acknowledged.
    pub window_fragments_max: u32,
    /// Most bytes that are sent and not acknowledged.
    pub window_bytes_max: usize,
    /// Most reports that are acknowledged and not yet settled; reporting pauses when there are more.
    pub unsettled_reports_max: usize,
    /// Most bytes of messages in one frame.
    pub fragment_bytes_max: u32,
    /// Largest message, in both directions.
    pub message_bytes_max: u32,
    /// Most streams at once, whoever opened them.
    pub streams_max: usize,
    /// Most bytes of a stream that wait to be sent.
    pub stream_send_bytes_max: usize,
    /// How many bytes of a stream this side takes before it grants more.
    pub stream_credit_bytes: u64,
}

impl Limits {
    /// For agents and gateways on ordinary machines.
    pub const SERVER: Limits = Limits {
        outbox_entries_max: 16_384,
        outbox_bytes_max: 32 << 20,
        window_fragments_max: 64,
        window_bytes_max: 1 << 20,
        unsettled_reports_max: 256,
        fragment_bytes_max: 32 << 10,
        message_bytes_max: 4 << 20,
        streams_max: 64,
        stream_send_bytes_max: 128 << 10,
        stream_credit_bytes: 256 << 10,
    };

    /// For a microcontroller with tens of KiB of RAM.
    pub const SMALL: Limits = Limits {
        outbox_entries_max: 8,
        outbox_bytes_max: 4 << 10,
        window_fragments_max: 4,
        window_bytes_max: 2 << 10,
        unsettled_reports_max: 8,
        fragment_bytes_max: 512,
        message_bytes_max: 512,
        streams_max: 2,
        stream_send_bytes_max: 512,
        stream_credit_bytes: 512,
    };

    pub(crate) fn capacity(&self) -> Capacity {
        Capacity {
            fragment_bytes: self.fragment_bytes_max,
            window_fragments: self.window_fragments_max,
            message_bytes: self.message_bytes_max,
        }
    }
}

/// The times that a session keeps, all in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// First wait for an answer to a hello; it doubles up to `hello_retry_max_ms`.
    pub hello_retry_ms: u64,
    /// Longest wait for an answer to a hello.
    pub hello_retry_max_ms: u64,
    /// Within this time, at random, an agent answers a solicitation, so that a fleet does not answer at once.
    pub solicit_jitter_ms: u64,
    /// First wait for an acknowledgement, before a round trip has been measured.
    pub retransmit_ms: u64,
    /// Shortest wait for an acknowledgement.
    pub retransmit_min_ms: u64,
    /// Longest wait for an acknowledgement.
    pub retransmit_max_ms: u64,
    /// How often a silent agent makes itself heard. The gateway's value counts; it tells the agent.
    pub keepalive_ms: u32,
    /// How long without a frame from the other side until the session is lost.
    pub silence_max_ms: u64,
    /// How long the gateway waits for an answer to a probe.
    pub probe_ms: u64,
}

impl Timing {
    /// What agents and gateways use unless told otherwise.
    pub const DEFAULT: Timing = Timing {
        hello_retry_ms: 1_000,
        hello_retry_max_ms: 30_000,
        solicit_jitter_ms: 1_000,
        retransmit_ms: 1_000,
        retransmit_min_ms: 200,
        retransmit_max_ms: 15_000,
        keepalive_ms: 20_000,
        silence_max_ms: 65_000,
        probe_ms: 4_000,
    };
}

/// What an agent brings to its session.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The node's name.
    pub node: String<NODE_NAME_BYTES_MAX>,
    /// The key agreed at join.
    pub key: NodeKey,
    /// Fresh at every start of the agent.
    pub boot_id: [u8; 16],
    /// The agent's version.
    pub agent_version: String<32>,
    /// The engine profile that artifacts must be compiled for; empty if there is none.
    pub profile: String<160>,
    /// The highest owner epoch that the agent has accepted, from its checkpoint.
    pub epoch_seen: u64,
    /// How far the agent has the desired state, from its checkpoint.
    pub synced: Option<SyncPoint>,
    /// The bounds.
    pub limits: Limits,
    /// The times.
    pub timing: Timing,
}

/// What a gateway brings to a node's session.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The node's name.
    pub node: String<NODE_NAME_BYTES_MAX>,
    /// The key agreed at join.
    pub key: NodeKey,
    /// The owner epoch that this gateway holds.
    pub epoch: u64,
    /// The incarnation that versions of the desired state count in.
    pub incarnation: u64,
    /// The bounds.
    pub limits: Limits,
    /// The times.
    pub timing: Timing,
}

/// Which side of a session this is.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "without a heap there is nowhere to box the larger one")]
pub enum Config {
    /// The node's side.
    Agent(AgentConfig),
    /// The control plane's side.
    Gateway(GatewayConfig),
}
