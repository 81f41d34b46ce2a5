//! Both applications, played over real sessions, and the checks on what they see.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use super::play::{
    INCARNATION, Input, KIND, Outcome, Script, Seen, agent_config, body, bytes_until, gateway_config,
};
use super::{Arrival, Carrier, Rng, Side};
use crate::FRAME_BYTES_MAX;
use crate::session::{Config, Event, Growable, ReportId, SendError, Session, Storage, StreamId};

/// What both sides say about an object: a number that only grows, and its body made from it.
type Objects = BTreeMap<String, u64>;

#[derive(Default)]
struct Pull {
    wanted: u64,
    got: u64,
    stream: Option<StreamId>,
    done: bool,
}

/// Both applications and their sessions.
pub struct Suite<'c, C: Carrier, S: Storage = Growable> {
    carrier: &'c mut C,
    rng: Rng,
    script: Script,
    agent: Session<S>,
    gateway: Session<Growable>,
    linked: [bool; 2],
    outcome: Outcome,
    // The gateway's application.
    version: u64,
    desired: Objects,
    changed: BTreeMap<u64, String>,
    dirty: BTreeSet<String>,
    snapshot: Option<Vec<String>>,
    serving: BTreeMap<StreamId, (u64, u64)>,
    unsettled: Vec<ReportId>,
    reported: Objects,
    // The agent's application.
    have: Objects,
    staged: Option<BTreeSet<String>>,
    said: Objects,
    unsaid: BTreeSet<String>,
    pulls: Vec<Pull>,
}

impl<'c, C: Carrier, S: Storage> Suite<'c, C, S> {
    /// Prepares a run.
    pub fn new(carrier: &'c mut C, seed: u64, script: Script) -> Self {
        let mut rng = Rng::new(seed);
        let agent = Session::new(agent_config(&script, 0, None, rng.seed()), rng.seed());
        let gateway = Session::new(gateway_config(1), rng.seed());
        Self {
            carrier,
            rng,
            script,
            agent,
            gateway,
            linked: [false; 2],
            outcome: Outcome::default(),
            version: 1,
            desired: Objects::new(),
            changed: BTreeMap::new(),
            dirty: BTreeSet::new(),
            snapshot: None,
            serving: BTreeMap::new(),
            unsettled: Vec::new(),
            reported: Objects::new(),
            have: Objects::new(),
            staged: None,
            said: Objects::new(),
            unsaid: BTreeSet::new(),
            pulls: Vec::new(),
        }
    }

    /// Plays the script, heals, and checks that both sides agree.
    pub fn run(mut self) -> Outcome {
        for _ in 0..self.script.steps {
            self.act();
            let until_ms = self.carrier.now_ms() + self.rng.below(self.script.step_max_ms);
            self.play(until_ms, false);
        }
        self.carrier.heal();
        let until_ms = self.carrier.now_ms() + self.script.settle_ms;
        self.play(until_ms, true);
        assert_eq!(self.have, self.desired, "the node has not what it should have");
        assert_eq!(self.reported, self.said, "the gateway has not heard the last of every report");
        assert!(self.pulls.iter().all(|p| p.done), "a stream was not read to its end");
        self.outcome
    }

    fn agreed(&self) -> bool {
        self.have == self.desired && self.reported == self.said && self.pulls.iter().all(|p| p.done)
    }

    fn act(&mut self) {
        let script = self.script;
        if self.rng.below(1000) < script.cuts_permille {
            let side = if self.rng.percent(50) { Side::Agent } else { Side::Gateway };
            self.carrier.cut(side);
        }
        if self.rng.below(1000) < script.agent_restarts_permille {
            self.restart_agent();
        }
        if self.rng.below(1000) < script.takeovers_permille {
            self.take_over();
        }
        let key = format!("default/o{}", self.rng.below(script.objects));
        match self.rng.below(10) {
            0..=3 => {
                self.version += 1;
                if self.rng.percent(20) {
                    self.desired.remove(&key);
                } else {
                    self.desired.insert(key.clone(), self.version);
                }
                self.changed.retain(|_, k| *k != key);
                self.changed.insert(self.version, key.clone());
                self.dirty.insert(key);
            }
            4..=8 => {
                *self.said.entry(key.clone()).or_default() += 1;
                self.unsaid.insert(key);
            }
            _ if self.pulls.iter().filter(|p| !p.done).count() < 3 => {
                let wanted = self.rng.below(script.stream_bytes_max);
                self.pulls.push(Pull { wanted, ..Pull::default() });
            }
            _ => {}
        }
    }

    fn restart_agent(&mut self) {
        let Config::Agent(old) = self.agent.config() else { return };
        // The checkpoint is older than what the agent knew, if anything.
        let synced = old.synced.filter(|_| self.rng.percent(80));
        let config = agent_config(&self.script, old.epoch_seen, synced, self.rng.seed());
        self.agent = Session::new(config, self.rng.seed());
        if synced.is_none() {
            self.have.clear();
        }
        self.staged = None;
        self.pulls.iter_mut().for_each(|p| p.stream = None);
        if self.linked[Side::Agent as usize] {
            self.agent.link_up(self.carrier.now_ms());
        }
    }

    fn take_over(&mut self) {
        let now_ms = self.carrier.now_ms();
        self.gateway = Session::new(gateway_config(self.gateway.epoch() + 1), self.rng.seed());
        self.lost_at_gateway();
        if self.linked[Side::Gateway as usize] {
            self.gateway.link_up(now_ms);
            self.gateway.solicit(now_ms);
        }
    }

    fn lost_at_gateway(&mut self) {
        self.serving.clear();
        self.unsettled.clear();
        self.snapshot = None;
        self.dirty.clear();
    }

    /// Lets time pass.
    fn play(&mut self, until_ms: u64, stop_when_agreed: bool) {
        loop {
            self.applications();
            self.transmit();
            let now_ms = self.carrier.now_ms();
            if now_ms >= until_ms || (stop_when_agreed && self.agreed()) {
                return;
            }
            let next = [self.agent.next_timeout(), self.gateway.next_timeout(), Some(until_ms)];
            let next_ms = next.into_iter().flatten().min().unwrap_or(until_ms).max(now_ms + 1);
            match self.carrier.next(next_ms) {
                Some(Arrival::Up(side)) => {
                    self.linked[side as usize] = true;
                    match side {
                        Side::Agent => self.agent.link_up(self.carrier.now_ms()),
                        Side::Gateway => {
                            self.gateway.link_up(self.carrier.now_ms());
                            self.gateway.solicit(self.carrier.now_ms());
                        }
                    }
                }
                Some(Arrival::Down(side)) => {
                    self.linked[side as usize] = false;
                    self.feed(side, Input::Down);
                }
                Some(Arrival::Frame(side, frame)) => {
                    self.feed(side, Input::Frame(frame));
                }
                None => {
                    for side in [Side::Agent, Side::Gateway] {
                        self.feed(side, Input::Tick);
                    }
                }
            }
        }
    }

    fn feed(&mut self, side: Side, input: Input) {
        let now_ms = self.carrier.now_ms();
        let mut seen = Vec::new();
        let most = self.script.body_bytes_max;
        let mut sink = |event: Event<'_>| seen.push(Seen::from(event, most));
        let refused = match side {
            Side::Agent => input.give(&mut self.agent, now_ms, &mut sink),
            Side::Gateway => input.give(&mut self.gateway, now_ms, &mut sink),
        };
        self.outcome.refused += u64::from(refused);
        for event in seen {
            match side {
                Side::Agent => self.agent_event(event),
                Side::Gateway => self.gateway_event(event),
            }
        }
    }

    fn transmit(&mut self) {
        let now_ms = self.carrier.now_ms();
        let mut out = vec![0; FRAME_BYTES_MAX];
        while let Some(len) = self.agent.transmit(now_ms, &mut out) {
            self.carrier.send(Side::Agent, &out[..len]);
        }
        while let Some(len) = self.gateway.transmit(now_ms, &mut out) {
            self.carrier.send(Side::Gateway, &out[..len]);
        }
    }

    fn agent_event(&mut self, event: Seen) {
        match event {
            Seen::Connected(_) => {
                self.unsaid.extend(self.said.keys().cloned());
                self.staged = None;
            }
            Seen::Lost => {
                self.staged = None;
                self.pulls.iter_mut().for_each(|p| p.stream = None);
            }
            Seen::Begin => self.staged = Some(BTreeSet::new()),
            Seen::Item(key, number) => {
                if let Some(staged) = &mut self.staged {
                    staged.insert(key.clone());
                }
                self.have.insert(key, number);
            }
            Seen::Remove(key) => {
                self.have.remove(&key);
            }
            Seen::End => {
                let staged = self.staged.take().expect("a snapshot ends that has not begun");
                self.have.retain(|key, _| staged.contains(key));
            }
            Seen::Data(id, data) => {
                let pull = self.pulls.iter_mut().find(|p| p.stream == Some(id)).expect("data of no stream");
                assert_eq!(data, bytes_until(pull.got, u64::MAX, data.len() as u64), "not byte-exact");
                pull.got += data.len() as u64;
                // The same frame may have brought the end, after which there is nothing to grant.
                let _ = self.agent.stream_grant(id, data.len() as u64);
            }
            Seen::Ended(id, error) => {
                assert_eq!(error, None);
                let pull = self.pulls.iter_mut().find(|p| p.stream == Some(id)).expect("end of no stream");
                assert_eq!(pull.got, pull.wanted, "a stream ended early");
                pull.done = true;
                self.outcome.streams += 1;
            }
            Seen::Report(..) | Seen::Opened(..) => panic!("not for an agent"),
            Seen::Other => {}
        }
    }

    fn gateway_event(&mut self, event: Seen) {
        match event {
            Seen::Connected(synced) => {
                self.lost_at_gateway();
                self.outcome.sessions += 1;
                match synced {
                    Some(at) if at.incarnation == INCARNATION => {
                        self.outcome.resumed += 1;
                        self.dirty = self.changed.range(at.version + 1..).map(|(_, k)| k.clone()).collect();
                        // Even if nothing changed the mark is sent, since this run ends with equality anyway.
                    }
                    _ => {
                        let count = self.desired.len() as u32;
                        self.gateway.snapshot_begin(self.version, count).expect("an empty outbox takes it");
                        self.snapshot = Some(self.desired.keys().cloned().collect());
                    }
                }
            }
            Seen::Lost => self.lost_at_gateway(),
            Seen::Report(id, key, number) => {
                let before = self.reported.insert(key.clone(), number).unwrap_or_default();
                assert!(number >= before, "{key} went back from {before} to {number}");
                self.unsettled.push(id);
                self.outcome.reports += 1;
            }
            Seen::Opened(id, request) => {
                let mut numbers = request.split(' ').map(|n| n.parse().expect("a number"));
                let range = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
                self.serving.insert(id, range);
            }
            Seen::Ended(_, error) => assert_eq!(error, None),
            Seen::Data(..) | Seen::Begin | Seen::End | Seen::Item(..) | Seen::Remove(..) => {
                panic!("not for a gateway")
            }
            Seen::Other => {}
        }
    }

    /// What the applications do whenever they can.
    fn applications(&mut self) {
        let most = self.script.body_bytes_max;
        while let Some(key) = self.unsaid.first().cloned() {
            match self.agent.report(KIND, &key, "", &body(&key, self.said[&key], most)) {
                Ok(()) => self.unsaid.remove(&key),
                Err(SendError::Full) => break,
                Err(error) => panic!("a report was not taken: {error}"),
            };
        }
        for pull in self.pulls.iter_mut().filter(|p| !p.done && p.stream.is_none()) {
            let request = format!("{} {}", pull.got, pull.wanted);
            if let Ok(id) = self.agent.stream_open(request.as_bytes()) {
                self.agent.stream_finish(id).expect("the stream is there");
                pull.stream = Some(id);
            }
        }
        if !self.gateway.is_up() {
            return;
        }
        if self.rng.percent(50) {
            self.unsettled.drain(..).for_each(|id| self.gateway.settle(id));
        }
        self.send_desired(most);
        self.serving.retain(|id, (at, end)| {
            loop {
                let data = bytes_until(*at, *end, 4_000);
                let Ok(taken) = self.gateway.stream_write(*id, &data) else { return false };
                *at += taken as u64;
                if at == end || taken < data.len() {
                    break;
                }
            }
            if at == end {
                self.gateway.stream_finish(*id).expect("the stream is there");
            }
            at < end
        });
    }

    fn send_desired(&mut self, most: u64) {
        if let Some(keys) = &mut self.snapshot {
            while let Some(key) = keys.last() {
                let Some(number) = self.desired.get(key) else {
                    keys.pop();
                    continue;
                };
                if self.gateway.item(KIND, key, *number, &body(key, *number, most)).is_err() {
                    return;
                }
                keys.pop();
            }
            // What changed meanwhile follows as deltas.
            if self.gateway.snapshot_end(0).is_err() {
                return;
            }
            self.snapshot = None;
        }
        let had = !self.dirty.is_empty();
        while let Some(key) = self.dirty.first().cloned() {
            let sent = match self.desired.get(&key) {
                Some(number) => self.gateway.item(KIND, &key, *number, &body(&key, *number, most)),
                None => self.gateway.remove(KIND, &key, self.version),
            };
            if sent.is_err() {
                return;
            }
            self.dirty.remove(&key);
        }
        if had {
            // Should it not fit, the next one says more.
            let _ = self.gateway.mark_synced(self.version);
        }
    }
}
