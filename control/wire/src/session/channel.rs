//! The reliable, ordered channel inside a session: messages are cut into numbered fragments, acknowledged
//! cumulatively and sent again from the oldest unacknowledged one on.
//!
//! Invariants: fragment numbers in flight are contiguous; a report leaves only when the gateway has settled it,
//! and outlives sessions until then; outbox, flight and held reports together never exceed the outbox's bound,
//! so that what comes back after a loss always fits.

use core::mem;

use sha2::{Digest, Sha256};

use super::config::{Limits, Timing};
use super::error::SendError;
use super::storage::{Bytes, List, Storage};
use crate::body::{Body, Capacity, FRAGMENTS_MAX, Fragment, Head};
use crate::codec;

/// Tells messages of the same object apart from others, for coalescing.
pub(super) type Tag = [u8; 16];

/// What a message is, as far as the channel cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Kept until settled.
    Report(Tag),
    /// Desired state; forgotten with the session.
    Desired(Option<Tag>),
    /// Of a stream; forgotten with the session.
    Stream,
}

impl Class {
    fn tag(&self) -> Option<&Tag> {
        match self {
            Class::Report(tag) | Class::Desired(Some(tag)) => Some(tag),
            _ => None,
        }
    }

    fn is_report(&self) -> bool {
        matches!(self, Class::Report(_))
    }
}

/// Makes the tag of a message about an object.
pub(super) fn tag(parts: &[&str]) -> Tag {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut tag = Tag::default();
    tag.copy_from_slice(&digest[..16]);
    tag
}

struct Entry<B> {
    class: Class,
    data: B,
    /// The number of the first fragment, once in flight.
    first: u64,
    fragments: u64,
}

impl<B> Entry<B> {
    fn end(&self) -> u64 {
        self.first + self.fragments
    }
}

/// Measures round trips and says how long to wait for an acknowledgement.
struct Clock {
    smoothed_ms: Option<u64>,
    wait_ms: u64,
    deadline: Option<u64>,
    sample: Option<(u64, u64)>,
    repeated_acks: u8,
}

pub(super) struct Channel<S: Storage> {
    outbox: S::List<Entry<S::Bytes>>,
    outbox_bytes: usize,
    flight: S::List<Entry<S::Bytes>>,
    flight_bytes: usize,
    held: S::List<Entry<S::Bytes>>,
    reports_in_flight: usize,
    pub(super) assembly: S::Bytes,
    fragment_bytes: usize,
    window: u64,
    message_bytes: usize,
    /// The oldest fragment that is not acknowledged.
    base: u64,
    /// The next fragment to send.
    send_next: u64,
    /// The next number to give out.
    next_number: u64,
    /// The next fragment that is expected.
    pub(super) receive_next: u64,
    clock: Clock,
    full: bool,
    limits: Limits,
    timing: Timing,
}

impl<S: Storage> Channel<S> {
    pub(super) fn new(limits: Limits, timing: Timing) -> Self {
        let mut channel = Self {
            outbox: Default::default(),
            outbox_bytes: 0,
            flight: Default::default(),
            flight_bytes: 0,
            held: Default::default(),
            reports_in_flight: 0,
            assembly: Default::default(),
            fragment_bytes: 0,
            window: 0,
            message_bytes: 0,
            base: 1,
            send_next: 1,
            next_number: 1,
            receive_next: 1,
            clock: Clock { smoothed_ms: None, wait_ms: 0, deadline: None, sample: None, repeated_acks: 0 },
            full: false,
            limits,
            timing,
        };
        channel.start(limits.capacity());
        channel
    }

    /// Begins anew with another peer. Reports that were not settled wait in the outbox again, the newest of each
    /// object only; everything else is forgotten.
    pub(super) fn start(&mut self, peer: Capacity) {
        self.drop_desired();
        let mut back = mem::take(&mut self.flight);
        let mut held = mem::take(&mut self.held);
        while let Some(entry) = back.pop_back().or_else(|| held.pop_back()) {
            let newer = entry.class.tag().is_some_and(|tag| self.position(tag).is_some());
            if entry.class.is_report() && !newer {
                self.outbox_bytes += entry.data.as_ref().len();
                // The bound on outbox, flight and held together leaves room for it.
                let _ = self.outbox.push_front(entry);
            }
        }
        self.flight_bytes = 0;
        self.reports_in_flight = 0;
        self.assembly = Default::default();
        self.fragment_bytes = self.limits.fragment_bytes_max.min(peer.fragment_bytes).max(64) as usize;
        self.window = u64::from(self.limits.window_fragments_max.min(peer.window_fragments).max(1));
        self.message_bytes = self.limits.message_bytes_max.min(peer.message_bytes) as usize;
        self.base = 1;
        self.send_next = 1;
        self.next_number = 1;
        self.receive_next = 1;
        self.clock = Clock {
            smoothed_ms: None,
            wait_ms: self.timing.retransmit_ms,
            deadline: None,
            sample: None,
            repeated_acks: 0,
        };
    }

    /// Forgets desired state that still waits.
    pub(super) fn drop_desired(&mut self) {
        let mut waiting = mem::take(&mut self.outbox);
        while let Some(entry) = waiting.pop_front() {
            if entry.class.is_report() {
                // It was there before.
                let _ = self.outbox.push_back(entry);
            } else {
                self.outbox_bytes -= entry.data.as_ref().len();
            }
        }
    }

    fn position(&self, tag: &Tag) -> Option<usize> {
        self.outbox.iter().position(|e| e.class.tag() == Some(tag))
    }

    fn kept(&self) -> usize {
        self.outbox.len() + self.reports_in_flight + self.held.len()
    }

    /// How many more messages the outbox takes.
    pub(super) fn room(&self) -> usize {
        let most = self.limits.outbox_entries_max.min(self.outbox.capacity());
        if self.outbox_bytes >= self.limits.outbox_bytes_max { 0 } else { most.saturating_sub(self.kept()) }
    }

    /// Whether the outbox has room again after it refused something; true once.
    pub(super) fn regained_room(&mut self) -> bool {
        let regained = self.full && self.room() > 0;
        self.full &= !regained;
        regained
    }

    /// Puts a message into the outbox, in the place of one with the same tag that still waits there.
    pub(super) fn queue(&mut self, class: Class, body: &Body<'_>, hint: usize) -> Result<(), SendError> {
        let data = self.encode(body, hint)?;
        let len = data.as_ref().len();
        if let Some(waiting) = class.tag().and_then(|tag| self.position(tag))
            && let Some(entry) = self.outbox.iter_mut().nth(waiting)
        {
            self.outbox_bytes = self.outbox_bytes - entry.data.as_ref().len() + len;
            entry.data = data;
            return Ok(());
        }
        if self.room() == 0 {
            self.full = true;
            return Err(SendError::Full);
        }
        let entry = Entry { class, data, first: 0, fragments: 0 };
        self.outbox.push_back(entry).map_err(|_| SendError::Full)?;
        self.outbox_bytes += len;
        Ok(())
    }

    fn encode(&self, body: &Body<'_>, hint: usize) -> Result<S::Bytes, SendError> {
        let mut data = S::Bytes::default();
        // A microcontroller's buffer may hold the message though not the generous guess at its length.
        if hint > self.message_bytes + ENCODING_BYTES_MAX || !(data.resize(hint) || data.resize_to_capacity())
        {
            return Err(SendError::TooLarge(hint));
        }
        let len = codec::encode(body, data.as_mut()).map_err(|_| SendError::TooLarge(hint))?;
        if len > self.message_bytes || !data.resize(len) {
            return Err(SendError::TooLarge(len));
        }
        data.shrink();
        Ok(data)
    }

    /// Whether the window takes one more message.
    pub(super) fn admits(&self) -> bool {
        self.flight.len() < self.flight.capacity()
            && self.flight_bytes < self.limits.window_bytes_max
            && self.next_number < self.base + self.window
    }

    /// Puts a stream's message into flight; false if it can't be encoded.
    pub(super) fn launch_stream(&mut self, body: &Body<'_>, hint: usize) -> bool {
        match self.encode(body, hint) {
            Ok(data) => self.launch(Entry { class: Class::Stream, data, first: 0, fragments: 0 }),
            Err(_) => false,
        }
    }

    fn launch(&mut self, mut entry: Entry<S::Bytes>) -> bool {
        let len = entry.data.as_ref().len();
        entry.first = self.next_number;
        entry.fragments = len.div_ceil(self.fragment_bytes).max(1) as u64;
        let (end, report) = (entry.end(), entry.class.is_report());
        if self.flight.push_back(entry).is_err() {
            return false;
        }
        self.next_number = end;
        self.flight_bytes += len;
        self.reports_in_flight += usize::from(report);
        true
    }

    /// Moves messages from the outbox into flight while the window takes them.
    pub(super) fn launch_outbox(&mut self) {
        while self.admits() {
            let unsettled = self.held.len() + self.reports_in_flight;
            let most = self.limits.unsettled_reports_max.min(self.held.capacity());
            let Some(next) = self.outbox.iter().next() else { return };
            if next.class.is_report() && unsettled >= most {
                return;
            }
            let Some(entry) = self.outbox.pop_front() else { return };
            self.outbox_bytes -= entry.data.as_ref().len();
            // A message that the other side could never take would block those behind it.
            if entry.data.as_ref().len() <= self.message_bytes && !self.launch(entry) {
                return;
            }
        }
    }

    fn fragment(&self, number: u64) -> Option<Fragment<'_>> {
        let entry = self.flight.iter().find(|e| number < e.end())?;
        let at = usize::try_from(number.checked_sub(entry.first)?).ok()? * self.fragment_bytes;
        let rest = entry.data.as_ref().get(at..)?;
        let data = rest.get(..self.fragment_bytes).unwrap_or(rest);
        Some(Fragment { more: data.len() < rest.len(), data: crate::body::Blob(data) })
    }

    /// Whether there are fragments to send now.
    pub(super) fn has_fragments(&self) -> bool {
        self.send_next < self.next_number.min(self.base + self.window)
    }

    /// Writes the head and as many fragments as one frame takes; returns the payload's length.
    pub(super) fn write(&mut self, now_ms: u64, mut head: Head, out: &mut [u8]) -> Option<usize> {
        let end = self.next_number.min(self.base + self.window);
        let mut total = 0;
        head.first = self.send_next;
        head.ack = self.receive_next;
        while self.send_next + u64::from(head.fragments) < end && usize::from(head.fragments) < FRAGMENTS_MAX
        {
            let len = self.fragment(self.send_next + u64::from(head.fragments))?.data.0.len();
            if head.fragments > 0 && total + len > self.fragment_bytes {
                break;
            }
            total += len;
            head.fragments += 1;
        }
        let mut at = codec::encode(&head, out).ok()?;
        for number in head.first..head.first + u64::from(head.fragments) {
            at += codec::encode(&self.fragment(number)?, out.get_mut(at..)?).ok()?;
        }
        if head.fragments > 0 {
            self.send_next += u64::from(head.fragments);
            self.clock.deadline.get_or_insert(now_ms + self.clock.wait_ms);
            self.clock.sample.get_or_insert((self.send_next, now_ms));
        }
        Some(at)
    }

    /// Takes an acknowledgement; `Err` if it is for something that was never sent.
    pub(super) fn acknowledged(&mut self, now_ms: u64, ack: u64, bare: bool) -> Result<(), &'static str> {
        if ack > self.next_number {
            return Err("it acknowledges what was not sent");
        }
        if ack <= self.base {
            let waiting = ack == self.base && self.send_next > self.base;
            if bare && waiting {
                self.clock.repeated_acks = self.clock.repeated_acks.saturating_add(1);
                // Once a round: three say that something is missing, more say the same.
                if self.clock.repeated_acks == 3 {
                    self.send_again();
                }
            }
            return Ok(());
        }
        self.base = ack;
        self.send_next = self.send_next.max(ack);
        while self.flight.iter().next().is_some_and(|e| e.end() <= ack) {
            let Some(entry) = self.flight.pop_front() else { break };
            self.flight_bytes -= entry.data.as_ref().len();
            if entry.class.is_report() {
                self.reports_in_flight -= 1;
                // The bound on unsettled reports leaves room for it.
                let _ = self.held.push_back(entry);
            }
        }
        self.clock.measure(now_ms, ack, &self.timing);
        self.clock.deadline = (self.send_next > self.base).then_some(now_ms + self.clock.wait_ms);
        Ok(())
    }

    /// Forgets reports that are durable on the other side.
    pub(super) fn settled(&mut self, upto: u64) {
        while self.held.iter().next().is_some_and(|e| e.end() <= upto.saturating_add(1)) {
            self.held.pop_front();
        }
    }

    /// Whether reports wait to be settled.
    pub(super) fn awaits_settlement(&self) -> bool {
        !self.held.is_empty()
    }

    fn send_again(&mut self) {
        self.send_next = self.base;
        self.clock.sample = None;
        self.clock.deadline = None;
    }

    /// When what is in flight is due to be sent again.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.clock.deadline
    }

    /// Sends again what is overdue.
    pub(super) fn tick(&mut self, now_ms: u64) {
        if self.clock.deadline.is_some_and(|at| at <= now_ms) {
            self.send_again();
            self.clock.wait_ms = (self.clock.wait_ms * 2).min(self.timing.retransmit_max_ms);
        }
    }

    /// Largest piece of a stream that fits a fragment together with what stands around it.
    pub(super) fn stream_piece_bytes(&self) -> usize {
        self.fragment_bytes.min(self.message_bytes).saturating_sub(32).max(1)
    }

    /// How long to wait for an answer, judging by the round trips so far.
    pub(super) fn wait_ms(&self) -> u64 {
        self.clock.wait_ms
    }
}

/// Most bytes that the encoding of a message takes beside its texts and bytes.
pub(super) const ENCODING_BYTES_MAX: usize = 64;

impl Clock {
    fn measure(&mut self, now_ms: u64, ack: u64, timing: &Timing) {
        self.repeated_acks = 0;
        if let Some((upto, sent_ms)) = self.sample
            && ack >= upto
        {
            let round_ms = now_ms.saturating_sub(sent_ms);
            let smoothed = self.smoothed_ms.map_or(round_ms, |old| (old * 7 + round_ms) / 8);
            self.smoothed_ms = Some(smoothed);
            self.sample = None;
        }
        let wait_ms = self.smoothed_ms.map_or(timing.retransmit_ms, |smoothed| smoothed * 3);
        self.wait_ms = wait_ms.clamp(timing.retransmit_min_ms, timing.retransmit_max_ms);
    }
}
