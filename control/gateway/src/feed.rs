//! Feeds desired state from the store: one watch for all nodes and kinds, so that changes arrive in the order of their
//! revisions and no node is sent an effect before its cause.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use lichen_store::{Event, RangeError, RangeOptions, Revision, Watch, WatchError};

use crate::Shared;
use crate::item::Kind;
use crate::ownership;

/// The pause before the state is read again when it moved on too fast.
const RETRY: Duration = Duration::from_millis(50);

/// Loads the state and begins to watch.
pub(crate) async fn begin(shared: &Shared) -> Watch {
    loop {
        match load(shared) {
            Ok(watch) => return watch,
            Err(error) => {
                tracing::warn!(%error, "the desired state is read again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Why there is nothing more to feed.
pub(crate) enum End {
    /// Another gateway has taken over.
    TakenOver,
    /// The store has been shut down.
    Closed,
}

/// Takes in changes until there is no more to be done with them.
pub(crate) async fn run(shared: Arc<Shared>, mut watch: Watch) -> End {
    loop {
        match watch.next().await {
            Ok(Event::Change(change)) => {
                if ownership::is_take_over(&change, shared.epoch) {
                    return End::TakenOver;
                }
                let version = change.revision.0;
                let mut desired = shared.desired.lock().unwrap_or_else(PoisonError::into_inner);
                match Kind::of_key(change.key.as_str()) {
                    Some((kind, key)) => {
                        shared.orders.look(kind, key, change.new.as_ref());
                        desired.change(kind, key, change.new.clone(), version);
                    }
                    None => desired.progress(version),
                }
            }
            Ok(Event::Progress(Revision(version))) => {
                shared.desired.lock().unwrap_or_else(PoisonError::into_inner).progress(version);
            }
            Err(WatchError::Lagged) => {
                tracing::warn!("the gateway's watch fell behind; it begins anew");
                watch = begin(&shared).await;
                if !ownership::is_current(&shared.registry, shared.epoch) {
                    return End::TakenOver;
                }
            }
            Err(WatchError::Closed) => {
                tracing::info!("the store has been shut down; nodes hear of no more changes");
                return End::Closed;
            }
        }
    }
}

fn load(shared: &Shared) -> Result<Watch, RangeError> {
    let store = shared.registry.store();
    let revision = store.revision();
    let mut objects = Vec::new();
    for kind in Kind::ALL {
        let options = RangeOptions { at: Some(revision), ..RangeOptions::default() };
        let page = store.range(kind.prefix(), &options)?;
        for (key, record) in page.items {
            if let Some((kind, name)) = Kind::of_key(key.as_str()) {
                shared.orders.look(kind, name, Some(&record));
                objects.push((kind, name.to_owned(), record));
            }
        }
    }
    let watch = store
        .watch("/", revision)
        .map_err(|gone| RangeError::Compacted { wanted: gone.wanted, oldest: gone.oldest })?;
    shared.desired.lock().unwrap_or_else(PoisonError::into_inner).load(objects, revision.0);
    Ok(watch)
}
