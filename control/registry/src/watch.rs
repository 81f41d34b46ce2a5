//! Watching a collection through a selector.

use std::collections::VecDeque;

use lichen_api::{Resource, Status};
use lichen_store::{Change, Event, RangeOptions, Record, Revision, WatchError};

use crate::registry::prefix_of;
use crate::{Filter, Registry, WatchOptions, WatchStart};

/// Times that the state is read anew when the history moves on faster than a watch can begin.
const START_ATTEMPTS: usize = 3;

/// What a watch tells. Each record carries the revision under which it is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// The object came into view.
    Added(Record),
    /// The object changed and is still in view.
    Modified(Record),
    /// The object is gone, or left the selector's view: what it was before, under the revision of the change.
    Deleted(Record),
    /// Nothing is missing up to a revision.
    Bookmark {
        /// The revision.
        revision: Revision,
        /// Whether this ends the objects that existed when the watch began.
        initial_end: bool,
    },
}

/// A watch of a collection. Cancelling [`Watch::next`] loses nothing.
#[derive(Debug)]
pub struct Watch {
    changes: lichen_store::Watch,
    filter: Filter,
    initial: VecDeque<Record>,
    /// The revision that ends the initial objects, until that has been told.
    initial_end: Option<Revision>,
}

impl Registry {
    /// Watches a kind in one namespace or in all. A revision that left the history is a `Status` with code 410.
    pub fn watch(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        options: &WatchOptions,
    ) -> Result<Watch, Status> {
        let mut filter = options.filter.of_home(resource)?;
        let mut prefix = prefix_of(resource, namespace);
        let name = options.filter.name.as_deref().or_else(|| options.filter.fields.exact("metadata.name"));
        // One object's watch wakes up for that object only, and for those whose names begin like its own.
        if let Some(name) = name.filter(|_| namespace.is_some() || !resource.namespaced) {
            if !resource.namespaced {
                prefix.push('/');
            }
            prefix.push_str(name);
        }
        filter.name = name.map(str::to_owned);
        match options.start {
            WatchStart::Now => self.watch_after(&prefix, filter, self.revision()),
            WatchStart::After(revision) => self.watch_after(&prefix, filter, revision),
            WatchStart::Initial => self.watch_from_now(&prefix, filter),
        }
    }

    fn watch_after(&self, prefix: &str, filter: Filter, revision: Revision) -> Result<Watch, Status> {
        let changes = self.inner.store.watch(prefix, revision).map_err(|gone| {
            Status::expired(format!("too old resource version: {} ({})", gone.wanted, gone.oldest))
        })?;
        Ok(Watch { changes, filter, initial: VecDeque::new(), initial_end: None })
    }

    fn watch_from_now(&self, prefix: &str, filter: Filter) -> Result<Watch, Status> {
        for _ in 0..START_ATTEMPTS {
            let page = self.inner.store.range(prefix, &RangeOptions::default()).map_err(Status::internal)?;
            let Ok(changes) = self.inner.store.watch(prefix, page.revision) else { continue };
            let initial =
                page.items.into_iter().map(|(_, record)| record).filter(|record| filter.matches(record));
            return Ok(Watch {
                changes,
                initial: initial.collect(),
                initial_end: Some(page.revision),
                filter,
            });
        }
        Err(Status::service_unavailable("the history moves on faster than a watch can begin"))
    }
}

impl Watch {
    /// The next event. After an error the watch is over.
    pub async fn next(&mut self) -> Result<WatchEvent, Status> {
        if let Some(record) = self.initial.pop_front() {
            return Ok(WatchEvent::Added(record));
        }
        if let Some(revision) = self.initial_end.take() {
            return Ok(WatchEvent::Bookmark { revision, initial_end: true });
        }
        loop {
            match self.changes.next().await.map_err(ended)? {
                Event::Progress(revision) => {
                    return Ok(WatchEvent::Bookmark { revision, initial_end: false });
                }
                Event::Change(change) => {
                    if let Some(event) = self.filter.event(&change) {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// The revision up to which everything has been told: for a bookmark at a moment of the caller's choice. `None`
    /// while objects that existed at the beginning are still to be told.
    pub fn progress(&mut self) -> Result<Option<Revision>, Status> {
        if !self.initial.is_empty() || self.initial_end.is_some() {
            return Ok(None);
        }
        self.changes.progress().map(Some).map_err(ended)
    }
}

fn ended(error: WatchError) -> Status {
    match error {
        WatchError::Lagged => Status::expired("too old resource version: the watch fell behind the history"),
        WatchError::Closed => Status::service_unavailable("the server is shutting down"),
    }
}

impl Filter {
    /// Whether a record is in view.
    #[must_use]
    pub fn matches(&self, record: &Record) -> bool {
        self.name.as_deref().is_none_or(|name| crate::name_of(record) == name)
            && (self.labels.is_everything() || self.labels.matches(&Fields(record.labels())))
            && (self.fields.is_everything() || self.fields.matches(&Fields(record.fields())))
    }

    /// The filter of stored objects that stands for this one of a kind's; refuses fields that the kind is not selected by.
    pub(crate) fn of_home(&self, resource: &Resource) -> Result<Self, Status> {
        self.fields.check(resource)?;
        Ok(Self { fields: self.fields.of_home(resource), ..self.clone() })
    }

    /// Whether every record is in view.
    pub(crate) fn is_everything(&self) -> bool {
        self.name.is_none() && self.labels.is_everything() && self.fields.is_everything()
    }

    /// What a change is to someone who sees only what is in view.
    fn event(&self, change: &Change) -> Option<WatchEvent> {
        let was = change.old.as_ref().is_some_and(|old| self.matches(old));
        let is = change.new.as_ref().filter(|new| self.matches(new));
        match (was, is) {
            (false, Some(new)) => Some(WatchEvent::Added(new.clone())),
            (true, Some(new)) => Some(WatchEvent::Modified(new.clone())),
            (true, None) => change.told_old().map(WatchEvent::Deleted),
            (false, None) => None,
        }
    }
}

/// Labels or fields of a record, as selectors look them up.
struct Fields<'a>(lichen_store::Pairs<'a>);

impl lichen_api::labels::Lookup for Fields<'_> {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.0.get(key)
    }
}
