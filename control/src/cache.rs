//! The view of this member: every record of the store, parsed once, kept up by one watch over everything.
//!
//! One watch over all kinds gives one order over all kinds, so that the view is a state which the cluster really had.

use lichen_api::view::{Change, Kind, Object, ObjectId, ObjectKey, View};
use lichen_api::{RESOURCES, Resource};
use lichen_store::{Compacted, Event, Key, RangeError, RangeOptions, Record, Store, Watch, WatchError};

/// Every key of the store begins with this.
const EVERYTHING: &str = "/";
/// What the core group is called in keys.
const CORE_GROUP: &str = "core";

/// Why a cache ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store could not be read.
    #[error("the store cannot be read")]
    Range(#[from] RangeError),
    /// What was read was too old to be watched from. Opening another one helps.
    #[error("the history was compacted before it could be watched")]
    Compacted(#[from] Compacted),
    /// The watch ended. If it fell behind, opening another cache helps.
    #[error("the watch ended")]
    Watch(#[from] WatchError),
}

/// A view and the watch that keeps it up.
#[derive(Debug)]
pub struct Cache {
    view: View,
    watch: Watch,
}

impl Cache {
    /// Reads everything, and watches from there.
    pub fn open(store: &Store) -> Result<Cache, CacheError> {
        let page = store.range(EVERYTHING, &RangeOptions::default())?;
        let watch = store.watch(EVERYTHING, page.revision)?;
        let mut view = View::new();
        for (key, record) in &page.items {
            if let Some(id) = id_of(key) {
                let object = decode(&id, record);
                view.apply(id, object);
            }
        }
        view.advance(page.revision.0);
        Ok(Cache { view, watch })
    }

    /// The view as it is now.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Takes in the next event if there is one. `None` when everything committed so far is in the view, which then
    /// says so by its revision.
    pub fn try_next(&mut self) -> Result<Option<Change>, CacheError> {
        while let Some(event) = self.watch.try_next()? {
            if let Some(change) = self.take(event) {
                return Ok(Some(change));
            }
        }
        let revision = self.watch.progress()?;
        self.view.advance(revision.0);
        Ok(None)
    }

    /// Waits for an event and takes it in; `None` if it was none of an object. Can be cancelled.
    pub async fn next(&mut self) -> Result<Option<Change>, CacheError> {
        let event = self.watch.next().await?;
        Ok(self.take(event))
    }

    fn take(&mut self, event: Event) -> Option<Change> {
        let change = match event {
            Event::Change(change) => change,
            Event::Progress(revision) => {
                self.view.advance(revision.0);
                return None;
            }
        };
        // Other changes of the same transaction may follow, so its revision is not seen yet.
        self.view.advance(change.revision.0.saturating_sub(1));
        let id = id_of(&change.key)?;
        let object = change.new.as_ref().and_then(|record| decode(&id, record));
        self.view.apply(id, object)
    }
}

/// The object that a key names; `None` for keys that are the registry's own.
fn id_of(key: &Key) -> Option<ObjectId> {
    let mut parts = key.as_str().strip_prefix(EVERYTHING)?.split('/');
    let (group, plural) = (parts.next()?, parts.next()?);
    let (namespace, name) = (parts.next()?, parts.next()?);
    let group = if group == CORE_GROUP { "" } else { group };
    let resource = RESOURCES.iter().find(|resource| resource.group == group && resource.plural == plural)?;
    Some(ObjectId { kind: kind_of(resource), key: ObjectKey::new(namespace, name) })
}

fn kind_of(resource: &Resource) -> Kind {
    Kind { group: resource.group, version: resource.version, kind: resource.kind }
}

/// The resource of a kind.
pub(crate) fn resource_of(kind: Kind) -> Option<&'static Resource> {
    RESOURCES.iter().copied().find(|resource| kind_of(resource) == kind)
}

/// Reads a record. One that cannot be read is not simply missing: its dependents would be taken for orphans.
fn decode(id: &ObjectId, record: &Record) -> Option<Object> {
    let mut json = Vec::with_capacity(record.size());
    record.write_json(&mut json, false);
    let decoded = Object::decode(id.kind, &json).or_else(|error| {
        // The error's text could quote the object, which could be a Secret.
        tracing::error!(object = %id, line = error.line(), column = error.column(), "a stored object is not of its kind");
        Object::decode_metadata(id.kind, &json)
    });
    decoded.inspect_err(|_| tracing::error!(object = %id, "a stored object has no metadata")).ok()
}
