//! A store that is written for ever does not grow for ever.
//!
//! CI writes enough for its log to be made shorter several times. The million of the promise:
//! `cargo test --release -p lichen-store --test soak -- --ignored`.

use std::fs;
use std::path::Path;

use lichen_store::{Config, Draft, HistoryBounds, Key, Precondition, Store, Txn};
use serde_json::json;

const KEYS: usize = 1_000;
const CLIENTS: usize = 64;
const ROUNDS: usize = 6;
/// What files and memory may differ by between rounds: which files are just being used again is chance.
const SLACK_BYTES: u64 = 16 * 1024 * 1024;

#[test]
fn files_and_memory_level_off() {
    soak(36_000, 12_000, HistoryBounds { changes_max: 2_000, bytes_max: 4 * 1024 * 1024 });
}

#[test]
#[ignore = "takes a minute or more: what CI writes shows the same"]
fn files_and_memory_level_off_over_a_million_writes() {
    soak(1_000_000, 250, HistoryBounds::default());
}

fn soak(writes: usize, value_bytes: usize, history: HistoryBounds) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut files, mut memory) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let store = Store::open(Config { history, ..Config::new(dir.path()) }).await.unwrap();
        for round in 0..ROUNDS {
            let client = |client: usize| {
                let store = store.clone();
                tokio::spawn(async move {
                    for turn in 0..writes / ROUNDS / CLIENTS {
                        let key = Key::from(format!("/soak/{}", (client + turn * CLIENTS) % KEYS));
                        let value = format!("{round} {turn:0value_bytes$}");
                        let none: [(&str, &str); 0] = [];
                        let draft = Draft::new(&json!({ "metadata": {}, "value": value }), none);
                        store.commit(Txn::new().put(key, Precondition::Any, draft)).await.unwrap();
                    }
                })
            };
            for client in (0..CLIENTS).map(client).collect::<Vec<_>>() {
                client.await.unwrap();
            }
            files.push(size(dir.path()));
            memory.extend(resident());
        }
        store.shutdown().await;
    });
    println!("files {files:?}, memory {memory:?}");
    // The first half fills what is bounded; from then on nothing grows.
    for (what, sizes) in [("files", &files), ("memory", &memory)] {
        let (first, second) = sizes.split_at(sizes.len() / 2);
        if let (Some(first), Some(second)) = (first.iter().max(), second.iter().max()) {
            assert!(*second <= first + first / 4 + SLACK_BYTES, "{what}: {sizes:?}");
        }
    }
    let held = files.iter().max().unwrap();
    assert!(*held < 160 * 1024 * 1024, "{files:?}");
}

fn size(dir: &Path) -> u64 {
    // A file that is just given another name is counted the next time.
    fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|file| file.len())
        .sum()
}

/// Bytes of memory that this process has, where the system tells.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
