//! The committed guests run for real: compiled for this machine, loaded, started, stopped.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lichen_runtime::{GuestExit, GuestMount, GuestSpec, HostError, Output, World};
use sha2::{Digest, Sha256};
use support::{Bench, Collect, get, listener};

/// The names of the committed guests.
const GUESTS: [&str; 6] = ["hello", "probe", "probe-http", "probe-p3", "ticker", "worker"];

const LONG: Duration = Duration::from_secs(60);

fn spec(args: &[&str], env: &[(&str, &str)]) -> GuestSpec {
    let mut spec = GuestSpec::default();
    spec.args.extend(args.iter().map(|text| (*text).to_owned()));
    spec.env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    spec
}

#[tokio::test]
async fn a_worker_exits_with_its_code_and_its_output_is_kept_apart() {
    let bench = Bench::new();
    let worker = bench.guest("worker");
    assert_eq!(worker.world(), World::Command);
    for (spec, code) in [
        (spec(&[], &[]), 0),
        (spec(&["--code", "7"], &[]), 7),
        (spec(&["--ms", "20", "--code", "255"], &[]), 255),
        (spec(&[], &[("EXIT_CODE", "3"), ("WORK_MS", "1")]), 3),
        (spec(&["--code", "many"], &[]), 1),
    ] {
        let sink = Arc::new(Collect::default());
        let guest = bench.host.run(&worker, spec.clone(), sink.clone()).unwrap();
        assert_eq!(guest.wait().await, GuestExit::Code(code), "{spec:?}");
        let (out, err) = (sink.lines(Output::Stdout), sink.lines(Output::Stderr));
        match code {
            0 => assert_eq!((out, err), (vec!["working for 0 ms".to_owned(), "done".to_owned()], vec![])),
            1 => assert_eq!(err, ["--code: \"many\" is not a number"]),
            _ => assert_eq!(err, [format!("failed with code {code}")]),
        }
        assert_eq!(guest.usage().memory_bytes, 0, "an ended guest holds nothing");
        assert!(guest.usage().memory_peak_bytes > 0 && guest.usage().cpu_ns > 0);
    }
}

#[tokio::test]
async fn a_ticker_ticks_until_it_is_asked_to_stop() {
    let bench = Bench::new();
    let sink = Arc::new(Collect::default());
    let guest = bench.host.run(&bench.guest("ticker"), spec(&[], &[("TICK_MS", "1")]), sink.clone()).unwrap();
    sink.wait_for("tick 3").await;
    assert_eq!(guest.stop(LONG).await, GuestExit::Code(0));
    assert_eq!(sink.lines(Output::Stdout).last().unwrap(), "stopping");
    assert_eq!(guest.stop(LONG).await, GuestExit::Code(0), "stopping again changes nothing");
}

#[tokio::test]
async fn a_guest_that_cannot_hear_is_ended_at_once() {
    let bench = Bench::new();
    let sink = Arc::new(Collect::default());
    let guest =
        bench.host.run(&bench.guest("worker"), spec(&["--ms", "3600000"], &[]), sink.clone()).unwrap();
    sink.wait_for("working for 3600000 ms").await;
    assert_eq!(guest.stop(LONG).await, GuestExit::Killed);
}

#[tokio::test]
async fn hello_reads_its_greeting_from_a_mounted_file_and_else_from_the_environment() {
    let bench = Bench::new();
    let hello = bench.guest("hello");
    assert_eq!(hello.world(), World::Http);
    let config = bench.dir.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("greeting"), "Good morning\n").unwrap();

    let mut mounted = spec(&[], &[("POD_NAME", "hello-1"), ("NODE_NAME", "edge-a"), ("GREETING", "unused")]);
    mounted.mounts = vec![GuestMount { host: config.clone(), guest: "/config".to_owned(), read_only: true }];
    let cases = [
        (mounted, "Good morning from hello-1 on edge-a\n"),
        (spec(&[], &[("GREETING", "Hi")]), "Hi from an unnamed pod on an unnamed node\n"),
        (spec(&[], &[]), "Hello from an unnamed pod on an unnamed node\n"),
    ];
    for (spec, expect) in cases {
        let (listener, address) = listener();
        let guest = bench.host.serve(&hello, spec, Arc::new(Collect::default()), vec![listener]).unwrap();
        assert_eq!(blocking_get(address, "/").await, (200, expect.to_owned()));
        assert_eq!(blocking_get(address, "/healthz").await, (200, "ok\n".to_owned()));
        assert_eq!(guest.usage().requests, 2);
        assert_eq!(guest.stop(LONG).await, GuestExit::Code(0));
        assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
    }
}

#[tokio::test]
async fn many_requests_at_once_are_all_answered() {
    let bench = Bench::new();
    let (listener, address) = listener();
    let hello = bench.guest("hello");
    let guest =
        bench.host.serve(&hello, spec(&[], &[]), Arc::new(Collect::default()), vec![listener]).unwrap();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || (0..25).all(|_| get(address, "/healthz") == (200, "ok\n".to_owned())))
        })
        .collect();
    for thread in threads {
        assert!(tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap());
    }
    assert_eq!(guest.usage().requests, 200);
}

#[tokio::test]
async fn a_missing_mount_and_the_wrong_use_are_errors_of_the_start() {
    let bench = Bench::new();
    let worker = bench.guest("worker");
    let mut absent = spec(&[], &[]);
    absent.mounts.push(GuestMount { host: "/nowhere".into(), guest: "/x".to_owned(), read_only: true });
    let started = bench.host.run(&worker, absent, Arc::new(Collect::default()));
    assert!(matches!(started.err(), Some(HostError::Mount { path, .. }) if path == Path::new("/nowhere")));
    let served = bench.host.serve(&worker, spec(&[], &[]), Arc::new(Collect::default()), vec![]);
    assert!(matches!(served.err(), Some(HostError::WrongWorld { .. })));
    let run = bench.host.run(&bench.guest("hello"), spec(&[], &[]), Arc::new(Collect::default()));
    assert!(matches!(run.err(), Some(HostError::WrongWorld { .. })));
}

#[tokio::test]
async fn a_loaded_component_is_shared() {
    let bench = Bench::new();
    let first = bench.guest("worker");
    assert!(Arc::ptr_eq(&first, &bench.guest("worker")));
}

/// The hash that `build.sh` writes into a guest: that of its sources, its worlds and its lock file.
fn source_hash(guest: &str) -> String {
    let dir = support::guests_dir();
    let mut files = Vec::new();
    collect(&dir, &format!("{guest}/src"), &mut files);
    collect(&dir, "../../wit", &mut files);
    files.retain(|name| name.ends_with(".rs") || name.ends_with(".wit"));
    files.sort();
    files.extend([format!("{guest}/Cargo.toml"), "Cargo.toml".to_owned(), "Cargo.lock".to_owned()]);
    let lines = files.iter().map(|name| format!("{}  -\n", sha256(&std::fs::read(dir.join(name)).unwrap())));
    sha256(lines.collect::<String>().as_bytes())
}

fn collect(dir: &Path, name: &str, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir.join(name)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().into_string().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => collect(dir, &name, files),
            false => files.push(name),
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_committed_guests_belong_to_their_sources() {
    for guest in GUESTS {
        let section = format!("lichen:source{}", source_hash(guest));
        assert!(
            support::guest_bytes(guest).ends_with(section.as_bytes()),
            "runtime/guests/{guest}.wasm is not built from what lies beside it: run runtime/guests/build.sh"
        );
    }
}

#[test]
fn the_committed_guests_name_no_machine() {
    for guest in GUESTS {
        let bytes = support::guest_bytes(guest);
        for path in ["/home/", "/root/", "/Users/"] {
            let found = bytes.windows(path.len()).any(|window| window == path.as_bytes());
            assert!(!found, "runtime/guests/{guest}.wasm mentions {path}");
        }
    }
}

async fn blocking_get(address: std::net::SocketAddr, path: &'static str) -> (u16, String) {
    tokio::task::spawn_blocking(move || get(address, path)).await.unwrap()
}
