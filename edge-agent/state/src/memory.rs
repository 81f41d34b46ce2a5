//! A checkpoint in memory, for tests and simulations of what is built upon it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::checkpoint::place;
use crate::{Change, Contents};

/// What stands in for a disk. Clones are the same one, and what a checkpoint commits to it outlives the checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Contents>>);

impl Memory {
    /// Everything that was committed.
    pub fn contents(&self) -> Contents {
        self.lock().clone()
    }

    pub(crate) fn commit(&self, changes: &[Change]) {
        let mut contents = self.lock();
        for change in changes.iter().cloned() {
            let find = |contents: &Contents, kind: &str, key: &str| {
                let wanted = place(kind, key);
                contents.objects.binary_search_by(|known| place(&known.kind, &known.key).cmp(&wanted))
            };
            match change {
                Change::Identity(identity) => contents.identity = Some(identity),
                Change::Broker(broker) => contents.broker = Some(broker),
                Change::Sync(sync) => contents.sync = sync,
                Change::PutObject(object) => match find(&contents, &object.kind, &object.key) {
                    Ok(at) => contents.objects[at] = object,
                    Err(at) => contents.objects.insert(at, object),
                },
                Change::RemoveObject { kind, key } => {
                    if let Ok(at) = find(&contents, &kind, &key) {
                        contents.objects.remove(at);
                    }
                }
                Change::Put(space, key, value) => {
                    contents.spaces.entry(space).or_default().insert(key, value);
                }
                Change::Remove(space, key) => {
                    if let Some(entries) = contents.spaces.get_mut(&space) {
                        entries.remove(&key);
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
