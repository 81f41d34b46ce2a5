//! The streams of a session: bytes in both directions, each direction with credit granted by its receiver.
//!
//! Invariants: no more is sent than was granted, no more is buffered than the limits say, offsets are
//! contiguous; a stream's memory is freed when both directions have ended.

use core::str;

use super::channel::{Channel, ENCODING_BYTES_MAX};
use super::config::Limits;
use super::error::SendError;
use super::event::{Event, StreamId};
use super::storage::{Bytes, List, Storage};
use crate::body::{Blob, Body};

/// Longest reason given when a stream ends early.
pub const STREAM_ERROR_BYTES_MAX: usize = 256;

/// How far this side's direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// Bytes may follow.
    Open,
    /// Nothing follows those in `out`.
    Finishing,
    /// The reason in `out` must be sent.
    Resetting,
    /// The end was sent.
    Ended,
}

struct Stream<B> {
    id: u32,
    /// What this side asks for, until it is sent.
    request: Option<B>,
    sending: Sending,
    out: B,
    out_offset: u64,
    out_limit: u64,
    in_offset: u64,
    in_limit: u64,
    in_limit_told: u64,
    in_ended: bool,
    /// Something was not taken and the owner waits for room.
    blocked: bool,
}

impl<B: Bytes> Stream<B> {
    fn is_over(&self) -> bool {
        self.sending == Sending::Ended && self.in_ended
    }

    /// Whether the other side should hear of more credit: when it has little left.
    fn credit_due(&self, full: u64) -> bool {
        !self.in_ended && self.in_limit - self.in_limit_told >= (full / 2).max(1)
    }
}

pub(super) struct Streams<S: Storage> {
    list: S::List<Stream<S::Bytes>>,
    refused: S::List<u32>,
    agent: bool,
    opened: u32,
    opened_by_peer: u32,
    limits: Limits,
}

impl<S: Storage> Streams<S> {
    pub(super) fn new(agent: bool, limits: Limits) -> Self {
        let (list, refused) = Default::default();
        Self { list, refused, agent, opened: 0, opened_by_peer: 0, limits }
    }

    /// Forgets all streams; a new session numbers them anew.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.agent, self.limits);
    }

    fn get(&mut self, id: u32) -> Option<&mut Stream<S::Bytes>> {
        self.list.iter_mut().find(|s| s.id == id)
    }

    fn is_full(&self) -> bool {
        self.list.len() >= self.limits.streams_max.min(self.list.capacity())
    }

    fn add(&mut self, id: u32, request: Option<S::Bytes>, out_limit: u64) -> Result<(), SendError> {
        let in_limit = self.limits.stream_credit_bytes;
        let stream = Stream {
            id,
            // The request itself tells the first credit.
            in_limit_told: if request.is_some() { in_limit } else { 0 },
            request,
            sending: Sending::Open,
            out: Default::default(),
            out_offset: 0,
            out_limit,
            in_offset: 0,
            in_limit,
            in_ended: false,
            blocked: false,
        };
        self.list.push_back(stream).map_err(|_| SendError::Full)
    }

    pub(super) fn open(&mut self, request: &[u8], message_bytes_max: usize) -> Result<StreamId, SendError> {
        if self.is_full() || self.opened >= u32::MAX / 2 - 1 {
            return Err(SendError::Full);
        }
        let mut kept = S::Bytes::default();
        if request.len() + ENCODING_BYTES_MAX > message_bytes_max || !kept.extend(request) {
            return Err(SendError::TooLarge(request.len()));
        }
        let id = (self.opened + 1) * 2 + u32::from(self.agent);
        self.add(id, Some(kept), 0)?;
        self.opened += 1;
        Ok(StreamId(id))
    }

    pub(super) fn write(&mut self, id: StreamId, data: &[u8]) -> Result<usize, SendError> {
        let most = self.limits.stream_send_bytes_max;
        let stream = self.get(id.0).filter(|s| s.sending == Sending::Open).ok_or(SendError::NoStream)?;
        let mut taken = data.len().min(most.saturating_sub(stream.out.as_ref().len()));
        while taken > 0 && !stream.out.extend(&data[..taken]) {
            taken /= 2;
        }
        stream.blocked = taken < data.len();
        Ok(taken)
    }

    pub(super) fn finish(&mut self, id: StreamId) -> Result<(), SendError> {
        let stream = self.get(id.0).filter(|s| s.sending == Sending::Open).ok_or(SendError::NoStream)?;
        stream.sending = Sending::Finishing;
        Ok(())
    }

    pub(super) fn reset(&mut self, id: StreamId, error: &str) -> Result<(), SendError> {
        let stream = self.get(id.0).ok_or(SendError::NoStream)?;
        if stream.request.is_some() || stream.is_over() {
            // The other side has never heard of it, or has nothing left to hear.
            self.forget(id.0);
            return Ok(());
        }
        let mut end = error.len().min(STREAM_ERROR_BYTES_MAX);
        while !error.is_char_boundary(end) {
            end -= 1;
        }
        stream.out = Default::default();
        // A reason that does not fit is left out; the stream still ends.
        let _ = stream.out.extend(&error.as_bytes()[..end]);
        stream.sending = Sending::Resetting;
        stream.in_ended = true;
        Ok(())
    }

    pub(super) fn grant(&mut self, id: StreamId, bytes: u64) -> Result<(), SendError> {
        let most = self.limits.stream_credit_bytes;
        let stream = self.get(id.0).ok_or(SendError::NoStream)?;
        // Never more than a full buffer beyond what has arrived, whatever the owner says it used up.
        let limit = stream.in_limit.saturating_add(bytes).min(stream.in_offset.saturating_add(most));
        stream.in_limit = stream.in_limit.max(limit);
        Ok(())
    }

    fn forget(&mut self, id: u32) {
        let index = self.list.iter().position(|s| s.id == id);
        index.and_then(|index| self.list.remove(index));
    }

    /// Puts openings, credit and resets into flight: they are small and unblock the other side.
    pub(super) fn launch_control(&mut self, channel: &mut Channel<S>) {
        while channel.admits()
            && let Some(id) = self.refused.pop_front()
        {
            channel.launch_stream(&Body::StreamEnd { id, error: Some("too many streams") }, 64);
        }
        let full = self.limits.stream_credit_bytes;
        for stream in self.list.iter_mut() {
            if !channel.admits() {
                return;
            }
            if let Some(request) = stream.request.take() {
                let request = Blob(request.as_ref());
                let open = Body::StreamOpen { id: stream.id, credit: stream.in_limit, request };
                channel.launch_stream(&open, request.0.len() + ENCODING_BYTES_MAX);
                stream.in_limit_told = stream.in_limit;
            } else if stream.sending == Sending::Resetting {
                // The buffer holds the start of a valid text, cut at a boundary.
                let error = str::from_utf8(stream.out.as_ref()).unwrap_or_default();
                let end = Body::StreamEnd { id: stream.id, error: Some(error) };
                channel.launch_stream(&end, error.len() + ENCODING_BYTES_MAX);
                stream.sending = Sending::Ended;
            } else if stream.credit_due(full) {
                channel.launch_stream(&Body::StreamCredit { id: stream.id, limit: stream.in_limit }, 64);
                stream.in_limit_told = stream.in_limit;
            }
        }
        self.sweep();
    }

    /// Puts data into flight, a piece of each stream in turn, and the ends that follow it.
    pub(super) fn launch_data(&mut self, channel: &mut Channel<S>) {
        let piece = channel.stream_piece_bytes();
        let mut progress = true;
        while progress && channel.admits() {
            progress = false;
            for stream in self.list.iter_mut() {
                if !channel.admits() || stream.request.is_some() {
                    continue;
                }
                let waiting = stream.out.as_ref().len();
                if !matches!(stream.sending, Sending::Open | Sending::Finishing) {
                    continue;
                }
                let credit = stream.out_limit.saturating_sub(stream.out_offset);
                let len = waiting.min(piece).min(usize::try_from(credit).unwrap_or(usize::MAX));
                if len > 0 {
                    let data = Blob(&stream.out.as_ref()[..len]);
                    let body = Body::StreamData { id: stream.id, offset: stream.out_offset, data };
                    if channel.launch_stream(&body, len + ENCODING_BYTES_MAX) {
                        stream.out.drop_front(len);
                        stream.out_offset += len as u64;
                        progress = true;
                    }
                } else if waiting == 0 && stream.sending == Sending::Finishing {
                    channel.launch_stream(&Body::StreamEnd { id: stream.id, error: None }, 64);
                    stream.sending = Sending::Ended;
                    progress = true;
                }
            }
        }
        self.sweep();
    }

    fn sweep(&mut self) {
        loop {
            let over = self.list.iter().position(Stream::is_over);
            if over.and_then(|index| self.list.remove(index)).is_none() {
                return;
            }
        }
    }

    /// Tells of streams that can be written to again.
    pub(super) fn tell_writable(&mut self, sink: &mut dyn FnMut(Event<'_>)) {
        let half = self.limits.stream_send_bytes_max / 2;
        for stream in self.list.iter_mut() {
            if stream.blocked && stream.sending == Sending::Open && stream.out.as_ref().len() <= half {
                stream.blocked = false;
                sink(Event::StreamWritable { id: StreamId(stream.id) });
            }
        }
    }

    pub(super) fn opened(
        &mut self,
        id: u32,
        credit: u64,
        request: &[u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), &'static str> {
        if id % 2 == u32::from(self.agent) || id / 2 <= self.opened_by_peer {
            return Err("a stream's number is used twice or is not the sender's to give");
        }
        self.opened_by_peer = id / 2;
        if self.is_full() || self.add(id, None, credit).is_err() {
            return self.refused.push_back(id).map_err(|_| "too many streams at once");
        }
        sink(Event::StreamOpened { id: StreamId(id), request });
        Ok(())
    }

    pub(super) fn data(
        &mut self,
        id: u32,
        offset: u64,
        data: &[u8],
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), &'static str> {
        let Some(stream) = self.get(id) else { return Ok(()) };
        if stream.sending == Sending::Resetting {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64).ok_or("a stream's offset overflows")?;
        if stream.in_ended || offset != stream.in_offset {
            return Err("a stream's bytes are out of place");
        }
        if end > stream.in_limit {
            return Err("a stream exceeds its credit");
        }
        stream.in_offset = end;
        sink(Event::StreamData { id: StreamId(id), data });
        Ok(())
    }

    pub(super) fn credit(&mut self, id: u32, limit: u64) {
        if let Some(stream) = self.get(id) {
            stream.out_limit = stream.out_limit.max(limit);
        }
    }

    pub(super) fn ended(&mut self, id: u32, error: Option<&str>, sink: &mut dyn FnMut(Event<'_>)) {
        let Some(stream) = self.get(id) else { return };
        let known = stream.in_ended;
        stream.in_ended = true;
        let over = error.is_some() || stream.sending == Sending::Ended;
        if over {
            self.forget(id);
        }
        if !known || error.is_some() {
            sink(Event::StreamEnded { id: StreamId(id), error });
        }
    }
}
