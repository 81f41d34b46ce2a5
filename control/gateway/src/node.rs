//! One node's side of the control plane: a task that owns the node's session, sends it desired state, passes its reports
//! on and carries its streams.
//!
//! The session decides; this task moves bytes. What belongs to a session (streams, reports that are not settled) carries
//! the number of the session, so that nothing of an earlier one touches a later one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lichen_api::Status;
use lichen_wire::FRAME_BYTES_MAX;
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{Config, Event, Growable, ReportId, SendError, Session, StreamId};
use lichen_wire::stream::StreamErrorCode;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

mod streams;

use crate::Shared;
use crate::desired::{Delta, Start};
use crate::happened::Happened;
use crate::item::Kind;
use crate::logs::{self, PipeOut};
use crate::members::{self, MemberError};
use crate::settle::{Queued, write_reports};
use crate::wait::{AbortOnDrop, notified, sleep_until};
use streams::Stream;

/// Most frames of a node that wait for its task. What finds no room is dropped; the session sends it again.
const FRAMES_QUEUED_MAX: usize = 128;
/// Most inputs that wait for a node's task.
const INPUTS_QUEUED_MAX: usize = 64;
/// Most objects that are handed to the session in one go.
const DELTAS_MAX: usize = 256;
/// Room that is left in the outbox for what ends a snapshot.
const OUTBOX_SPARE: usize = 4;

/// What others want of a node's task.
pub(crate) enum Input {
    /// The node's last will appeared.
    Probe,
    /// The bus is linked, and may have lost whatever was said before.
    Linked,
    /// The node was given this key, which counts from its first use.
    Key(NodeKey),
    /// The node is to leave the cluster.
    Leave,
    /// A session's reports up to this one are written.
    Settled { session: u64, id: ReportId },
    /// Someone wants a container's log.
    Logs { request: Vec<u8>, reply: oneshot::Sender<Result<PipeOut, Status>> },
    /// Bytes for a stream; `taken` says when the session has taken them all, or is dropped.
    StreamWrite { id: StreamId, session: u64, data: Bytes, taken: oneshot::Sender<()> },
    /// The end of a stream.
    StreamEnd { id: StreamId, session: u64, error: Option<String> },
    /// The gateway stops.
    Stop,
}

/// A running node task.
pub(crate) struct Handle {
    frames: mpsc::Sender<Bytes>,
    inputs: mpsc::Sender<Input>,
    task: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Handle {
    /// Starts the task of a node with its session.
    pub(crate) fn spawn(
        shared: Arc<Shared>,
        node: &str,
        topic: String,
        session: Session<Growable>,
    ) -> Handle {
        let (frames, frames_in) = mpsc::channel(FRAMES_QUEUED_MAX);
        let (inputs, inputs_in) = mpsc::channel(INPUTS_QUEUED_MAX);
        let unsettled_max = shared.limits.unsettled_reports_max;
        let (reports, reports_in) = mpsc::channel(unsettled_max);
        let writer = tokio::spawn(write_reports(shared.clone(), node.to_owned(), reports_in, inputs.clone()));
        let task = NodeTask {
            shared,
            node: node.to_owned(),
            topic,
            session,
            number: 0,
            inputs: inputs.clone(),
            reports,
            streams: BTreeMap::new(),
            wake: Arc::new(Notify::new()),
            desired: None,
            reach: None,
            confirming: None,
        };
        let task = tokio::spawn(task.run(frames_in, inputs_in));
        Handle { frames, inputs, task, writer }
    }

    /// Hands over a frame, unless too many wait already.
    pub(crate) fn frame(&self, frame: Bytes) {
        if self.frames.try_send(frame).is_err() {
            tracing::debug!("a frame was dropped: the node's task is behind");
        }
    }

    /// Tells that the node may be gone.
    pub(crate) fn probe(&self) {
        // A task with a full queue hears soon enough that the node is silent.
        let _ = self.inputs.try_send(Input::Probe);
    }

    /// Tells that the bus is linked.
    pub(crate) fn linked(&self) {
        // Without this word the node is found out a little later, when it says hello by itself or stays silent.
        let _ = self.inputs.try_send(Input::Linked);
    }

    /// Where others put their wishes.
    pub(crate) fn inputs(&self) -> mpsc::Sender<Input> {
        self.inputs.clone()
    }

    /// Ends the task after a goodbye to the node. When this returns, nothing that it reported is written any more.
    pub(crate) async fn stop(mut self) {
        let _ = self.inputs.send(Input::Stop).await;
        let _ = (&mut self.task).await;
        self.writer.abort();
        let _ = (&mut self.writer).await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
        self.writer.abort();
    }
}

/// How far desired state has been handed to the session.
struct Sending {
    wake: Arc<Notify>,
    /// Whether a snapshot was begun and has not ended.
    snapshot: bool,
    /// Whether there may be something to send.
    dirty: bool,
}

struct NodeTask {
    shared: Arc<Shared>,
    node: String,
    topic: String,
    session: Session<Growable>,
    /// Counts the sessions that stood.
    number: u64,
    inputs: mpsc::Sender<Input>,
    reports: mpsc::Sender<Box<Queued>>,
    streams: BTreeMap<StreamId, Stream>,
    /// Woken by readers of streams.
    wake: Arc<Notify>,
    desired: Option<Sending>,
    /// The Secrets that the node was ever sent, once one is to be sent.
    reach: Option<BTreeSet<String>>,
    confirming: Option<AbortOnDrop>,
}

thread_local! {
    /// Frames are made here and copied out, so that an idle node needs no buffer of its own.
    static FRAME: RefCell<Vec<u8>> = RefCell::new(vec![0; FRAME_BYTES_MAX]);
}

impl NodeTask {
    async fn run(mut self, mut frames: mpsc::Receiver<Bytes>, mut inputs: mpsc::Receiver<Input>) {
        self.session.link_up(self.shared.now_ms());
        self.session.solicit(self.shared.now_ms());
        loop {
            self.send_desired().await;
            self.transmit();
            let timeout = self.session.next_timeout().map(|at| self.shared.start + Duration::from_millis(at));
            let wake = self.desired.as_ref().map(|desired| desired.wake.clone());
            tokio::select! {
                // What a node or the cluster can flood this task with comes last, so that it holds up nothing else.
                biased;
                Some(input) = inputs.recv() => {
                    if matches!(input, Input::Stop) {
                        break;
                    }
                    self.input(input);
                }
                () = sleep_until(timeout) => {
                    let now = self.shared.now_ms();
                    self.collect(|session, sink| session.tick(now, sink));
                }
                () = self.wake.notified() => self.readers_moved(),
                Some(frame) = frames.recv() => self.receive(&frame),
                () = notified(wake) => {
                    if let Some(desired) = &mut self.desired {
                        desired.dirty = true;
                    }
                }
            }
        }
        self.close();
        self.transmit();
    }

    fn receive(&mut self, frame: &[u8]) {
        let now = self.shared.now_ms();
        let mut frame = frame.to_vec();
        let mut result = Ok(());
        self.collect(|session, sink| result = session.receive(now, &mut frame, sink));
        if let Err(error) = result {
            tracing::debug!(node = self.node, %error, "a frame was refused");
        }
        // A frame that anyone could have sent again proves nothing.
        if self.session.heard_ms() == Some(now) {
            self.shared.presence.heard(&self.node, Instant::now(), self.shared.registry.now());
        }
    }

    /// Says goodbye to the node.
    fn close(&mut self) {
        self.collect(|session, sink| session.close(sink));
    }

    /// Runs a step of the session, then deals with what happened in it.
    fn collect(&mut self, step: impl FnOnce(&mut Session<Growable>, &mut dyn FnMut(Event<'_>))) {
        let mut all = Vec::new();
        let incarnation = self.shared.incarnation;
        step(&mut self.session, &mut |event| all.extend(Happened::of(event, incarnation)));
        for happened in all {
            self.happened(happened);
        }
    }

    fn happened(&mut self, happened: Happened) {
        match happened {
            Happened::Connected { has, profile, agent_version } => {
                tracing::info!(node = self.node, profile, agent_version, "a node is connected");
                self.end_streams();
                self.number += 1;
                self.attach(has);
                self.recognise();
                self.shared.presence.set(&self.node, true, Instant::now());
            }
            Happened::Lost(reason) => {
                tracing::info!(node = self.node, ?reason, "a node's session is over");
                self.end_streams();
                self.desired = None;
                self.lock_desired().detach(&self.node);
                self.shared.presence.set(&self.node, false, Instant::now());
            }
            Happened::Report(id, report) => {
                let queued = Queued { session: self.number, id, report };
                if self.reports.try_send(Box::new(queued)).is_err() {
                    // The session's own limit keeps a node that obeys it below this queue's.
                    tracing::error!(node = self.node, "a node reports more than it may");
                    self.close();
                }
            }
            Happened::Room => {
                if let Some(desired) = &mut self.desired {
                    desired.dirty = true;
                }
            }
            Happened::Opened(id, request) => self.opened(id, &request),
            Happened::Data(id, data) => match self.streams.get(&id) {
                Some(Stream::In(pipe)) => pipe.data(&data),
                // A node has nothing to say on a stream that it pulls from.
                Some(Stream::Out { .. }) | None => {
                    self.reset(id, StreamErrorCode::Invalid, "not expected here")
                }
            },
            Happened::Writable(id) => self.write_on(id),
            Happened::Ended(id, error) => self.ended(id, error),
        }
    }

    fn attach(&mut self, has: Option<u64>) {
        let (start, wake) = self.lock_desired().attach(&self.node, has);
        let begun = match start {
            Start::Current(version) => self.session.mark_synced(version),
            Start::Snapshot { version, count } => {
                self.session.snapshot_begin(version, u32::try_from(count).unwrap_or(u32::MAX))
            }
        };
        if let Err(error) = begun {
            // The outbox of a session that has just begun is empty; should it not be, the node asks again.
            tracing::error!(node = self.node, %error, "the session takes no desired state");
            self.close();
            return;
        }
        let snapshot = matches!(start, Start::Snapshot { .. });
        self.desired = Some(Sending { wake, snapshot, dirty: snapshot });
    }

    /// Looks up what became of the node since it was last here: the key that it uses now may be the one that it was given
    /// last, and it may have to leave.
    fn recognise(&mut self) {
        let Config::Gateway(config) = self.session.config() else { return };
        match members::find(&self.shared.registry, &self.node) {
            Ok(Some((member, _))) => {
                if member.next.is_some_and(|next| next.key == config.key) {
                    let (shared, node, key) = (self.shared.clone(), self.node.clone(), config.key.clone());
                    // Until this is durable both keys count, so it may be lost with the gateway and is done again then.
                    let confirming = tokio::spawn(async move {
                        if let Err(error) = members::confirm(&shared.registry, &node, &key).await {
                            tracing::warn!(node, %error, "a node's renewed key waits to be confirmed");
                        }
                    });
                    self.confirming = Some(AbortOnDrop(confirming.abort_handle()));
                }
                if member.leaves_until.is_some() {
                    self.leave();
                }
            }
            // Its task is about to end.
            Ok(None) => {}
            Err(error) => tracing::error!(node = self.node, %error, "a node can't be looked up"),
        }
    }

    fn leave(&mut self) {
        if let Err(error) = self.session.leave() {
            // A node without a session is told when it has one.
            tracing::debug!(node = self.node, %error, "a node can't be told to leave yet");
        }
    }

    /// Notes which Secrets are about to be sent, so that it is known what a stolen device has seen.
    async fn note_reach(&mut self, deltas: &[Delta]) -> Result<(), MemberError> {
        let mut secrets = Vec::new();
        for delta in deltas {
            if let Delta::Put(item) = delta
                && item.kind == Kind::Secret
            {
                secrets.push(item.key.clone());
            }
        }
        if secrets.is_empty() {
            return Ok(());
        }
        let mut reach = match self.reach.take() {
            Some(reach) => reach,
            None => members::reach(&self.shared.registry, &self.node)?,
        };
        let before = reach.len();
        reach.extend(secrets);
        if reach.len() > before {
            // Boxed, since every idle node would keep room for it otherwise.
            Box::pin(members::keep_reach(&self.shared.registry, &self.node, &reach)).await?;
        }
        self.reach = Some(reach);
        Ok(())
    }

    /// Hands the session as much of the desired state as it takes.
    async fn send_desired(&mut self) {
        while let Some(desired) = &self.desired
            && desired.dirty
        {
            let room = self.session.outbox_room().saturating_sub(OUTBOX_SPARE).min(DELTAS_MAX);
            if room == 0 {
                return;
            }
            let taken = self.lock_desired().take(&self.node, room);
            if let Err(error) = self.note_reach(&taken.deltas).await {
                // The node says hello again, and begins anew with what it has.
                tracing::error!(node = self.node, %error, "Secrets can't be sent to a node");
                self.close();
                return;
            }
            let mut left = taken.deltas.into_iter();
            while let Some(delta) = left.next() {
                let sent = match &delta {
                    Delta::Put(item) => {
                        self.session.item(item.kind.name(), &item.key, item.version, item.body())
                    }
                    Delta::Remove((kind, key), version) => self.session.remove(kind.name(), key, *version),
                };
                match sent {
                    Ok(()) => {}
                    Err(SendError::Full) => {
                        let back = std::iter::once(delta).chain(left).collect();
                        self.lock_desired().give_back(&self.node, back);
                        return;
                    }
                    Err(error) => {
                        tracing::error!(node = self.node, ?delta, %error, "an object can't be sent to a node");
                    }
                }
            }
            let Some(version) = taken.synced else { continue };
            let Some(desired) = &mut self.desired else { return };
            let told = match desired.snapshot {
                true => self.session.snapshot_end(version),
                false => self.session.mark_synced(version),
            };
            if told.is_err() {
                return;
            }
            desired.snapshot = false;
            desired.dirty = false;
        }
    }

    fn transmit(&mut self) {
        FRAME.with_borrow_mut(|out| {
            while let Some(len) = self.session.transmit(self.shared.now_ms(), out) {
                let frame = Bytes::copy_from_slice(&out[..len]);
                if let Err(error) = self.shared.publisher.publish(&self.topic, frame) {
                    tracing::debug!(node = self.node, %error, "a frame was not published");
                }
            }
        });
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Probe => self.session.probe(self.shared.now_ms()),
            // The node's will may have been among what was lost.
            Input::Linked if self.session.is_up() => self.session.probe(self.shared.now_ms()),
            Input::Linked => self.session.solicit(self.shared.now_ms()),
            Input::Key(key) => self.session.offer_key(key),
            Input::Leave => self.leave(),
            Input::Settled { session, id } if session == self.number => self.session.settle(id),
            Input::Logs { request, reply } => {
                let opened = self.session.stream_open(&request).map(|id| {
                    let (pipe, out) = logs::pipe(self.wake.clone());
                    self.streams.insert(id, Stream::In(pipe));
                    out
                });
                let opened = opened.map_err(|error| {
                    Status::service_unavailable(format!("node {} can't be asked: {error}", self.node))
                });
                // A client that is gone by now drops the pipe, which ends the stream.
                let _ = reply.send(opened);
            }
            Input::StreamWrite { id, session, data, taken } if session == self.number => {
                if let Some(Stream::Out { pending, taken: waiting, .. }) = self.streams.get_mut(&id) {
                    *pending = data;
                    *waiting = Some(taken);
                    self.write_on(id);
                }
            }
            Input::StreamEnd { id, session, error } if session == self.number => {
                if let Some(Stream::Out { end, .. }) = self.streams.get_mut(&id) {
                    *end = true;
                    if let Some(error) = error {
                        self.streams.remove(&id);
                        let _ = self.session.stream_reset(id, &error);
                    } else {
                        self.write_on(id);
                    }
                }
            }
            Input::Settled { .. } | Input::StreamWrite { .. } | Input::StreamEnd { .. } | Input::Stop => {}
        }
    }

    fn lock_desired(&self) -> std::sync::MutexGuard<'_, crate::desired::Desired> {
        self.shared.desired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
