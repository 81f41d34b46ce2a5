//! A store whose process is killed misses nothing that it acknowledged.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use lichen_store::{Config, Draft, Event, Key, Precondition, Store, Txn};
use serde_json::json;

const CHILD_DIR: &str = "LICHEN_STORE_TEST_DIR";
const ROUNDS: usize = 6;
const WRITERS: usize = 16;
const ACKNOWLEDGED: usize = 400;

fn txn(key: &str, value: u64) -> Txn {
    let none: [(&str, &str); 0] = [];
    let draft = Draft::new(&json!({ "metadata": { "name": key }, "value": value }), none);
    Txn::new().put(Key::from(key), Precondition::Any, draft)
}

/// Not a test of its own: what the killed process does. Each writer counts upwards under its own key and prints what
/// was acknowledged, until the end that others make for it.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(Config::new(dir)).await.unwrap();
        let writer = |writer: usize| {
            let store = store.clone();
            async move {
                let key = format!("/w/{writer}");
                let mut value = match store.get(&Key::from(key.as_str())) {
                    Some(record) => record.value().unwrap()["value"].as_u64().unwrap(),
                    None => 0,
                };
                loop {
                    value += 1;
                    let revision = store.commit(txn(&key, value)).await.unwrap().revision;
                    // One write a line, so that lines of several writers do not mix.
                    std::io::stdout()
                        .write_all(format!("ack {key} {value} {revision}\n").as_bytes())
                        .unwrap();
                }
            }
        };
        futures_util::future::join_all((0..WRITERS).map(|index| tokio::spawn(writer(index)))).await;
    });
}

#[test]
fn nothing_acknowledged_is_missing_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut newest = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut count = 0;
        let mut parse = |line: String| {
            // The harness prints a line of its own before, without a newline at its end.
            let Some(at) = line.find("ack ") else { return 0 };
            let words: Vec<_> = line[at..].split(' ').collect();
            let [_, key, value, revision] = words[..] else { return 0 };
            let (Ok(value), Ok(revision)) = (value.parse(), revision.parse()) else { return 0 };
            acknowledged.insert(key.to_owned(), value);
            newest = newest.max(revision);
            1
        };
        let mut killed = false;
        for line in lines {
            // What the pipe still holds after the kill was acknowledged too.
            count += parse(line.unwrap());
            if count >= ACKNOWLEDGED * (round + 1) && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "the child ended by itself in round {round}");

        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::open(Config::new(dir.path())).await.unwrap();
            assert!(store.revision().0 >= newest, "round {round}: a revision is missing");
            for (key, value) in &acknowledged {
                let record =
                    store.get(&Key::from(key.as_str())).unwrap_or_else(|| panic!("{key} is missing"));
                let found = record.value().unwrap()["value"].as_u64().unwrap();
                assert!(found >= *value, "round {round}: {key} is {found}, acknowledged was {value}");
            }
            // The history ends where the state does, without a gap.
            let floor = match store.watch("/", lichen_store::Revision(0)) {
                Ok(_) => unreachable!("revision 0 is before every history"),
                Err(compacted) => compacted.oldest,
            };
            let mut watch = store.watch("/", floor).unwrap();
            let mut last = floor;
            while let Some(event) = watch.try_next().unwrap() {
                let Event::Change(change) = event else { continue };
                assert_eq!(change.revision, last.next());
                last = change.revision;
            }
            assert_eq!(last, store.revision());
            store.shutdown().await;
        });
    }
}
