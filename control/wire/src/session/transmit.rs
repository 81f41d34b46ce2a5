//! What a session sends, and when.

use super::handshake::{self, hello_key, solicit_key, welcome_key};
use super::storage::Storage;
use super::{Config, Event, LostReason, Session};
use crate::body::{Blob, Head, Hello, Solicit, Welcome};
use crate::frame::{DATA_HEADER_BYTES, Header, TAG_BYTES};

impl<S: Storage> Session<S> {
    /// Writes the next frame that is due and returns its length; `None` if there is none now. Call it until
    /// then, after any other call. `out` must hold what either side's limits make of a frame:
    /// `fragment_bytes_max` and [`crate::body::FRAME_OVERHEAD_BYTES`], and no less than 1 KiB.
    pub fn transmit(&mut self, now_ms: u64, out: &mut [u8]) -> Option<usize> {
        if !self.linked {
            return None;
        }
        if let Some(len) = self.goodbye(out) {
            return Some(len);
        }
        if let Some(len) = self.handshake(now_ms, out) {
            return Some(len);
        }
        self.launch();
        let live = self.live.as_mut()?;
        if !live.frame_due && !self.channel.has_fragments() {
            return None;
        }
        let head = Head { settled: self.settled, answer: live.ask, ..Head::default() };
        let space = out.len().checked_sub(TAG_BYTES)?;
        let payload = self.channel.write(now_ms, head, out.get_mut(DATA_HEADER_BYTES..space)?)?;
        let len = live.keys.seal(out, payload).ok()?;
        live.frame_due = false;
        live.ask = false;
        live.sent_ms = now_ms;
        if self.channel.awaits_settlement() && live.settlement_ask_ms.is_none() {
            live.settlement_ask_ms = Some(now_ms + live.keepalive_ms.min(SETTLEMENT_ASK_MS));
        }
        Some(len)
    }

    /// Puts into flight what the window takes: what unblocks the other side first, bulk data last.
    pub(super) fn launch(&mut self) {
        if self.live.is_some() {
            self.streams.launch_control(&mut self.channel);
            self.channel.launch_outbox();
            self.streams.launch_data(&mut self.channel);
        }
    }

    fn goodbye(&mut self, out: &mut [u8]) -> Option<usize> {
        let mut keys = self.goodbye.take()?;
        let head = Head { bye: true, ack: 1, ..Head::default() };
        let payload = crate::codec::encode(&head, out.get_mut(DATA_HEADER_BYTES..)?).ok()?;
        keys.seal(out, payload).ok()
    }

    fn handshake(&mut self, now_ms: u64, out: &mut [u8]) -> Option<usize> {
        match &self.config {
            Config::Agent(config) => {
                self.asking.due.filter(|at| *at <= now_ms)?;
                let nonce = self.nonces.draw();
                let hello = Hello {
                    node: &config.node,
                    boot_id: Blob(&config.boot_id),
                    agent_version: &config.agent_version,
                    profile: &config.profile,
                    epoch_seen: config.epoch_seen,
                    synced: config.synced,
                    capacity: config.limits.capacity(),
                };
                let key = hello_key(&config.key, &config.node, &nonce);
                let len = handshake::write(&key, &Header::Hello(nonce), &hello, out)?;
                self.asking.nonce = Some(nonce);
                // Spread by a quarter, so that a fleet that lost its gateway does not ask in step.
                let wait_ms = self.asking.wait_ms.max(config.timing.hello_retry_ms);
                let spread_ms = self.nonces.below(wait_ms / 4 + 1);
                self.asking.due = Some(now_ms + wait_ms + spread_ms);
                self.asking.wait_ms = (wait_ms * 2).min(config.timing.hello_retry_max_ms);
                Some(len)
            }
            Config::Gateway(config) => {
                if let Some(pending) = self.pending.as_mut().filter(|p| p.welcome_due) {
                    pending.welcome_due = false;
                    let welcome = Welcome {
                        epoch: config.epoch,
                        incarnation: config.incarnation,
                        keepalive_ms: config.timing.keepalive_ms,
                        capacity: config.limits.capacity(),
                    };
                    let nonce = pending.welcome_nonce;
                    let key = welcome_key(&pending.key, &config.node, &pending.hello_nonce, &nonce);
                    return handshake::write(&key, &Header::Welcome(nonce), &welcome, out);
                }
                if self.solicit_due {
                    self.solicit_due = false;
                    let nonce = self.nonces.draw();
                    let key = solicit_key(&config.key, &config.node, &nonce);
                    let solicit = Solicit { epoch: config.epoch };
                    return handshake::write(&key, &Header::Solicit(nonce), &solicit, out);
                }
                None
            }
        }
    }

    /// When [`Session::tick`] or [`Session::transmit`] has something to do next, if nothing else happens.
    pub fn next_timeout(&self) -> Option<u64> {
        if !self.linked {
            return None;
        }
        let mut next = self.asking.due;
        let mut consider = |at: Option<u64>| next = next.into_iter().chain(at).min();
        if let Some(live) = &self.live {
            consider(self.channel.deadline());
            consider(Some(live.heard_ms + self.timing().silence_max_ms));
            consider(live.probe_by_ms);
            consider(live.settlement_ask_ms);
            if matches!(self.config, Config::Agent(_)) {
                consider(Some(live.sent_ms + live.keepalive_ms));
                if !live.confirmed {
                    consider(Some(live.sent_ms + self.channel.wait_ms()));
                    consider(Some(live.confirm_by_ms));
                }
            }
        }
        next
    }

    /// Does what is due by time; call it when [`Session::next_timeout`] has passed.
    pub fn tick(&mut self, now_ms: u64, sink: &mut dyn FnMut(Event<'_>)) {
        let timing = self.timing();
        let agent = matches!(self.config, Config::Agent(_));
        if let Some(live) = &mut self.live {
            let silent = now_ms >= live.heard_ms + timing.silence_max_ms
                || live.probe_by_ms.is_some_and(|at| at <= now_ms)
                || (!live.confirmed && now_ms >= live.confirm_by_ms);
            if silent {
                self.lose(now_ms, LostReason::Silence, sink);
                return;
            }
            let unconfirmed = !live.confirmed && now_ms >= live.sent_ms + self.channel.wait_ms();
            let quiet = now_ms >= live.sent_ms + live.keepalive_ms;
            let unsettled = live.settlement_ask_ms.is_some_and(|at| at <= now_ms);
            if unsettled {
                live.settlement_ask_ms = None;
            }
            if agent && (unconfirmed || quiet || unsettled) {
                live.frame_due = true;
                live.ask = true;
            }
            self.channel.tick(now_ms);
            self.launch();
            if self.channel.regained_room() {
                sink(Event::Room);
            }
            self.streams.tell_writable(sink);
        }
    }
}

/// How long reports may stay unsettled until the agent asks after them, in case the word was lost.
const SETTLEMENT_ASK_MS: u64 = 5_000;
