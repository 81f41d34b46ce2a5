//! Which node is given a `NoExecute` taint next, and that none is while too many nodes are lost at once.
//!
//! As in Kubernetes: nodes that stay unready are tainted one after the other, each zone by itself. In a zone with more
//! than two unready nodes that are 55 % or more of it, tainting slows down if the zone is large and ends if it is small.
//! Where every zone has only unready nodes, the fault is most likely on this side: nothing is tainted, and taints are
//! taken off again.
//!
//! Nothing is remembered: when the last node of a zone was tainted is what the taints say. A node that came back counts
//! as lost until it has stayed for [`SETTLE`], so that a link which returns does not let the first nodes that are back
//! decide over those that follow.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Node, Taint};
use lichen_api::taints::{self, NO_EXECUTE, NO_SCHEDULE};
use lichen_api::view::View;

use super::{condition, is_lifecycle, no_execute_key, status, taint, with_taints};
use crate::meta::{created, is_deleting, name};
use crate::{Outcome, Step};

/// The labels that say in which zone a node is.
const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];
/// The time between two nodes that are tainted in a zone: Kubernetes' rate of 0.1 a second.
const PAUSE: Duration = Duration::from_secs(10);
/// The same in a large zone that is partially disrupted: 0.01 a second.
const PAUSE_DISRUPTED: Duration = Duration::from_secs(100);
/// Nodes up to which a zone is small.
const SMALL_ZONE_NODES: usize = 50;
/// Share of unready nodes from which on a zone is partially disrupted.
const UNHEALTHY_PERCENT: usize = 55;
/// Unready nodes up to which a zone is not disrupted.
const UNHEALTHY_NODES: usize = 2;
/// How long a node must have been ready until it counts.
const SETTLE: Duration = Duration::from_secs(40);

/// How much of a zone is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Normal,
    Partial,
    Full,
}

/// What matters of a node here.
#[derive(Debug, PartialEq)]
pub(super) struct Facts {
    zone: [String; 2],
    ready: Option<String>,
    since: Timestamp,
    taints: Vec<Taint>,
    deleting: bool,
}

impl Facts {
    pub(super) fn of(node: &Node) -> Facts {
        let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
        Facts {
            zone: ZONE_LABELS.map(|key| label(key).unwrap_or_default()),
            ready: status(node, "Ready").map(str::to_owned),
            since: since(node),
            taints: taints::of(node).iter().filter(|taint| is_lifecycle(taint)).cloned().collect(),
            deleting: is_deleting(&node.metadata),
        }
    }

    fn tainted_at(&self) -> Option<Timestamp> {
        let evicting = self.taints.iter().find(|taint| taint.effect == NO_EXECUTE)?;
        Some(evicting.time_added.as_ref().map_or(Timestamp::MIN, |time| time.0))
    }
}

/// Since when a node's Ready condition is what it is.
fn since(node: &Node) -> Timestamp {
    let ready = condition(node, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
    ready.map_or_else(|| created(&node.metadata), |time| time.0)
}

/// The nodes of a zone.
#[derive(Default)]
struct Zone<'v> {
    ready: usize,
    unready: usize,
    /// Nodes that should have the taint and do not, those that wait longest first.
    waiting: BTreeMap<(Timestamp, &'v str), &'v Node>,
    /// When the last node was tainted.
    last: Option<Timestamp>,
}

impl Zone<'_> {
    fn state(&self) -> State {
        match (self.ready, self.unready) {
            (0, 1..) => State::Full,
            (ready, unready)
                if unready > UNHEALTHY_NODES && unready * 100 >= (ready + unready) * UNHEALTHY_PERCENT =>
            {
                State::Partial
            }
            _ => State::Normal,
        }
    }

    /// The time between two nodes that are tainted; none if none is.
    fn pause(&self) -> Option<Duration> {
        match self.state() {
            State::Partial if self.ready + self.unready > SMALL_ZONE_NODES => Some(PAUSE_DISRUPTED),
            State::Partial => None,
            // The pods of a zone that is lost as a whole have others to go to.
            State::Normal | State::Full => Some(PAUSE),
        }
    }
}

/// Decides over all nodes.
pub(super) fn pass(view: &View, now: Timestamp) -> Outcome {
    let mut outcome = Outcome::done();
    let mut zones: BTreeMap<[String; 2], Zone<'_>> = BTreeMap::new();
    let mut tainted = Vec::new();
    for node in view.nodes.values() {
        let facts = Facts::of(node);
        if facts.deleting {
            continue;
        }
        let tainted_at = facts.tainted_at();
        // The node's own key puts the other taint on first, so that the two do not write at once.
        let known = facts.taints.iter().any(|taint| taint.effect == NO_SCHEDULE);
        let zone = zones.entry(facts.zone).or_default();
        zone.last = zone.last.max(tainted_at);
        if tainted_at.is_some() {
            tainted.push(&**node);
        }
        if facts.ready.as_deref() == Some("True") {
            let settles_in = left(facts.since, SETTLE, now);
            match settles_in {
                Duration::ZERO => zone.ready += 1,
                wait => {
                    zone.unready += 1;
                    outcome.requeue(wait);
                }
            }
            continue;
        }
        zone.unready += 1;
        if tainted_at.is_none() && known && no_execute_key(node).is_some() {
            zone.waiting.insert((facts.since, name(&node.metadata)), node);
        }
    }
    if zones.values().all(|zone| zone.state() == State::Full) {
        let steps = tainted.into_iter().map(|node| {
            let kept =
                taints::of(node).iter().filter(|taint| !is_lifecycle(taint) || taint.effect != NO_EXECUTE);
            Step::from(with_taints(node, kept.cloned().collect()))
        });
        outcome.steps.extend(steps);
        return outcome;
    }
    for zone in zones.values() {
        let (Some(pause), Some(node)) = (zone.pause(), zone.waiting.values().next()) else { continue };
        match zone.last.map_or(Duration::ZERO, |last| left(last, pause, now)) {
            Duration::ZERO => {
                let Some(key) = no_execute_key(node) else { continue };
                let mut all = taints::of(node).to_vec();
                all.push(taint(key, NO_EXECUTE, now));
                outcome.push(with_taints(node, all));
            }
            wait => outcome.requeue(wait),
        }
    }
    outcome
}

/// How long until `wait` has passed since a time.
fn left(since: Timestamp, wait: Duration, now: Timestamp) -> Duration {
    // A time to come has passed none of it.
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    wait.saturating_sub(passed)
}
