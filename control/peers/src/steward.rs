//! What has to happen to the members without anybody asking: those that caught up become voters, those that were removed
//! are known everywhere, and the rest of a removal that its leader did not live to see is done.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use lichen_store::{Role, Store, WatchError};

use crate::record::{self, MEMBERS_PREFIX};
use crate::{Peers, server};

/// How long to wait before something is tried again that did not succeed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until it is dropped, or the store ends.
pub(crate) async fn run(peers: Peers) {
    let Ok(own) = peers.own() else { return };
    tokio::join!(greet(&peers, &own.store), watch(&peers, &own.store));
}

/// Lets the others say whether this member was removed while it was away.
async fn greet(peers: &Peers, store: &Store) {
    let others =
        store.members().unwrap_or_default().into_iter().filter(|member| Some(member.id) != peers.id());
    futures_util::future::join_all(others.map(|member| peers.greet(member.id))).await;
}

async fn watch(peers: &Peers, store: &Store) {
    let mut leadership = store.leadership();
    let mut watch = None;
    loop {
        if watch.is_none() {
            watch = store.watch(MEMBERS_PREFIX, store.revision()).ok();
            note_removed(peers, store);
        }
        let leads = leadership.borrow_and_update().leader;
        let members = store.members().unwrap_or_default();
        let learners: Vec<u64> =
            members.iter().filter(|member| member.role == Role::Learner).map(|member| member.id).collect();
        if leads && finish_removals(store).await.is_err() {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let changed = async {
            match watch.as_mut() {
                Some(watch) => watch.next().await.map(drop),
                None => Err(WatchError::Closed),
            }
        };
        tokio::select! {
            biased;
            changed = changed => match changed {
                Ok(()) => note_removed(peers, store),
                Err(WatchError::Closed) => return,
                // It was overtaken, for instance by a snapshot: everything is read anew.
                Err(_) => watch = None,
            },
            changed = leadership.changed() => if changed.is_err() { return },
            () = store.members_changed(&members) => {}
            learner = first_caught_up(store, &learners), if leads && !learners.is_empty() => {
                match store.promote(learner).await {
                    Ok(()) => tracing::info!(member = format!("{learner:016x}"), "a member has caught up and votes now"),
                    Err(error) => {
                        tracing::debug!(member = format!("{learner:016x}"), %error, "a member is not promoted yet");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }
}

async fn first_caught_up(store: &Store, learners: &[u64]) -> u64 {
    let waits = learners.iter().map(|id| {
        Box::pin(async move {
            store.caught_up(*id).await;
            *id
        })
    });
    futures_util::future::select_all(waits).await.0
}

/// Takes in which members were removed.
pub(crate) fn note_removed(peers: &Peers, store: &Store) {
    let records = record::every(store).into_iter();
    let gone: BTreeSet<u64> = records.filter(|(_, record, _)| record.removed).map(|(id, ..)| id).collect();
    if let Some(own) = peers.id().filter(|own| gone.contains(own)) {
        peers.inner.note_removed(&server::gone(own));
    }
    *peers.inner.gone.write().unwrap_or_else(PoisonError::into_inner) = gone;
}

/// Marks as removed whoever has a record and is no member: a member writes its record only when it is one.
async fn finish_removals(store: &Store) -> Result<(), lichen_store::CommitError> {
    let members: BTreeSet<u64> = store.members()?.into_iter().map(|member| member.id).collect();
    for (id, record, _) in record::every(store) {
        if !record.removed && !members.contains(&id) {
            record::change(store, id, |record| record.removed = true).await?;
        }
    }
    Ok(())
}
