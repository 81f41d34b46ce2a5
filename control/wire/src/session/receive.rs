//! What a session does with a frame.

use core::mem;

use super::handshake::{Keys, Pending, hello_key, solicit_key, welcome_key};
use super::storage::{Bytes, Storage};
use super::{Config, Event, Live, LostReason, REPORT_NUMBER_BITS, ReceiveError, ReportId, Session};
use crate::body::{Body, Fragment, Head, Hello, Solicit, SyncPoint, Welcome};
use crate::codec::{self, CodecError, Reader};
use crate::frame::{self, FrameError, Header, Nonce, SessionId};

/// Shortest time between two solicitations that unknown frames bring about.
const SOLICIT_PAUSE_MS: u64 = 1_000;

/// A reason to end the session, which only a holder of its keys can give.
enum Broken {
    Codec(CodecError),
    Violation(&'static str),
}

impl From<CodecError> for Broken {
    fn from(error: CodecError) -> Self {
        Broken::Codec(error)
    }
}

impl From<&'static str> for Broken {
    fn from(what: &'static str) -> Self {
        Broken::Violation(what)
    }
}

impl<S: Storage> Session<S> {
    /// Takes a frame, which is decrypted in place, and hands out what it brings.
    pub fn receive(
        &mut self,
        now_ms: u64,
        frame: &mut [u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ReceiveError> {
        let header = Header::read(frame)?;
        let agent = matches!(self.config, Config::Agent(_));
        match header {
            Header::Hello(nonce) if !agent => self.hello(&header, nonce, frame),
            Header::Welcome(nonce) if agent => self.welcome(now_ms, &header, nonce, frame, sink),
            Header::Solicit(nonce) if agent => self.solicited(now_ms, &header, nonce, frame),
            Header::Data { session, sequence } => self.data(now_ms, session, sequence, frame, sink),
            _ => Err(ReceiveError::Unexpected),
        }
    }

    fn hello(&mut self, header: &Header, nonce: Nonce, frame: &mut [u8]) -> Result<(), ReceiveError> {
        let repeated = self.pending.as_ref().is_some_and(|p| p.hello_nonce == nonce)
            || self.live.as_ref().is_some_and(|l| l.hello_nonce == nonce);
        let (key, node) = self.identity();
        let mut key = key.clone();
        let payload = match frame::open(&hello_key(&key, node, &nonce), header, frame) {
            Ok(payload) => payload,
            // A seal that does not verify leaves the frame as it was.
            Err(error) => {
                key = self.next_key.clone().ok_or(error)?;
                frame::open(&hello_key(&key, node, &nonce), header, frame)?
            }
        };
        // Two welcomes to one hello could leave the two sides with different keys.
        if repeated {
            return Err(ReceiveError::Unexpected);
        }
        let hello: Hello<'_> = codec::decode(payload)?;
        if hello.node != node {
            return Err(ReceiveError::OtherNode);
        }
        let capacity = hello.capacity;
        let mut kept = S::Bytes::default();
        if !kept.extend(payload) {
            return Err(CodecError::Space(payload.len()).into());
        }
        let welcome_nonce = self.nonces.draw();
        let (_, node) = self.identity();
        let keys = Keys::new(false, &key, node, &nonce, &welcome_nonce);
        self.pending = Some(Pending {
            key,
            hello_nonce: nonce,
            welcome_nonce,
            keys,
            hello: kept,
            capacity,
            welcome_due: true,
        });
        Ok(())
    }

    fn welcome(
        &mut self,
        now_ms: u64,
        header: &Header,
        nonce: Nonce,
        frame: &mut [u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ReceiveError> {
        let hello_nonce = self.asking.nonce.ok_or(ReceiveError::Unexpected)?;
        let timing = self.timing();
        let (key, node) = self.identity();
        let payload = frame::open(&welcome_key(key, node, &hello_nonce, &nonce), header, frame)?;
        let welcome: Welcome = codec::decode(payload)?;
        let keys = Keys::new(true, key, node, &hello_nonce, &nonce);
        // One welcome a hello: the keys of a second one would start from sequence zero again.
        self.asking.nonce = None;
        self.accept_epoch(welcome.epoch).inspect_err(|error| {
            if let ReceiveError::Epoch { offered, seen } = *error {
                sink(Event::EpochRefused { offered, seen });
            }
        })?;
        if self.live.take().is_some() {
            sink(Event::Lost(LostReason::Replaced));
        }
        self.forget_session();
        if let Config::Agent(config) = &mut self.config {
            config.synced = config.synced.filter(|s| s.incarnation == welcome.incarnation);
        }
        self.channel.start(welcome.capacity);
        self.asking.due = None;
        self.generation += 1;
        self.live = Some(Live {
            keys,
            hello_nonce,
            incarnation: welcome.incarnation,
            keepalive_ms: u64::from(welcome.keepalive_ms.max(1)),
            confirmed: false,
            confirm_by_ms: now_ms + self.asking.wait_ms.max(timing.hello_retry_ms) * 4,
            heard_ms: now_ms,
            sent_ms: now_ms,
            frame_due: true,
            ask: true,
            probe_by_ms: None,
            settlement_ask_ms: None,
        });
        sink(Event::GatewayConnected(welcome));
        Ok(())
    }

    fn solicited(
        &mut self,
        now_ms: u64,
        header: &Header,
        nonce: Nonce,
        frame: &mut [u8],
    ) -> Result<(), ReceiveError> {
        let (key, node) = self.identity();
        let payload = frame::open(&solicit_key(key, node, &nonce), header, frame)?;
        let solicit: Solicit = codec::decode(payload)?;
        self.accept_epoch(solicit.epoch)?;
        // The jitter spreads a fleet's answers, and bounds what replayed solicitations bring about.
        if self.linked {
            self.asking.wait_ms = self.timing().hello_retry_ms;
            let soon = now_ms + self.nonces.below(self.timing().solicit_jitter_ms);
            self.asking.due = Some(self.asking.due.map_or(soon, |due| due.min(soon)));
        }
        Ok(())
    }

    fn accept_epoch(&mut self, offered: u64) -> Result<(), ReceiveError> {
        let Config::Agent(config) = &mut self.config else { return Ok(()) };
        let older = offered < config.epoch_seen;
        #[cfg(feature = "plant")]
        let older = older && !crate::plant::OLDER_EPOCH.load(core::sync::atomic::Ordering::Relaxed);
        if older {
            return Err(ReceiveError::Epoch { offered, seen: config.epoch_seen });
        }
        config.epoch_seen = offered;
        Ok(())
    }

    /// Takes what a frame held, as if its seal had verified: what a peer with the keys could say.
    #[cfg(test)]
    pub(crate) fn receive_opened(
        &mut self,
        now_ms: u64,
        payload: &[u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ReceiveError> {
        let result = self.payload(now_ms, payload, sink);
        self.judged(now_ms, result, sink)
    }

    fn data(
        &mut self,
        now_ms: u64,
        session: SessionId,
        sequence: u64,
        frame: &mut [u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ReceiveError> {
        // Four bytes may be equal by chance, and the seal decides then; so a session that is already held goes
        // first and the one that waits for its proof after it.
        let payload = if let Some(live) = self.live.as_mut().filter(|l| l.keys.id == session) {
            live.keys.open(sequence, frame)?
        } else if let Some(pending) = self.pending.as_mut().filter(|p| p.keys.id == session) {
            let payload = pending.keys.open(sequence, frame)?;
            self.promote(now_ms, sink);
            payload
        } else {
            return Err(self.unknown(now_ms));
        };
        let result = self.payload(now_ms, payload, sink);
        self.judged(now_ms, result, sink)
    }

    /// A peer that breaks the protocol loses its session.
    fn judged(
        &mut self,
        now_ms: u64,
        result: Result<(), Broken>,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ReceiveError> {
        result.map_err(|broken| {
            self.lose(now_ms, LostReason::Violation, sink);
            match broken {
                Broken::Codec(error) => error.into(),
                Broken::Violation(what) => ReceiveError::Violation(what),
            }
        })
    }

    /// A gateway that holds nothing for this node asks for a hello, now and then.
    fn unknown(&mut self, now_ms: u64) -> ReceiveError {
        let recently = self.solicited_ms.is_some_and(|at| now_ms < at + SOLICIT_PAUSE_MS);
        if self.live.is_none() && self.pending.is_none() && !recently {
            self.solicit(now_ms);
        }
        FrameError::UnknownSession.into()
    }

    /// The node has proved that it holds the pending session's keys: that session takes the place of the old.
    fn promote(&mut self, now_ms: u64, sink: &mut dyn FnMut(Event<'_>)) {
        let Some(pending) = self.pending.take() else { return };
        let Config::Gateway(config) = &mut self.config else { return };
        if config.key != pending.key {
            config.key = pending.key;
            self.next_key = None;
        }
        let (incarnation, keepalive_ms) = (config.incarnation, config.timing.keepalive_ms);
        if self.live.take().is_some() {
            sink(Event::Lost(LostReason::Replaced));
        }
        self.forget_session();
        self.channel.start(pending.capacity);
        self.generation += 1;
        self.settled = 0;
        self.live = Some(Live {
            keys: pending.keys,
            hello_nonce: pending.hello_nonce,
            incarnation,
            keepalive_ms: u64::from(keepalive_ms),
            confirmed: true,
            confirm_by_ms: 0,
            heard_ms: now_ms,
            sent_ms: now_ms,
            frame_due: true,
            ask: false,
            probe_by_ms: None,
            settlement_ask_ms: None,
        });
        // It was read once when it came.
        if let Ok(hello) = codec::decode(pending.hello.as_ref()) {
            sink(Event::NodeConnected(hello));
        }
    }

    fn payload(
        &mut self,
        now_ms: u64,
        payload: &[u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Broken> {
        let mut reader = Reader::new(payload, &mut []);
        let head: Head = reader.value()?;
        if head.bye {
            self.asking.wait_ms = self.timing().hello_retry_ms;
            self.lose(now_ms, LostReason::Bye, sink);
            return Ok(());
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        live.heard_ms = now_ms;
        live.confirmed = true;
        live.probe_by_ms = None;
        live.frame_due |= head.answer || head.fragments > 0;
        self.channel.acknowledged(now_ms, head.ack, head.fragments == 0)?;
        self.channel.settled(head.settled);
        if !self.channel.awaits_settlement()
            && let Some(live) = &mut self.live
        {
            live.settlement_ask_ms = None;
        }
        for number in head.first..head.first.saturating_add(u64::from(head.fragments)) {
            let fragment: Fragment<'_> = reader.value()?;
            // What was there before is a repetition; what lies beyond a gap will be sent again.
            if number == self.channel.receive_next {
                self.channel.receive_next += 1;
                self.fragment(number, fragment, sink)?;
            }
        }
        reader.end()?;
        // Acknowledgements make room in the window, which streams and the outbox fill at once.
        self.launch();
        if self.channel.regained_room() {
            sink(Event::Room);
        }
        self.streams.tell_writable(sink);
        Ok(())
    }

    fn fragment(
        &mut self,
        number: u64,
        fragment: Fragment<'_>,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Broken> {
        let assembled = self.channel.assembly.as_ref().len();
        if assembled == 0 && !fragment.more {
            return self.message(number, fragment.data.0, sink);
        }
        let most = self.limits().message_bytes_max as usize;
        if assembled + fragment.data.0.len() > most || !self.channel.assembly.extend(fragment.data.0) {
            return Err("a message is larger than was agreed".into());
        }
        if !fragment.more {
            let message = mem::take(&mut self.channel.assembly);
            self.message(number, message.as_ref(), sink)?;
        }
        Ok(())
    }

    fn message(
        &mut self,
        number: u64,
        message: &[u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Broken> {
        let body: Body<'_> = codec::decode(message)?;
        match (body, &mut self.config) {
            (Body::StreamOpen { id, credit, request }, _) => {
                self.streams.opened(id, credit, request.0, sink)?;
            }
            (Body::StreamData { id, offset, data }, _) => self.streams.data(id, offset, data.0, sink)?,
            (Body::StreamCredit { id, limit }, _) => self.streams.credit(id, limit),
            (Body::StreamEnd { id, error }, _) => self.streams.ended(id, error, sink),
            (Body::Report { kind, key, uid, body }, Config::Gateway(_)) => {
                let id = ReportId(self.generation << REPORT_NUMBER_BITS | number);
                sink(Event::Report { id, kind, key, uid, body: body.0 });
            }
            (Body::SnapshotBegin { version, count }, Config::Agent(_)) => {
                sink(Event::SnapshotBegin { version, count });
            }
            (Body::Item { kind, key, version, body }, Config::Agent(_)) => {
                sink(Event::Item { kind, key, version, body: body.0 });
            }
            (Body::Remove { kind, key, version }, Config::Agent(_)) => {
                sink(Event::Remove { kind, key, version });
            }
            (Body::SnapshotEnd { version }, Config::Agent(config)) => {
                let incarnation = self.live.as_ref().map_or(0, |l| l.incarnation);
                config.synced = Some(SyncPoint { incarnation, version });
                sink(Event::SnapshotEnd { version });
            }
            (Body::Synced { version }, Config::Agent(config)) => {
                // Deltas count only on top of a snapshot of the same incarnation.
                let synced = config.synced.as_mut().ok_or("deltas without a snapshot")?;
                synced.version = synced.version.max(version);
                sink(Event::Synced { version });
            }
            (Body::Leave, Config::Agent(_)) => sink(Event::Leave),
            _ => return Err("a message that this side does not take".into()),
        }
        Ok(())
    }
}
