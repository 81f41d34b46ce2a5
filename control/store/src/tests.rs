//! Tests of the store as a whole. What every implementation owes is in `conformance`.

mod backup;
mod cluster;
mod codec;
mod conformance;
pub(crate) mod disk;
mod durability;
mod encryption;
mod faults;
mod formats;
mod fuzz;
mod linear;
mod net;
mod raft;
mod recovery;
mod simulate;

use serde_json::json;

use crate::{Draft, HistoryBounds, Key, Precondition, Revision, Store, Txn};

/// The first file of a log.
const LOG: &str = "log-0000000000000001";

fn key(name: &str) -> Key {
    Key::from(format!("/core/configmaps/default/{name}"))
}

fn draft(name: &str, value: &str) -> Draft {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "uid": format!("uid-{name}"), "labels": { "app": value } },
        "data": { "value": value },
    });
    Draft::new(&object, [("metadata.name", name)])
}

pub(crate) fn put(name: &str, value: &str) -> Txn {
    Txn::new().put(key(name), Precondition::Any, draft(name, value))
}

fn value(store: &Store, name: &str) -> Option<String> {
    let record = store.get(&key(name))?;
    Some(record.value().unwrap()["data"]["value"].as_str().unwrap().to_owned())
}

fn small_history() -> HistoryBounds {
    HistoryBounds { changes_max: 8, bytes_max: 1 << 20 }
}

async fn write(store: &Store, name: &str, value: &str) -> Revision {
    store.commit(put(name, value)).await.unwrap().revision
}

/// So many bytes that can't be packed.
pub(crate) fn noise(bytes: usize) -> String {
    let mut state = bytes as u64;
    let letter = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 58) as u8)
    };
    (0..bytes).map(letter).collect()
}
