//! The session between a node and the gateway that owns it: sans-IO, for both roles.
//!
//! The owner feeds a [`Session`] with frames and time, and takes frames and events from it:
//!
//! - [`Session::link_up`] and [`Session::link_down`] when the carrier connects and disconnects;
//! - [`Session::receive`] for each frame, [`Session::tick`] when [`Session::next_timeout`] has passed;
//! - [`Session::transmit`] until it returns `None`, after any other call.
//!
//! What it promises: every report is handed to the gateway at least once, in order for each object, until the
//! gateway has settled it, across losses, restarts of the gateway and sessions; messages of one session arrive
//! in order and without gaps; streams are byte-exact or end with the session; a gateway of an older epoch, a
//! replayed or forged frame and a frame of another node change nothing.
//!
//! Deliberately absent: clocks, randomness, sockets, and persistence. What must survive a restart of the agent
//! (the highest epoch, how far the desired state is) is told and taken back through [`AgentConfig`].

mod channel;
mod config;
mod error;
mod event;
mod handshake;
mod receive;
mod storage;
mod streams;
mod transmit;

pub use config::{AgentConfig, Config, GatewayConfig, Limits, Timing};
pub use error::{ReceiveError, SendError};
pub use event::{Event, LostReason, ReportId, StreamId};
#[cfg(any(feature = "alloc", test))]
pub use storage::Growable;
pub use storage::{Bytes, Fixed, List, Storage};
pub use streams::STREAM_ERROR_BYTES_MAX;

use channel::{Channel, Class, ENCODING_BYTES_MAX, tag};
use handshake::{Asking, Keys, Nonces, Pending};
use streams::Streams;

use crate::body::{Blob, Body, SyncPoint};
use crate::frame::Nonce;
use crate::keys::NodeKey;

/// One side of the session between a node and its gateway.
pub struct Session<S: Storage> {
    config: Config,
    /// Gateway: the key that the node was given last and has not used yet.
    next_key: Option<NodeKey>,
    nonces: Nonces,
    linked: bool,
    asking: Asking,
    pending: Option<Pending<S::Bytes>>,
    live: Option<Live>,
    channel: Channel<S>,
    streams: Streams<S>,
    /// Counts sessions, so that a late settlement never hits a report of a later one.
    generation: u64,
    /// Up to which fragment the gateway has made reports durable.
    settled: u64,
    solicit_due: bool,
    solicited_ms: Option<u64>,
    /// Under these keys a goodbye is still to be sent.
    goodbye: Option<Keys>,
}

/// An established session.
struct Live {
    keys: Keys,
    hello_nonce: Nonce,
    incarnation: u64,
    keepalive_ms: u64,
    /// Agent: whether the gateway has answered under the new keys, and until when it may take.
    confirmed: bool,
    confirm_by_ms: u64,
    heard_ms: u64,
    sent_ms: u64,
    /// A frame is due even if it carries no message.
    frame_due: bool,
    /// The next frame asks for an answer.
    ask: bool,
    /// Gateway: until when a probe must be answered.
    probe_by_ms: Option<u64>,
    /// Agent: when to ask after reports that are not settled.
    settlement_ask_ms: Option<u64>,
}

/// Number of low bits of a report's id that hold its fragment's number; the session's count is above them.
const REPORT_NUMBER_BITS: u32 = 40;

impl<S: Storage> Session<S> {
    /// Makes one side of a session. `seed` must be fresh random bytes: nonces are drawn from it.
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        let (agent, limits, timing) = match &config {
            Config::Agent(c) => (true, c.limits, c.timing),
            Config::Gateway(c) => (false, c.limits, c.timing),
        };
        Self {
            config,
            next_key: None,
            nonces: Nonces::new(seed),
            linked: false,
            asking: Asking::default(),
            pending: None,
            live: None,
            channel: Channel::new(limits, timing),
            streams: Streams::new(agent, limits),
            generation: 0,
            settled: 0,
            solicit_due: false,
            solicited_ms: None,
            goodbye: None,
        }
    }

    /// How the session was set up, with what an agent has learned since: `epoch_seen` and `synced`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Gateway: the node was given this key. The present one counts until the node has proved that it holds the new one,
    /// which [`Session::config`] then has.
    pub fn offer_key(&mut self, key: NodeKey) {
        self.next_key = Some(key);
    }

    /// Agent: from now on this key counts. A session that stands ends with a goodbye, as after [`Session::close`].
    pub fn replace_key(&mut self, key: NodeKey, sink: &mut dyn FnMut(Event<'_>)) {
        self.close(sink);
        if let Config::Agent(config) = &mut self.config {
            config.key = key;
        }
    }

    fn timing(&self) -> Timing {
        match &self.config {
            Config::Agent(c) => c.timing,
            Config::Gateway(c) => c.timing,
        }
    }

    fn limits(&self) -> Limits {
        match &self.config {
            Config::Agent(c) => c.limits,
            Config::Gateway(c) => c.limits,
        }
    }

    fn identity(&self) -> (&NodeKey, &str) {
        match &self.config {
            Config::Agent(c) => (&c.key, &c.node),
            Config::Gateway(c) => (&c.key, &c.node),
        }
    }

    /// The carrier is connected and subscribed. An agent says hello.
    pub fn link_up(&mut self, now_ms: u64) {
        self.linked = true;
        if matches!(self.config, Config::Agent(_)) {
            self.asking.wait_ms = self.timing().hello_retry_ms;
            self.asking.due = Some(now_ms);
        }
    }

    /// The carrier lost its connection. Streams end; reports are kept.
    pub fn link_down(&mut self, now_ms: u64, sink: &mut dyn FnMut(Event<'_>)) {
        self.linked = false;
        self.pending = None;
        self.goodbye = None;
        self.lose(now_ms, LostReason::LinkDown, sink);
        self.asking = Asking::default();
    }

    /// Whether the session stands: both sides have proved themselves.
    pub fn is_up(&self) -> bool {
        self.live.is_some()
    }

    /// When the other side last proved that it is there; none while no session stands.
    pub fn heard_ms(&self) -> Option<u64> {
        self.live.as_ref().map(|live| live.heard_ms)
    }

    /// Agent: how far the desired state has arrived.
    pub fn synced(&self) -> Option<SyncPoint> {
        match &self.config {
            Config::Agent(c) => c.synced,
            Config::Gateway(_) => None,
        }
    }

    /// The owner epoch: the gateway's own, or the highest that the agent has accepted.
    pub fn epoch(&self) -> u64 {
        match &self.config {
            Config::Agent(c) => c.epoch_seen,
            Config::Gateway(c) => c.epoch,
        }
    }

    /// Agent: queues a report until the gateway says that it is durable. A queued report of the same kind, key
    /// and UID that is not under way yet is replaced.
    pub fn report(&mut self, kind: &str, key: &str, uid: &str, body: &[u8]) -> Result<(), SendError> {
        if !matches!(self.config, Config::Agent(_)) {
            return Err(SendError::Role);
        }
        let hint = kind.len() + key.len() + uid.len() + body.len() + ENCODING_BYTES_MAX;
        let report = Body::Report { kind, key, uid, body: Blob(body) };
        self.channel.queue(Class::Report(tag(&[kind, key, uid])), &report, hint)
    }

    /// Gateway: this report and all before it are durable.
    pub fn settle(&mut self, report: ReportId) {
        let number = report.0 & ((1 << REPORT_NUMBER_BITS) - 1);
        if report.0 >> REPORT_NUMBER_BITS == self.generation
            && number > self.settled
            && let Some(live) = &mut self.live
        {
            self.settled = number;
            live.frame_due = true;
        }
    }

    /// Gateway: begins a snapshot; desired state that still waits to be sent is dropped.
    pub fn snapshot_begin(&mut self, version: u64, count: u32) -> Result<(), SendError> {
        if self.live.is_some() {
            self.channel.drop_desired();
        }
        self.desired(None, &Body::SnapshotBegin { version, count }, 0)
    }

    /// Gateway: an object as it should be. One of the same kind and key that still waits is replaced.
    pub fn item(&mut self, kind: &str, key: &str, version: u64, body: &[u8]) -> Result<(), SendError> {
        let item = Body::Item { kind, key, version, body: Blob(body) };
        self.desired(Some(tag(&[kind, key])), &item, kind.len() + key.len() + body.len())
    }

    /// Gateway: an object that should no longer be. An item of the same kind and key that still waits is replaced.
    pub fn remove(&mut self, kind: &str, key: &str, version: u64) -> Result<(), SendError> {
        let remove = Body::Remove { kind, key, version };
        self.desired(Some(tag(&[kind, key])), &remove, kind.len() + key.len())
    }

    /// Gateway: the snapshot is complete.
    pub fn snapshot_end(&mut self, version: u64) -> Result<(), SendError> {
        self.desired(None, &Body::SnapshotEnd { version }, 0)
    }

    /// Gateway: all deltas up to this version were given.
    pub fn mark_synced(&mut self, version: u64) -> Result<(), SendError> {
        self.desired(None, &Body::Synced { version }, 0)
    }

    /// Gateway: tells the node to leave the cluster.
    pub fn leave(&mut self) -> Result<(), SendError> {
        self.desired(None, &Body::Leave, 0)
    }

    fn desired(
        &mut self,
        tag: Option<channel::Tag>,
        body: &Body<'_>,
        payload: usize,
    ) -> Result<(), SendError> {
        match (&self.config, &self.live) {
            (Config::Agent(_), _) => Err(SendError::Role),
            (_, None) => Err(SendError::NotConnected),
            _ => self.channel.queue(Class::Desired(tag), body, payload + ENCODING_BYTES_MAX),
        }
    }

    /// How many more messages the outbox takes.
    pub fn outbox_room(&self) -> usize {
        self.channel.room()
    }

    /// Opens a stream.
    pub fn stream_open(&mut self, request: &[u8]) -> Result<StreamId, SendError> {
        if self.live.is_none() {
            return Err(SendError::NotConnected);
        }
        self.streams.open(request, self.limits().message_bytes_max as usize)
    }

    /// Takes as many of the bytes as the stream's buffer has room for and returns how many.
    /// [`Event::StreamWritable`] tells when there is room again.
    pub fn stream_write(&mut self, id: StreamId, data: &[u8]) -> Result<usize, SendError> {
        self.streams.write(id, data)
    }

    /// Ends this side's direction of a stream after what was written.
    pub fn stream_finish(&mut self, id: StreamId) -> Result<(), SendError> {
        self.streams.finish(id)
    }

    /// Ends a stream at once, in both directions, for a reason that the other side is told.
    pub fn stream_reset(&mut self, id: StreamId, error: &str) -> Result<(), SendError> {
        self.streams.reset(id, error)
    }

    /// Says that this many bytes of a stream were used up, so that the other side may send as many more.
    pub fn stream_grant(&mut self, id: StreamId, bytes: u64) -> Result<(), SendError> {
        self.streams.grant(id, bytes)
    }

    /// Gateway: asks the node for a hello. A gateway that has just become the owner does so for each node.
    pub fn solicit(&mut self, now_ms: u64) {
        if matches!(self.config, Config::Gateway(_)) {
            self.solicit_due = true;
            self.solicited_ms = Some(now_ms);
        }
    }

    /// Checks whether the other side is still there, for instance because the node's last will appeared. If no
    /// answer comes in time the session is lost.
    pub fn probe(&mut self, now_ms: u64) {
        let probe_ms = self.timing().probe_ms;
        if let Some(live) = &mut self.live {
            live.frame_due = true;
            live.ask = true;
            live.probe_by_ms.get_or_insert(now_ms + probe_ms);
        }
    }

    /// Ends the session on purpose. The goodbye goes out with the next [`Session::transmit`]; an agent says
    /// hello again only after the next [`Session::link_up`].
    pub fn close(&mut self, sink: &mut dyn FnMut(Event<'_>)) {
        if let Some(live) = self.live.take() {
            self.goodbye = Some(live.keys);
            self.forget_session();
            sink(Event::Lost(LostReason::Closed));
        }
        self.pending = None;
        self.asking = Asking::default();
    }

    /// Ends the session because something went wrong. An agent that is linked says hello again soon.
    fn lose(&mut self, now_ms: u64, reason: LostReason, sink: &mut dyn FnMut(Event<'_>)) {
        if self.live.take().is_some() {
            self.forget_session();
            sink(Event::Lost(reason));
        }
        if self.linked && matches!(self.config, Config::Agent(_)) && self.asking.due.is_none() {
            self.asking.wait_ms = self.timing().hello_retry_ms;
            let jitter_ms = self.nonces.below(self.timing().solicit_jitter_ms);
            self.asking.due = Some(now_ms + jitter_ms);
        }
    }

    fn forget_session(&mut self) {
        self.channel.start(self.limits().capacity());
        self.streams.clear();
    }
}
