//! A place on the timeline for every operation.
//!
//! Places are numbers: a write that made a revision has twice that number, and what saw the state after it the one
//! behind. Each operation gets the first place that fits what it saw and lies behind all that had ended when it began.
//! If that leads to no place for somebody then no other choice would, since a later place never helps anybody.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::{Did, Expect, Fault, Operation, Outcome, Revision, Step, Timeline, Violation};

type Place = u64;

fn after(revision: Revision) -> Place {
    2 * revision + 1
}

pub(super) fn check(operations: &[Operation], timeline: &Timeline) -> Result<(), Violation> {
    let mut order: Vec<&Operation> = operations.iter().collect();
    order.sort_by_key(|operation| operation.began);
    let mut writers = writers(&order, timeline)?;
    let mut ended: BinaryHeap<Reverse<(u64, Place)>> = BinaryHeap::new();
    let mut reached: Place = 0;
    // Deletions whose outcome nobody knows, with what had been reached when they began.
    let mut open: Vec<(Place, &[Step])> = Vec::new();
    for (index, operation) in order.iter().enumerate() {
        while let Some(Reverse((end, place))) = ended.peek()
            && *end < operation.began
        {
            reached = reached.max(*place);
            ended.pop();
        }
        let place = match &operation.did {
            Did::Wrote { steps, outcome } => match (writers.by_operation.get(&index), outcome) {
                (Some(revision), _) => {
                    let place = 2 * revision;
                    if place < reached {
                        let detail = format!(
                            "{steps:?} happened at revision {revision}, but revision {} had been seen before it began",
                            reached / 2
                        );
                        return Err(Fault::Order.at(detail));
                    }
                    // Nobody knows when one that was not answered ended.
                    if *outcome == Outcome::Unknown {
                        continue;
                    }
                    place
                }
                (None, Outcome::Unknown) => {
                    open.push((reached, steps));
                    continue;
                }
                (None, Outcome::Refused) => continue,
                (None, Outcome::Done(revision)) => {
                    let nothing = steps.iter().all(|step| timeline.get(&step.key, *revision).is_none());
                    if !nothing {
                        let detail = format!("{steps:?} is said to have happened at revision {revision}");
                        return Err(Fault::Lost.at(detail));
                    }
                    place(reached, &[], timeline, |at| at == *revision, Some(*revision), operation)?
                }
                (None, Outcome::Conflict) => {
                    let keys: Vec<&str> = steps.iter().map(|step| step.key.as_str()).collect();
                    let conflicts = |at| !steps.iter().all(|step| timeline.holds(step, at));
                    place(reached, &keys, timeline, conflicts, None, operation)?
                }
            },
            Did::Read { key, found } => {
                let seen = found.as_ref().map(|(at, value)| (*at, value.as_str()));
                place(reached, &[key], timeline, |at| timeline.get(key, at) == seen, None, operation)?
            }
            Did::Listed { prefix, revision, found } => {
                if timeline.list(prefix, *revision) != *found {
                    let detail = format!("a list of {prefix} at revision {revision} had {found:?}");
                    return Err(Fault::Wrong.at(detail));
                }
                place(reached, &[], timeline, |at| at == *revision, Some(*revision), operation)?
            }
        };
        ended.push(Reverse((operation.ended, place)));
    }
    writers.match_deletions(open, timeline)
}

/// The first place behind what was reached at which something holds. What holds changes with the keys only, or is known
/// to hold at one revision.
fn place(
    reached: Place,
    keys: &[&str],
    timeline: &Timeline,
    holds: impl Fn(Revision) -> bool,
    only: Option<Revision>,
    operation: &Operation,
) -> Result<Place, Violation> {
    let first = reached / 2;
    let mut at = first;
    loop {
        if holds(at) {
            return Ok(after(at));
        }
        let changes = keys.iter().filter_map(|key| timeline.changes_of(key, at).next());
        match changes.chain(only.filter(|only| *only > at)).min() {
            Some(next) => at = next,
            None => break,
        }
    }
    let mut before = keys.iter().flat_map(|key| timeline.changes_of(key, 0)).chain([0]).chain(only);
    let fault = if before.any(&holds) { Fault::Stale } else { Fault::Wrong };
    Err(fault.at(format!("revision {first} had been seen when this began: {:?}", operation.did)))
}

/// Who made which revision.
struct Writers {
    by_operation: BTreeMap<usize, Revision>,
    /// Deletions that nobody was told of.
    unclaimed: Vec<Revision>,
}

/// When the first of those ended who saw a revision or a later one, for each revision that somebody saw.
fn first_seen(order: &[&Operation]) -> BTreeMap<Revision, u64> {
    let mut seen = BTreeMap::new();
    for operation in order {
        let revision = match &operation.did {
            Did::Wrote { outcome: Outcome::Done(at), .. } | Did::Listed { revision: at, .. } => *at,
            Did::Read { found: Some((at, _)), .. } => *at,
            Did::Read { found: None, .. } | Did::Wrote { .. } => continue,
        };
        let ended = seen.entry(revision).or_insert(u64::MAX);
        *ended = operation.ended.min(*ended);
    }
    let mut earliest = u64::MAX;
    for ended in seen.values_mut().rev() {
        earliest = earliest.min(*ended);
        *ended = earliest;
    }
    seen
}

fn writers(order: &[&Operation], timeline: &Timeline) -> Result<Writers, Violation> {
    let mut by_value = BTreeMap::new();
    let mut deletions: BTreeMap<Revision, Vec<usize>> = BTreeMap::new();
    for (index, operation) in order.iter().enumerate() {
        let Did::Wrote { steps, outcome } = &operation.did else { continue };
        let values = steps.iter().filter_map(|step| step.value.as_deref());
        by_value.extend(values.map(|value| (value, index)));
        if let Outcome::Done(revision) = outcome
            && steps.iter().all(|step| step.value.is_none())
        {
            deletions.entry(*revision).or_default().push(index);
        }
    }
    let first_seen = first_seen(order);
    let mut writers = Writers { by_operation: BTreeMap::new(), unclaimed: Vec::new() };
    for (revision, changes) in timeline.after(0) {
        let value = changes.values().flatten().next();
        let index = match value {
            Some(value) => match by_value.get(value.as_str()) {
                Some(index) => *index,
                None => {
                    return Err(
                        Fault::Invented.at(format!("{value} at revision {revision} was never written"))
                    );
                }
            },
            // Of several that found the key gone at this revision the first to begin may have been the one, unless it
            // began when that had been seen, or expected something else: then it was one that nobody was told of.
            None => {
                let seen = first_seen.range(revision..).next().map_or(u64::MAX, |(_, ended)| *ended);
                let claims = deletions.get(&revision).into_iter().flatten();
                let mut claims = claims.filter(|index| {
                    let Did::Wrote { steps, .. } = &order[**index].did else { return false };
                    matches(order[**index], changes.keys())
                        && order[**index].began < seen
                        && steps.iter().all(|step| timeline.holds(step, revision - 1))
                });
                match claims.next() {
                    Some(index) => *index,
                    None => {
                        writers.unclaimed.push(revision);
                        continue;
                    }
                }
            }
        };
        let Did::Wrote { steps, outcome } = &order[index].did else { continue };
        if let Some(other) = writers.by_operation.insert(index, revision) {
            return Err(Fault::Repeated.at(format!("{steps:?} happened at {other} and again at {revision}")));
        }
        match outcome {
            Outcome::Conflict | Outcome::Refused => {
                return Err(Fault::Invented.at(format!("{steps:?} was refused and happened at {revision}")));
            }
            Outcome::Done(told) if *told != revision => {
                let detail = format!("{steps:?} is said to have happened at {told}, and did at {revision}");
                return Err(Fault::Lost.at(detail));
            }
            Outcome::Done(_) | Outcome::Unknown => {}
        }
        if let Some(step) = steps.iter().find(|step| !timeline.holds(step, revision - 1)) {
            return Err(Fault::Unexpected.at(format!("{step:?} happened at revision {revision}")));
        }
    }
    Ok(writers)
}

fn matches<'a>(operation: &Operation, changed: impl Iterator<Item = &'a String>) -> bool {
    let Did::Wrote { steps, .. } = &operation.did else { return false };
    let mut changed = changed.peekable();
    changed.peek().is_some() && changed.all(|key| steps.iter().any(|step| step.key == *key))
}

impl Writers {
    /// Finds for every deletion that nobody was told of one whose outcome is not known. Those that could have happened
    /// at fewer revisions go first.
    fn match_deletions(
        &mut self,
        mut open: Vec<(Place, &[Step])>,
        timeline: &Timeline,
    ) -> Result<(), Violation> {
        open.retain(|(_, steps)| steps.iter().all(|step| step.value.is_none()));
        open.sort_by_key(|(_, steps)| {
            let exact = steps.iter().any(|step| matches!(step.expect, Expect::Revision(_)));
            Reverse(exact)
        });
        for revision in &self.unclaimed {
            let Some((_, changes)) = timeline.after(revision - 1).next() else { continue };
            let fits = |(reached, steps): &(Place, &[Step])| {
                *reached <= 2 * revision
                    && changes.keys().all(|key| steps.iter().any(|step| step.key == *key))
                    && steps.iter().all(|step| timeline.holds(step, revision - 1))
            };
            let Some(index) = open.iter().position(fits) else {
                let detail = format!("nobody deleted {:?} at revision {revision}", changes.keys());
                return Err(Fault::Invented.at(detail));
            };
            open.remove(index);
        }
        Ok(())
    }
}
