//! Whether a watch told what happened: all of it, in order, once.

use std::collections::BTreeSet;

use super::{Change, End, Fault, Revision, Rules, Timeline, Told, Violation, Watched};

pub(super) fn check(watched: &Watched, timeline: &Timeline, rules: &Rules) -> Result<(), Violation> {
    let Watched { who, prefix, from, told, end } = watched;
    let concerns = |key: &str| key.starts_with(prefix.as_str());
    let due = |after: Revision, upto: Revision| {
        let mut due = timeline.after(after).take_while(move |(revision, _)| *revision <= upto);
        due.find(|(_, changes)| changes.keys().any(|key| concerns(key))).map(|(revision, _)| revision)
    };
    let gap = |missing: Revision, at: &dyn std::fmt::Display| {
        Fault::Gap.at(format!("{who} was not told of revision {missing}, but of {at}"))
    };
    // Everything up to here has been told, and of the revision behind it these keys.
    let mut complete = *from;
    let mut current: Option<(Revision, BTreeSet<&str>)> = None;
    let finish = |complete: &mut Revision, current: &mut Option<(Revision, BTreeSet<&str>)>| {
        let Some((revision, keys)) = current.take() else { return Ok(()) };
        let changes = timeline.after(revision - 1).next().map(|(_, changes)| changes);
        let mut changed = changes.into_iter().flat_map(|changes| changes.keys()).filter(|key| concerns(key));
        if let Some(missing) = changed.find(|key| !keys.contains(key.as_str())) {
            let detail = format!("{who} was not told of {missing} at revision {revision}");
            return Err(Fault::Gap.at(detail));
        }
        *complete = revision;
        Ok(())
    };
    for each in told {
        match each {
            Told::Change(Change { revision, key, .. }) => {
                if current.as_ref().is_none_or(|(at, _)| at != revision) {
                    finish(&mut complete, &mut current)?;
                    if *revision <= complete {
                        let detail =
                            format!("{who} was told of {key} at revision {revision} after {complete}");
                        return Err(Fault::Told.at(detail));
                    }
                    if let Some(missing) = due(complete, revision - 1) {
                        return Err(gap(missing, revision));
                    }
                    current = Some((*revision, BTreeSet::new()));
                }
                let repeated = current.as_mut().is_some_and(|(_, keys)| !keys.insert(key));
                if repeated || !concerns(key) {
                    return Err(Fault::Told.at(format!("{who} was told of {key} at revision {revision}")));
                }
            }
            Told::Progress(revision) => {
                finish(&mut complete, &mut current)?;
                if *revision < complete {
                    let detail = format!("{who} was told of everything up to {revision} after {complete}");
                    return Err(Fault::Told.at(detail));
                }
                if let Some(missing) = due(complete, *revision) {
                    return Err(gap(missing, &format!("everything up to {revision}")));
                }
                complete = *revision;
            }
        }
    }
    match end {
        End::Cut => Ok(()),
        End::Complete(last) => {
            finish(&mut complete, &mut current)?;
            due(complete, *last).map_or(Ok(()), |missing| Err(gap(missing, &format!("nothing up to {last}"))))
        }
        End::Compacted(newest) => {
            let Some(window) = rules.window else { return Ok(()) };
            let behind = timeline.after(complete).take_while(|(revision, _)| revision <= newest);
            let behind: usize = behind.map(|(_, changes)| changes.len()).sum();
            if behind > window {
                return Ok(());
            }
            let detail = format!("{who} stood at {complete}, {behind} changes behind revision {newest}");
            Err(Fault::Compacted.at(detail))
        }
    }
}
