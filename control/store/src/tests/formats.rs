//! Data that earlier versions left behind: it is carried over as it is, whenever that is cut short.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use flate2::read::GzDecoder;

use super::disk::{Fault, Machine};
use super::{key, value, write};
use crate::health::Health;
use crate::log::LogStore;
use crate::runner::Runner;
use crate::{Config, Event, Revision, Store, Term};

/// What was written in an earlier version, by a process that ended without a word: 20 puts over seven keys, a deletion, then
/// five puts that are in the log alone.
struct Earlier {
    folder: &'static str,
    files: [&'static str; 2],
    member: u64,
}

/// With the log in a database.
const DATABASE: Earlier =
    Earlier { folder: "1", files: ["log.redb", "state.redb"], member: 0x389e_83ec_1cdd_4481 };
/// With the log in segments, and nothing packed.
const UNPACKED: Earlier =
    Earlier { folder: "2", files: ["log-0000000000000001", "state.redb"], member: 0xc204_1551_f9b9_4e20 };

fn bytes(folder: &str, name: &str) -> Vec<u8> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats").join(folder).join(format!("{name}.gz"));
    let mut out = Vec::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut out).unwrap();
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_a_database_is_carried_over() {
    carries_over(&DATABASE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_packed_is_read() {
    carries_over(&UNPACKED).await;
}

async fn carries_over(earlier: &Earlier) {
    let dir = tempfile::tempdir().unwrap();
    for name in earlier.files {
        std::fs::write(dir.path().join(name), bytes(earlier.folder, name)).unwrap();
    }
    std::fs::write(dir.path().join("lock"), "").unwrap();
    let report = crate::check(dir.path(), None).unwrap();
    assert_eq!(report.problems, Vec::<String>::new(), "{report}");
    assert_eq!((report.member, report.term), (Some(earlier.member), Some(Term(1))));
    assert!(report.last > report.applied, "{report}");
    for round in 0..2 {
        let store = Store::open(Config::new(dir.path())).await.unwrap();
        assert_eq!(store.member_id(), Some(earlier.member));
        assert_eq!(store.leadership().borrow().term, Term(2 + round));
        assert_eq!(store.get(&key("k0")), None);
        assert_eq!(value(&store, "k5").as_deref(), Some("19"));
        assert_eq!(value(&store, "late").as_deref(), Some("24"));
        // Watches resume where they were.
        let mut watch = store.watch("/", Revision(22)).unwrap();
        let Event::Change(change) = watch.next().await.unwrap() else { panic!() };
        assert_eq!((change.revision, change.key.name()), (Revision(23), "late"));
        write(&store, "new", &round.to_string()).await;
        store.shutdown().await;
        assert!(!dir.path().join("log.redb").exists());
        let report = crate::check(dir.path(), None).unwrap();
        assert_eq!(report.problems, Vec::<String>::new(), "{report}");
    }
}

#[test]
fn carrying_over_may_be_cut_short() {
    let (mut crash, mut carried) = (0, false);
    while !carried {
        let machine = Machine::new();
        machine.put("log.redb", bytes(DATABASE.folder, "log.redb"));
        machine.fail(crash, u64::MAX, Fault::Refused(5));
        let open = |machine: &Machine| {
            let health = Arc::new(Health::new("store"));
            LogStore::open(&machine.volume(), health, Runner::Threads, 1, Arc::default())
                .map(|(log, _)| log.facts())
        };
        carried = open(&machine).is_ok();
        for survives in [false, true] {
            let machine = machine.after_power_cut(|| survives);
            let facts = open(&machine).unwrap();
            assert_eq!(
                (facts.member, facts.last.map(|last| last.index)),
                (DATABASE.member, Some(27)),
                "{crash}"
            );
            assert_eq!(facts.vote.map(|vote| vote.leader_id.term), Some(1), "{crash}");
        }
        crash += 1;
    }
    assert!(crash > 5, "{crash}");
}
