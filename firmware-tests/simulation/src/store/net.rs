//! The network between members: it loses, delays, repeats and reorders, and can be cut in either direction.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lichen_store::simulation::Process;
use lichen_store::{Network, Store};
use tokio::sync::oneshot;

use crate::dice::Dice;
use crate::trace::{Trace, note};

/// How badly the network does. Chances are out of a thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Levels {
    /// Messages that are lost.
    pub(super) loss: u64,
    /// Requests that arrive twice.
    pub(super) repeat: u64,
    /// How long a message is under way, in milliseconds: what is late is overtaken.
    pub(super) delay_ms: (u64, u64),
}

impl Levels {
    /// As a network should.
    pub(super) const CALM: Self = Self { loss: 0, repeat: 0, delay_ms: (0, 2) };
}

/// The network. Clones are the same one.
#[derive(Clone)]
pub(super) struct Net {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
}

struct Inner {
    dice: Dice,
    levels: Levels,
    members: BTreeMap<String, (Process, Store)>,
    /// Whose messages do not arrive at whom.
    cut: BTreeSet<(String, String)>,
}

impl Net {
    pub(super) fn new(dice: Dice, trace: Trace) -> Self {
        let (members, cut) = Default::default();
        let inner = Inner { dice, levels: Levels::CALM, members, cut };
        Self { inner: Arc::new(Mutex::new(inner)), trace }
    }

    /// The network as a member has it.
    pub(super) fn port(&self, name: &str, id: u64) -> Arc<dyn Network> {
        Arc::new(Port { net: self.clone(), name: name.to_owned(), id })
    }

    /// Lets a member be reached.
    pub(super) fn join(&self, name: &str, process: Process, store: Store) {
        self.inner().members.insert(name.to_owned(), (process, store));
    }

    /// Lets it be reached no more.
    pub(super) fn leave(&self, name: &str) {
        self.inner().members.remove(name);
    }

    pub(super) fn set(&self, levels: Levels) {
        self.inner().levels = levels;
    }

    /// Lets no message of one arrive at the other.
    pub(super) fn cut(&self, from: &str, to: &str) {
        self.inner().cut.insert((from.to_owned(), to.to_owned()));
    }

    /// Lets all messages arrive.
    pub(super) fn mend(&self) {
        self.inner().cut.clear();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a message takes; nothing if it does not arrive.
    fn way(&self) -> Option<Duration> {
        let inner = self.inner();
        let (low, high) = inner.levels.delay_ms;
        let delay = Duration::from_millis(inner.dice.between(low, high));
        (!inner.dice.chance(inner.levels.loss)).then_some(delay)
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        !self.inner().cut.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Carries a request and its reply, each of which may get lost.
    async fn carry(
        self,
        id: u64,
        from: String,
        to: String,
        request: Bytes,
        answer: oneshot::Sender<io::Result<Bytes>>,
    ) {
        let Some(delay) = self.way() else { return lost(answer).await };
        tokio::time::sleep(delay).await;
        if !self.reaches(&from, &to) {
            return lost(answer).await;
        }
        let found = self.inner().members.get(&to).cloned();
        let Some((process, store)) = found else {
            // Nobody listens there.
            let _ = answer.send(Err(io::ErrorKind::ConnectionRefused.into()));
            return;
        };
        let bytes = request.len();
        let reply = process.run(async move { store.serve(id, request).await });
        tokio::select! {
            biased;
            () = process.killed() => drop(answer.send(Err(io::ErrorKind::ConnectionReset.into()))),
            reply = reply => {
                note!(self.trace, "{from} asked {to} with {bytes} bytes, which answered with {}", reply.len());
                let Some(delay) = self.way() else { return lost(answer).await };
                tokio::time::sleep(delay).await;
                if !self.reaches(&to, &from) {
                    return lost(answer).await;
                }
                let _ = answer.send(Ok(reply));
            }
        }
    }
}

/// Nothing tells that a message was lost.
async fn lost(mut answer: oneshot::Sender<io::Result<Bytes>>) {
    answer.closed().await;
}

struct Port {
    net: Net,
    name: String,
    /// Whose it is.
    id: u64,
}

impl Network for Port {
    fn call<'a>(
        &'a self,
        _member: u64,
        address: &'a str,
        request: Bytes,
    ) -> BoxFuture<'a, io::Result<Bytes>> {
        async move {
            let repeat = {
                let inner = self.net.inner();
                inner.dice.chance(inner.levels.repeat)
            };
            let (answer, reply) = oneshot::channel();
            let carry = |answer| {
                let (from, to) = (self.name.clone(), address.to_owned());
                tokio::spawn(self.net.clone().carry(self.id, from, to, request.clone(), answer));
            };
            carry(answer);
            if repeat {
                // Whoever asked once listens to one answer.
                let (answer, mut unheard) = oneshot::channel();
                carry(answer);
                tokio::spawn(async move { drop((&mut unheard).await) });
            }
            reply.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?
        }
        .boxed()
    }
}
