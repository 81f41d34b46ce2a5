//! What a durable put costs, from clients in this process: puts a second, how long the slow ones take, bytes written for
//! each. `cargo bench -p lichen-store`; `-- SECONDS` sets how long each level lasts.

use std::time::{Duration, Instant};

use lichen_store::{Config, Draft, Key, Precondition, Store, Txn};
use serde_json::json;

const CLIENTS: [usize; 4] = [1, 16, 64, 256];
const KEYS: usize = 1000;
const VALUE_BYTES: usize = 256;
const ROUNDS: usize = 3;

fn main() {
    let seconds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(4);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime starts").block_on(run(Duration::from_secs(seconds)));
}

async fn run(length: Duration) {
    println!("clients    puts/s   p50 ms   p99 ms   bytes/put   syncs/put");
    for round in 0..ROUNDS {
        for clients in CLIENTS {
            // Where the benchmark is built, which is a disk; the directory for temporary files may be memory.
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory is made");
            let store = Store::open(Config::new(dir.path())).await.expect("a store opens");
            level(&store, clients, Duration::from_millis(500)).await;
            let (bytes, syncs) = (store.written_bytes(), store.syncs());
            let mut took = level(&store, clients, length).await;
            // What is still on its way to rest belongs to these puts.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let puts = took.len();
            took.sort_unstable();
            let ms = |share: usize| took[(puts - 1) * share / 100].as_secs_f64() * 1000.0;
            let each = |count: u64| count as f64 / puts as f64;
            println!(
                "{clients:7} {:9.0} {:8.2} {:8.2} {:11.0} {:11.3}   round {round}",
                puts as f64 / length.as_secs_f64(),
                ms(50),
                ms(99),
                each(store.written_bytes() - bytes),
                each(store.syncs() - syncs),
            );
            store.shutdown().await;
        }
    }
}

/// So many clients, each with one put after the other, for so long. Tells how long each put took.
async fn level(store: &Store, clients: usize, length: Duration) -> Vec<Duration> {
    let end = Instant::now() + length;
    let client = |client: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            let mut turn = 0;
            while Instant::now() < end {
                let key = Key::from(format!("/bench/{}", (client + turn * 256) % KEYS));
                let value = format!("{turn:0VALUE_BYTES$}");
                let none: [(&str, &str); 0] = [];
                let draft = Draft::new(&json!({ "metadata": {}, "value": value }), none);
                let begin = Instant::now();
                store.commit(Txn::new().put(key, Precondition::Any, draft)).await.expect("a put succeeds");
                took.push(begin.elapsed());
                turn += 1;
            }
            took
        })
    };
    let clients: Vec<_> = (0..clients).map(client).collect();
    let mut took = Vec::new();
    for client in clients {
        took.extend(client.await.expect("a client ends"));
    }
    took
}
