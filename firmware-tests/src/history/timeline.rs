//! What happened, by revision.

use std::collections::BTreeMap;

use super::{Change, Did, Expect, Fault, History, Outcome, Revision, Rules, Step, Told, Violation};

/// All changes, in the order in which they happened.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    first: Revision,
    /// What changed at each revision.
    changes: BTreeMap<Revision, BTreeMap<String, Option<String>>>,
    /// What each key became, and when.
    keys: BTreeMap<String, BTreeMap<Revision, Option<String>>>,
}

impl Timeline {
    pub(super) fn collect(history: &History, rules: &Rules) -> Result<Self, Violation> {
        let mut timeline = Self { first: rules.first, ..Self::default() };
        for watched in &history.watches {
            for told in &watched.told {
                if let Told::Change(change) = told {
                    timeline.saw(change.clone(), &watched.who)?;
                }
            }
        }
        // What was only read, of a write whose outcome nobody knows, happened as well.
        for operation in &history.operations {
            let saw = |(key, (revision, value)): (&String, &(Revision, String))| Change {
                revision: *revision,
                key: key.clone(),
                value: Some(value.clone()),
            };
            match &operation.did {
                Did::Read { key, found: Some(found) } => timeline.saw(saw((key, found)), "a read")?,
                Did::Listed { found, .. } => {
                    for item in found {
                        timeline.saw(saw(item), "a list")?;
                    }
                }
                Did::Wrote { steps, outcome: Outcome::Done(revision) }
                    if steps.iter().any(|step| step.value.is_some()) =>
                {
                    timeline.acknowledged(*revision, steps)?;
                }
                Did::Read { found: None, .. } | Did::Wrote { .. } => {}
            }
        }
        if rules.all
            && let Some(last) = timeline.last()
            && let Some(missing) = (rules.first + 1..last).find(|at| !timeline.changes.contains_key(at))
        {
            return Err(Fault::Unseen.at(format!("nobody saw what happened at revision {missing}")));
        }
        Ok(timeline)
    }

    /// A put that was acknowledged is there, or was overwritten before anybody saw it.
    fn acknowledged(&mut self, revision: Revision, steps: &[Step]) -> Result<(), Violation> {
        for step in steps.iter().filter(|step| step.value.is_some()) {
            let change = Change { revision, key: step.key.clone(), value: step.value.clone() };
            self.saw(change, "who wrote it")
                .map_err(|violation| Violation { fault: Fault::Lost, ..violation })?;
        }
        Ok(())
    }

    fn saw(&mut self, change: Change, who: &str) -> Result<(), Violation> {
        let Change { revision, key, value } = change;
        if revision <= self.first {
            return Err(Fault::Invented.at(format!("{who} saw {key} change at revision {revision}")));
        }
        let at = self.changes.entry(revision).or_default();
        if let Some(known) = at.get(&key) {
            if *known == value {
                return Ok(());
            }
            let detail = format!("at revision {revision} {key} became {known:?}, and {value:?} for {who}");
            return Err(Fault::Contradiction.at(detail));
        }
        at.insert(key.clone(), value.clone());
        self.keys.entry(key).or_default().insert(revision, value);
        Ok(())
    }

    /// The last revision.
    #[must_use]
    pub fn last(&self) -> Option<Revision> {
        self.changes.last_key_value().map(|(revision, _)| *revision)
    }

    /// What happened after a revision, in order.
    pub fn after(
        &self,
        revision: Revision,
    ) -> impl Iterator<Item = (Revision, &BTreeMap<String, Option<String>>)> {
        self.changes.range(revision + 1..).map(|(revision, changes)| (*revision, changes))
    }

    /// What a key was after everything up to a revision.
    #[must_use]
    pub fn get(&self, key: &str, revision: Revision) -> Option<(Revision, &str)> {
        let (at, value) = self.keys.get(key)?.range(..=revision).next_back()?;
        Some((*at, value.as_deref()?))
    }

    /// What all keys under a prefix were after everything up to a revision.
    #[must_use]
    pub fn list(&self, prefix: &str, revision: Revision) -> BTreeMap<String, (Revision, String)> {
        let keys = self.keys.range(prefix.to_owned()..).map(|(key, _)| key);
        let keys = keys.take_while(|key| key.starts_with(prefix));
        let found = |key: &String| self.get(key, revision).map(|(at, value)| (at, value.to_owned()));
        keys.filter_map(|key| Some((key.clone(), found(key)?))).collect()
    }

    /// When a key changed after a revision.
    pub(super) fn changes_of(&self, key: &str, after: Revision) -> impl Iterator<Item = Revision> {
        self.keys
            .get(key)
            .into_iter()
            .flat_map(move |at| at.range(after + 1..))
            .map(|(revision, _)| *revision)
    }

    /// Whether what a step expects holds after everything up to a revision.
    pub(super) fn holds(&self, step: &Step, revision: Revision) -> bool {
        let found = self.get(&step.key, revision).map(|(at, _)| at);
        match step.expect {
            Expect::Anything => true,
            Expect::Absent => found.is_none(),
            Expect::Present => found.is_some(),
            Expect::Revision(wanted) => found == Some(wanted),
        }
    }
}
