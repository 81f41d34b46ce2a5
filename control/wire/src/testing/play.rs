//! What a run is made of: its script and outcome, bodies that anyone can check, and events as seen.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Rng;
use crate::body::SyncPoint;
use crate::keys::NodeKey;
use crate::session::{
    AgentConfig, Config, Event, GatewayConfig, Limits, ReportId, Session, Storage, StreamId, Timing,
};

/// What happens in a run, each with so much weight.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// How many steps to play before healing.
    pub steps: u64,
    /// Longest time between two steps.
    pub step_max_ms: u64,
    /// Objects that exist at most.
    pub objects: u64,
    /// Longest object or report.
    pub body_bytes_max: u64,
    /// Longest stream.
    pub stream_bytes_max: u64,
    /// In how many of a thousand steps a side's connection is cut.
    pub cuts_permille: u64,
    /// In how many of a thousand steps the agent restarts.
    pub agent_restarts_permille: u64,
    /// In how many of a thousand steps a gateway of a higher epoch takes over.
    pub takeovers_permille: u64,
    /// How long to wait for agreement once healed.
    pub settle_ms: u64,
    /// Bounds of the agent's session.
    pub limits: Limits,
}

impl Script {
    /// A bit of everything.
    pub const USUAL: Script = Script {
        steps: 400,
        step_max_ms: 200,
        objects: 12,
        body_bytes_max: 70_000,
        stream_bytes_max: 200_000,
        cuts_permille: 10,
        agent_restarts_permille: 4,
        takeovers_permille: 4,
        settle_ms: 180_000,
        limits: Limits::SERVER,
    };
}

/// What a run came to, to see that it did what it was meant to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Sessions that stood.
    pub sessions: u64,
    /// Of these, how many went on with deltas.
    pub resumed: u64,
    /// Reports that the gateway got.
    pub reports: u64,
    /// Streams that were read to their end.
    pub streams: u64,
    /// Frames that a side refused.
    pub refused: u64,
}

pub(super) const KIND: &str = "Thing";
pub(super) const INCARNATION: u64 = 7;

/// What a body for this number reads like; anyone can check it.
pub(super) fn body(key: &str, number: u64, most: u64) -> Vec<u8> {
    let mut rng = Rng::new(number ^ (key.len() as u64) << 32);
    let mut bytes = number.to_be_bytes().to_vec();
    let len = if rng.percent(10) { rng.below(most) } else { rng.below(most.min(200)) };
    bytes.extend((0..len).map(|i| (i * 7 + number) as u8));
    bytes
}

fn check(key: &str, bytes: &[u8], most: u64) -> u64 {
    let number = bytes.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
    assert_eq!(bytes, body(key, number, most), "{key} was changed on the way");
    number
}

fn stream_byte(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

pub(super) fn bytes_until(at: u64, end: u64, most: u64) -> Vec<u8> {
    (at..end.min(at + most)).map(stream_byte).collect()
}

/// What a session is told.
pub(super) enum Input {
    Frame(Vec<u8>),
    Down,
    Tick,
}

impl Input {
    /// Tells it, and says whether it was refused.
    pub(super) fn give<S: Storage>(
        self,
        session: &mut Session<S>,
        now_ms: u64,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> bool {
        match self {
            Input::Frame(mut frame) => return session.receive(now_ms, &mut frame, sink).is_err(),
            Input::Down => session.link_down(now_ms, sink),
            Input::Tick => session.tick(now_ms, sink),
        }
        false
    }
}

/// An event with what it borrows copied, and its body checked.
pub(super) enum Seen {
    Connected(Option<SyncPoint>),
    Lost,
    Begin,
    Item(String, u64),
    Remove(String),
    End,
    Report(ReportId, String, u64),
    Opened(StreamId, String),
    Data(StreamId, Vec<u8>),
    Ended(StreamId, Option<String>),
    Other,
}

impl Seen {
    pub(super) fn from(event: Event<'_>, most: u64) -> Self {
        match event {
            Event::NodeConnected(hello) => Seen::Connected(hello.synced),
            Event::GatewayConnected(_) => Seen::Connected(None),
            Event::Lost(_) => Seen::Lost,
            Event::SnapshotBegin { .. } => Seen::Begin,
            Event::Item { key, body, .. } => Seen::Item(key.to_owned(), check(key, body, most)),
            Event::Remove { key, .. } => Seen::Remove(key.to_owned()),
            Event::SnapshotEnd { .. } => Seen::End,
            Event::Report { id, key, body, .. } => Seen::Report(id, key.to_owned(), check(key, body, most)),
            Event::StreamOpened { id, request } => {
                Seen::Opened(id, core::str::from_utf8(request).expect("text").to_string())
            }
            Event::StreamData { id, data } => Seen::Data(id, data.to_vec()),
            Event::StreamEnded { id, error } => Seen::Ended(id, error.map(ToOwned::to_owned)),
            Event::EpochRefused { .. }
            | Event::Synced { .. }
            | Event::Leave
            | Event::Room
            | Event::StreamWritable { .. } => Seen::Other,
        }
    }
}

pub(super) fn agent_config(
    script: &Script,
    epoch_seen: u64,
    synced: Option<SyncPoint>,
    boot: [u8; 32],
) -> Config {
    let mut boot_id = [0; 16];
    boot_id.copy_from_slice(&boot[..16]);
    Config::Agent(AgentConfig {
        node: text("edge-1"),
        key: NodeKey::from_bytes([3; 32]),
        boot_id,
        agent_version: text("1.0.0"),
        profile: text("test"),
        epoch_seen,
        synced,
        limits: script.limits,
        timing: Timing::DEFAULT,
    })
}

pub(super) fn gateway_config(epoch: u64) -> Config {
    Config::Gateway(GatewayConfig {
        node: text("edge-1"),
        key: NodeKey::from_bytes([3; 32]),
        epoch,
        incarnation: INCARNATION,
        limits: Limits::SERVER,
        timing: Timing::DEFAULT,
    })
}

fn text<const N: usize>(text: &str) -> heapless::String<N> {
    text.try_into().expect("it fits")
}
