//! Drives the session: frames from and to the carrier, commands from the agent, events to it.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;

use bytes::Bytes;
use lichen_wire::FRAME_BYTES_MAX;
use lichen_wire::keys::NodeKey;
use lichen_wire::session::{Event, Growable, SendError, Session, StreamId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep_until};

use crate::carrier::Carried;
use crate::stream::{Incoming, LinkStream, StreamKey};
use crate::{EVENTS_MAX, LinkError, LinkEvent, StreamError};

/// Most reports that wait for room in the outbox; then commands wait too.
const REPORTS_WAITING_MAX: usize = 64;

type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// What the agent asks for and waits for.
#[derive(Debug)]
pub(crate) enum Command {
    Report(Report),
    Open(Vec<u8>, Reply<LinkStream, LinkError>),
    Write(StreamKey, Bytes, Reply<(), StreamError>),
    /// From now on the node uses this key.
    Replace(NodeKey, oneshot::Sender<()>),
    Shutdown,
}

/// What a stream says without waiting. Credit and the number of streams bound how much of it there is.
#[derive(Debug)]
pub(crate) enum Control {
    Grant(StreamKey, u64),
    Finish(StreamKey),
    Reset(StreamKey, String),
}

/// A report to be queued.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) kind: String,
    pub(crate) key: String,
    pub(crate) uid: String,
    pub(crate) body: Vec<u8>,
    pub(crate) reply: Reply<(), LinkError>,
}

struct Open {
    incoming: mpsc::UnboundedSender<Incoming>,
    writing: Option<(Bytes, Reply<(), StreamError>)>,
    finish: bool,
}

/// Owns the session and everything that hangs on it.
pub(crate) struct Driver {
    session: Session<Growable>,
    began: Instant,
    /// Counts sessions, so that a stream of an earlier one is known as such.
    sessions: u64,
    frames: Option<mpsc::Sender<Vec<u8>>>,
    streams: BTreeMap<StreamId, Open>,
    reports: VecDeque<Report>,
    waiting: VecDeque<LinkEvent>,
    commands: mpsc::WeakSender<Command>,
    control: mpsc::UnboundedSender<Control>,
    scratch: Vec<u8>,
}

/// The driver's ends of its channels.
pub(crate) struct Ends {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) carried: mpsc::Receiver<Carried>,
    pub(crate) events: mpsc::Sender<LinkEvent>,
}

impl Driver {
    pub(crate) fn new(session: Session<Growable>, commands: mpsc::WeakSender<Command>) -> (Self, Controls) {
        let (control, controls) = mpsc::unbounded_channel();
        let driver = Self {
            session,
            began: Instant::now(),
            sessions: 0,
            frames: None,
            streams: BTreeMap::new(),
            reports: VecDeque::new(),
            waiting: VecDeque::new(),
            commands,
            control,
            scratch: vec![0; FRAME_BYTES_MAX],
        };
        (driver, controls)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Runs until it is told to end or the agent is gone.
    pub(crate) async fn run(mut self, mut ends: Ends, mut controls: Controls) {
        loop {
            let blocked = self.transmit();
            let timeout = self.session.next_timeout().map(|at| self.began + Duration::from_millis(at));
            let frames = self.frames.clone().filter(|_| blocked);
            tokio::select! {
                biased;
                Some(control) = controls.recv() => self.control(control),
                command = ends.commands.recv(), if self.reports.len() < REPORTS_WAITING_MAX => match command {
                    Some(Command::Shutdown) | None => return self.goodbye().await,
                    Some(command) => self.command(command),
                },
                permit = ends.events.reserve(), if !self.waiting.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(event) = self.waiting.pop_front() {
                            permit.send(event);
                        }
                    }
                    Err(_) => return self.goodbye().await,
                },
                // While the agent does not take its events nothing more is taken from the broker.
                Some(carried) = ends.carried.recv(), if self.waiting.len() < EVENTS_MAX => self.carried(carried),
                () = room(frames) => {}
                () = until(timeout) => {
                    let now_ms = self.now_ms();
                    self.feed(|session, sink| session.tick(now_ms, sink));
                }
            }
        }
    }

    /// Hands on every frame that is due; true if the carrier had no room for more.
    fn transmit(&mut self) -> bool {
        let now_ms = self.now_ms();
        let Some(frames) = &self.frames else { return false };
        loop {
            match frames.try_reserve() {
                Ok(permit) => match self.session.transmit(now_ms, &mut self.scratch) {
                    Some(len) => permit.send(self.scratch[..len].to_vec()),
                    None => return false,
                },
                Err(mpsc::error::TrySendError::Full(())) => return true,
                Err(mpsc::error::TrySendError::Closed(())) => return false,
            }
        }
    }

    async fn goodbye(mut self) {
        self.feed(|session, sink| session.close(sink));
        self.transmit();
    }

    fn carried(&mut self, carried: Carried) {
        let now_ms = self.now_ms();
        match carried {
            Carried::Up(frames) => {
                self.frames = Some(frames);
                self.session.link_up(now_ms);
            }
            Carried::Down => {
                self.frames = None;
                self.feed(|session, sink| session.link_down(now_ms, sink));
            }
            Carried::Frame(frame) => {
                let mut frame = Vec::from(frame);
                self.feed(|session, sink| {
                    if let Err(error) = session.receive(now_ms, &mut frame, sink) {
                        tracing::debug!(%error, "a frame was refused");
                    }
                });
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Report(report) => {
                self.reports.push_back(report);
                self.report();
            }
            Command::Open(request, reply) => {
                let opened = match self.session.stream_open(&request) {
                    Ok(id) => Ok(self.stream(id)),
                    Err(SendError::TooLarge(len)) => Err(LinkError::TooLarge(len)),
                    Err(SendError::Full) => Err(LinkError::Full),
                    Err(_) => Err(LinkError::NotConnected),
                };
                // If nobody waits any more the stream is dropped, which resets it.
                let _ = reply.send(opened);
            }
            Command::Write(key, data, reply) => match self.open(key) {
                Some(open) => {
                    open.writing = Some((data, reply));
                    self.write(key.id);
                }
                None => {
                    let _ = reply.send(Err(StreamError::Lost));
                }
            },
            Command::Replace(key, done) => {
                self.feed(|session, sink| session.replace_key(key, sink));
                // The goodbye goes out before the carrier may be told to connect anew.
                self.transmit();
                if self.frames.is_some() {
                    self.session.link_up(self.now_ms());
                }
                // If nobody waits any more, it is done all the same.
                let _ = done.send(());
            }
            Command::Shutdown => {}
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Grant(key, bytes) => {
                if self.open(key).is_some() {
                    // The other side may have ended it already, and then needs no credit.
                    let _ = self.session.stream_grant(key.id, bytes);
                }
            }
            Control::Finish(key) => {
                if let Some(open) = self.open(key) {
                    open.finish = true;
                    self.write(key.id);
                }
            }
            Control::Reset(key, error) => {
                if self.open(key).is_some() {
                    self.streams.remove(&key.id);
                    let _ = self.session.stream_reset(key.id, &error);
                }
            }
        }
    }

    fn open(&mut self, key: StreamKey) -> Option<&mut Open> {
        let current = key.session == self.sessions;
        self.streams.get_mut(&key.id).filter(|_| current)
    }

    fn stream(&mut self, id: StreamId) -> LinkStream {
        let (sender, incoming) = mpsc::unbounded_channel();
        self.streams.insert(id, Open { incoming: sender, writing: None, finish: false });
        // Without an owner of the link there is nobody left to write; the closed channel says so.
        let commands = self.commands.upgrade().unwrap_or_else(|| mpsc::channel(1).0);
        LinkStream {
            key: StreamKey { session: self.sessions, id },
            incoming,
            commands,
            control: self.control.clone(),
            ended: None,
            finished: false,
        }
    }

    /// Gives reports that wait to the session while it takes them.
    fn report(&mut self) {
        while let Some(report) = self.reports.pop_front() {
            let queued = match self.session.report(&report.kind, &report.key, &report.uid, &report.body) {
                Ok(()) => Ok(()),
                Err(SendError::Full) => {
                    self.reports.push_front(report);
                    return;
                }
                Err(_) => Err(LinkError::TooLarge(report.body.len())),
            };
            let _ = report.reply.send(queued);
        }
    }

    /// Gives what a stream has to write to the session while it takes it.
    fn write(&mut self, id: StreamId) {
        let Some(open) = self.streams.get_mut(&id) else { return };
        if let Some((mut data, reply)) = open.writing.take() {
            match self.session.stream_write(id, &data) {
                Ok(taken) if taken < data.len() => {
                    let _ = data.split_to(taken);
                    open.writing = Some((data, reply));
                    return;
                }
                Ok(_) => {
                    let _ = reply.send(Ok(()));
                }
                Err(_) => {
                    let _ = reply.send(Err(StreamError::Ended));
                }
            }
        }
        if open.finish {
            open.finish = false;
            // A stream that is over already needs no end.
            let _ = self.session.stream_finish(id);
        }
    }

    /// Calls the session and acts on its events.
    fn feed(&mut self, call: impl FnOnce(&mut Session<Growable>, &mut dyn FnMut(Event<'_>))) {
        let mut seen = Vec::new();
        call(&mut self.session, &mut |event| seen.push(Seen::from(event)));
        for event in seen {
            match event {
                Seen::Tell(event) => {
                    match event {
                        LinkEvent::Connected { .. } => self.sessions += 1,
                        LinkEvent::Lost(_) => self.streams.clear(),
                        _ => {}
                    }
                    self.waiting.push_back(event);
                }
                Seen::Opened(id, request) => {
                    let stream = self.stream(id);
                    self.waiting.push_back(LinkEvent::Stream { request, stream });
                }
                Seen::Data(id, data) => {
                    if let Some(open) = self.streams.get(&id) {
                        // A reader that has gone resets the stream.
                        let _ = open.incoming.send(Incoming::Data(data));
                    }
                }
                Seen::Ended(id, error) => self.ended(id, error),
                Seen::Writable(id) => self.write(id),
                Seen::Room => {}
            }
        }
        self.report();
    }

    fn ended(&mut self, id: StreamId, error: Option<String>) {
        let over = error.is_some();
        if let Some(open) = self.streams.get_mut(&id) {
            if let Some((_, reply)) = open.writing.take_if(|_| over) {
                let _ = reply.send(Err(StreamError::Remote(error.clone().unwrap_or_default())));
            }
            let _ = open.incoming.send(Incoming::End(error));
        }
        if over {
            self.streams.remove(&id);
        }
    }
}

/// What streams say.
pub(crate) type Controls = mpsc::UnboundedReceiver<Control>;

async fn room(frames: Option<mpsc::Sender<Vec<u8>>>) {
    match frames {
        // The permit is given back at once; transmitting takes its own.
        Some(frames) => drop(frames.reserve().await),
        None => pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// An event with what it borrows copied.
enum Seen {
    Tell(LinkEvent),
    Opened(StreamId, Bytes),
    Data(StreamId, Bytes),
    Ended(StreamId, Option<String>),
    Writable(StreamId),
    Room,
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        let (owned, bytes) = (str::to_owned, Bytes::copy_from_slice);
        Seen::Tell(match event {
            Event::GatewayConnected(welcome) => {
                LinkEvent::Connected { epoch: welcome.epoch, incarnation: welcome.incarnation }
            }
            Event::Lost(reason) => LinkEvent::Lost(reason),
            Event::SnapshotBegin { version, count } => LinkEvent::SnapshotBegin { version, count },
            Event::Item { kind, key, version, body } => {
                LinkEvent::Item { kind: owned(kind), key: owned(key), version, body: bytes(body) }
            }
            Event::Remove { kind, key, version } => {
                LinkEvent::Remove { kind: owned(kind), key: owned(key), version }
            }
            Event::SnapshotEnd { version } => LinkEvent::SnapshotEnd { version },
            Event::Synced { version } => LinkEvent::Synced { version },
            Event::Leave => LinkEvent::Leave,
            Event::StreamOpened { id, request } => return Seen::Opened(id, bytes(request)),
            Event::StreamData { id, data } => return Seen::Data(id, bytes(data)),
            Event::StreamEnded { id, error } => return Seen::Ended(id, error.map(owned)),
            Event::StreamWritable { id } => return Seen::Writable(id),
            Event::EpochRefused { offered, seen } => {
                tracing::warn!(offered, seen, "a gateway of an older epoch was refused");
                return Seen::Room;
            }
            // An agent's session never brings the gateway's own events.
            Event::Room | Event::NodeConnected(_) | Event::Report { .. } => return Seen::Room,
        })
    }
}
