//! What must hold at every moment, held against each change of the log and each thing that a node does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lichen_api::quantity::Quantity;
use lichen_store::{Change, Committed, Record};
use serde_json::Value;

use crate::trace::{Invariant, Trace, note};

const PODS: &str = "/core/pods/";
const NODES: &str = "/core/nodes//";
/// Where gateways keep the owner epoch.
pub(crate) const EPOCH: &str = "/gateway/epoch";
/// Keys whose bodies hold what is secret and random: only that they changed is traced.
const UNTRACED: &str = "/gateway/";

/// The checks. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Checks {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
}

#[derive(Default)]
struct Inner {
    revision: u64,
    history: BTreeMap<u64, Vec<Arc<Change>>>,
    nodes: BTreeMap<String, Amounts>,
    pods: BTreeMap<String, Placed>,
    epoch: u64,
    /// The highest epoch that each node was connected under.
    connected: BTreeMap<String, u64>,
    /// How often sessions came to stand.
    sessions: usize,
    starts: BTreeSet<String>,
    reports: BTreeMap<String, Reports>,
}

/// What a node has or a pod asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) pods: i64,
}

/// A pod on a node, which counts there until it has ended.
struct Placed {
    uid: String,
    node: String,
    asks: Amounts,
}

/// The container statuses that a node reported of a pod, in order, and which of them is written.
#[derive(Default)]
struct Reports {
    told: Vec<Value>,
    written: usize,
}

impl Amounts {
    /// Of a list of resources.
    pub(crate) fn of(list: &Value) -> Self {
        let amount = |name: &str| list[name].as_str().and_then(|text| text.parse::<Quantity>().ok());
        Self {
            cpu_milli: amount("cpu").map_or(0, |cpu| cpu.milli()),
            memory_bytes: amount("memory").map_or(0, |memory| memory.units()),
            pods: amount("pods").map_or(0, |pods| pods.units()),
        }
    }

    /// What a pod asks for; simulated pods have no init containers.
    pub(crate) fn of_pod(pod: &Value) -> Self {
        let containers = pod["spec"]["containers"].as_array();
        let asked = containers.into_iter().flatten().map(|one| Self::of(&one["resources"]["requests"]));
        asked.fold(Self { pods: 1, ..Self::default() }, Self::plus)
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli + other.cpu_milli,
            memory_bytes: self.memory_bytes + other.memory_bytes,
            pods: self.pods + other.pods,
        }
    }

    pub(crate) fn fits(self, into: Self) -> bool {
        self.cpu_milli <= into.cpu_milli && self.memory_bytes <= into.memory_bytes && self.pods <= into.pods
    }
}

/// Whether a pod has ended for good.
pub(crate) fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

impl Checks {
    pub(crate) fn new(trace: Trace) -> Self {
        Self { inner: Arc::default(), trace }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction has been decided.
    pub(crate) fn committed(&self, index: usize, committed: Committed, changes: &[Arc<Change>]) {
        let mut inner = self.lock();
        let (before, now) = (inner.revision, committed.revision.0);
        inner.revision = now;
        let grew = if changes.is_empty() { before == now || before == 0 } else { now > before };
        if !grew {
            self.trace.violate(Invariant::Revisions, format!("{before} was followed by {now}"));
        }
        for change in changes {
            let key = change.key.as_str();
            let body = match &change.new {
                Some(record) if !key.starts_with(UNTRACED) => fingerprint(&record.json()),
                Some(_) => 1,
                None => 0,
            };
            note!(self.trace, "log {index} revision {now} {key} {body:x}");
            let value = || change.new.as_ref().and_then(|record| record.value().ok());
            if key == EPOCH {
                let text =
                    change.new.as_ref().map(|record| String::from_utf8_lossy(record.body()).into_owned());
                let epoch = text.and_then(|text| text.parse().ok()).unwrap_or(0);
                if epoch <= inner.epoch {
                    let detail = format!("the epoch {epoch} was granted after {}", inner.epoch);
                    self.trace.violate(Invariant::Epoch, detail);
                }
                inner.epoch = epoch;
            } else if let Some(name) = key.strip_prefix(NODES) {
                match value() {
                    Some(node) => {
                        inner.nodes.insert(name.to_owned(), Amounts::of(&node["status"]["allocatable"]))
                    }
                    None => inner.nodes.remove(name),
                };
            } else if key.starts_with(PODS) {
                self.pod(&mut inner, key, value(), change.old.as_ref());
            }
        }
        if !changes.is_empty() {
            inner.history.insert(now, changes.to_vec());
        }
    }

    fn pod(&self, inner: &mut Inner, key: &str, pod: Option<Value>, old: Option<&Record>) {
        let before = inner.pods.remove(key);
        let Some(pod) = pod else { return };
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        self.status(inner, key, uid, &pod, old);
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() || is_over(&pod) {
            return;
        }
        let placed = Placed { uid: uid.to_owned(), node: node.to_owned(), asks: Amounts::of_pod(&pod) };
        let new = before.is_none_or(|before| before.uid != uid || before.node != node);
        inner.pods.insert(key.to_owned(), placed);
        if new {
            let on_it = inner.pods.values().filter(|placed| placed.node == node);
            let used = on_it.fold(Amounts::default(), |sum, placed| sum.plus(placed.asks));
            let has = inner.nodes.get(node).copied().unwrap_or_default();
            if !used.fits(has) {
                self.trace
                    .violate(Invariant::Capacity, format!("{node} has {has:?}, its pods ask for {used:?}"));
            }
        }
    }

    /// The statuses that are written of a pod are those that its node reported, and none older than the last.
    fn status(&self, inner: &mut Inner, key: &str, uid: &str, pod: &Value, old: Option<&Record>) {
        let written = &pod["status"]["containerStatuses"];
        let before = old.and_then(|old| old.value().ok()).unwrap_or_default();
        if written.is_null()
            || before["metadata"]["uid"] == uid && before["status"]["containerStatuses"] == *written
        {
            return;
        }
        let Some(reports) = inner.reports.get_mut(uid) else {
            return self
                .trace
                .violate(Invariant::Status, format!("{key} has a status that no node reported"));
        };
        match reports.told[reports.written..].iter().position(|told| told == written) {
            Some(at) => reports.written += at,
            None => {
                let older = reports.told.iter().position(|told| told == written);
                let detail =
                    format!("{key}: report {older:?} was written after {}: {written}", reports.written);
                self.trace.violate(Invariant::Status, detail);
            }
        }
    }

    /// A node hands a report about a pod to its link.
    pub(crate) fn reported(&self, uid: &str, pod: &Value) {
        let statuses = without_nulls(pod["status"]["containerStatuses"].clone());
        if !statuses.is_null() {
            self.lock().reports.entry(uid.to_owned()).or_default().told.push(statuses);
        }
    }

    /// A node's session stands.
    pub(crate) fn connected(&self, node: &str, epoch: u64) {
        note!(self.trace, "{node} is connected, epoch {epoch}");
        let mut inner = self.lock();
        inner.sessions += 1;
        let before = inner.connected.insert(node.to_owned(), epoch).unwrap_or(0);
        drop(inner);
        if epoch < before {
            let detail = format!("{node} follows the epoch {epoch} after {before}");
            self.trace.violate(Invariant::Epoch, detail);
        }
    }

    /// A container is started.
    pub(crate) fn started(&self, node: &str, id: &str) {
        note!(self.trace, "{node} starts {id}");
        if !self.lock().starts.insert(id.to_owned()) {
            self.trace.violate(Invariant::Start, format!("{node} starts {id} once more"));
        }
    }

    /// The epoch that was granted last.
    pub(crate) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// How many containers were started so far.
    pub(crate) fn starts(&self) -> usize {
        self.lock().starts.len()
    }

    /// How often sessions came to stand so far.
    pub(crate) fn sessions(&self) -> usize {
        self.lock().sessions
    }

    /// What was written after a revision.
    pub(crate) fn since(&self, revision: u64) -> Vec<String> {
        let inner = self.lock();
        inner.history.range(revision + 1..).flat_map(|(_, all)| all).map(|one| one.key.to_string()).collect()
    }

    /// A client was told that a record was written.
    pub(crate) fn acknowledged(&self, record: &Record) {
        let inner = self.lock();
        let changes = inner.history.get(&record.revision().0).map(Vec::as_slice).unwrap_or_default();
        if !changes.iter().any(|change| change.told().as_ref() == Some(record)) {
            let detail = format!("revision {} is not what a client was told of it", record.revision());
            self.trace.violate(Invariant::Acknowledged, detail);
        }
    }
}

/// FNV-1a.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Absent fields are null on the wire.
pub(crate) fn without_nulls(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(|field| *field = without_nulls(field.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without_nulls(item.take())),
        _ => {}
    }
    value
}
