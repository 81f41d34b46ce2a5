//! Compilation ahead of time, with scripts in the place of the compiler: the seam is a process.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{COMPONENT, Local, open, script};
use lichen_artifacts::{Artifacts, CompileCommand, CompileError, Digest, push};

const PROFILE: &str = "wasmtime48-x86_64-unknown-linux-gnu-base-0123abcd";

async fn store(worker: CompileCommand) -> (tempfile::TempDir, Artifacts, Digest) {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = open(dir.path(), worker).unwrap();
    let component = Bytes::from_static(COMPONENT);
    let pushed = push(&Local(artifacts.clone()), &"hello:v1".parse().unwrap(), component).await.unwrap();
    (dir, artifacts, pushed.layer)
}

#[tokio::test]
async fn a_component_is_compiled_once_and_kept_with_its_signature() {
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    let worker = script(&format!("echo \"$@\" >>{}; printf 'for %s\\n' \"$2\"; cat", runs.display()));
    let (store_dir, artifacts, layer) = store(worker.clone()).await;
    let all = (0..8).map(|_| artifacts.compiled(&layer, PROFILE));
    let all: Vec<_> = futures_util::future::join_all(all).await.into_iter().map(Result::unwrap).collect();
    let compiled = &all[0];
    assert!(all.iter().all(|other| other == compiled));
    let content = std::fs::read(&compiled.path).unwrap();
    assert_eq!(content, [format!("for {PROFILE}\n").as_bytes(), COMPONENT].concat());
    assert_eq!(compiled.sha256, Digest::of(&content));
    assert_eq!(compiled.len_bytes, content.len() as u64);
    let said = String::from_utf8(compiled.signature.clone()).unwrap();
    for part in [PROFILE, &layer.to_string(), &compiled.sha256.to_string()] {
        assert!(said.contains(part), "{said}");
    }
    drop(artifacts);
    let artifacts = open(store_dir.path(), worker).unwrap();
    assert_eq!(artifacts.compiled(&layer, PROFILE).await.unwrap(), *compiled, "also after a restart");
    artifacts.compiled(&layer, "other").await.unwrap();
    let runs = std::fs::read_to_string(runs).unwrap();
    assert_eq!(runs, format!("--profile {PROFILE}\n--profile other\n"));
}

#[tokio::test]
async fn a_damaged_or_forged_artifact_is_made_again() {
    let (dir, artifacts, layer) = store(common::cat()).await;
    let compiled = artifacts.compiled(&layer, PROFILE).await.unwrap();
    let mut content = std::fs::read(&compiled.path).unwrap();
    content[100] ^= 1;
    std::fs::write(&compiled.path, &content).unwrap();
    assert_eq!(artifacts.compiled(&layer, PROFILE).await.unwrap(), compiled);
    assert_eq!(Digest::of(&std::fs::read(&compiled.path).unwrap()), compiled.sha256);

    // Someone with access to the disk puts another artifact there, with its right hash, but cannot sign.
    let other = artifacts.compiled(&layer, "other").await.unwrap();
    assert_eq!(other.sha256, compiled.sha256, "the fake compiler makes the same of both");
    let entry = compiled.path.with_extension("json");
    let forged = std::fs::read(other.path.with_extension("json")).unwrap();
    std::fs::write(&entry, &forged).unwrap();
    assert_eq!(artifacts.compiled(&layer, PROFILE).await.unwrap(), compiled);
    assert_ne!(std::fs::read(&entry).unwrap(), forged, "a signature for another profile does not count");
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_the_worker_says_is_the_error() {
    let (_dir, artifacts, layer) =
        store(script("cat >/dev/null; echo 'it imports what nobody has' >&2; exit 3")).await;
    let error = artifacts.compiled(&layer, PROFILE).await.unwrap_err();
    assert!(
        matches!(&error, CompileError::Rejected { message, .. } if message == "it imports what nobody has")
    );
    let (_dir, artifacts, layer) = store(script("exit 1")).await;
    let error = artifacts.compiled(&layer, PROFILE).await.unwrap_err();
    assert!(error.to_string().contains("said nothing"), "{error}");
    let (_dir, artifacts, layer) = store(script("cat >/dev/null")).await;
    assert!(artifacts.compiled(&layer, PROFILE).await.is_err(), "no output is no artifact");
}

#[tokio::test]
async fn a_worker_that_wants_too_much_is_stopped() {
    let mut endless = script("exec sleep 1000");
    endless.time_max = Duration::from_millis(100);
    let mut verbose = script("yes");
    verbose.output_bytes_max = 1 << 20;
    let mut busy = script("while :; do :; done");
    busy.cpu_s_max = 1;
    for worker in [endless, verbose, busy] {
        let (dir, artifacts, layer) = store(worker).await;
        let error = artifacts.compiled(&layer, PROFILE).await.unwrap_err();
        assert!(matches!(error, CompileError::Limit { .. }), "{error}");
        assert!(std::fs::read_dir(dir.path().join("compiled")).unwrap().next().is_none(), "nothing is kept");
    }
    let mut greedy = script("cat >/dev/null; ulimit -v; ulimit -t; ulimit -c");
    greedy.memory_bytes_max = 1 << 30;
    greedy.cpu_s_max = 77;
    let (_dir, artifacts, layer) = store(greedy).await;
    let limits = std::fs::read_to_string(artifacts.compiled(&layer, PROFILE).await.unwrap().path).unwrap();
    assert_eq!(limits, "1048576\n77\n0\n");
}

#[tokio::test]
async fn wrong_questions_start_no_worker() {
    let (_dir, artifacts, layer) = store(CompileCommand::new(vec!["/nonexistent".into()])).await;
    for profile in ["", "../x", "-p", "a b", "a/b", &"x".repeat(200)] {
        assert!(
            matches!(artifacts.compiled(&layer, profile).await, Err(CompileError::Profile(_))),
            "{profile}"
        );
    }
    let unknown = artifacts.compiled(&Digest::of(b"unknown"), PROFILE).await;
    assert!(matches!(unknown, Err(CompileError::Blob(_))));
    let manifest = artifacts.resolve(&"hello:v1".parse().unwrap()).await.unwrap().manifest;
    let error = artifacts.compiled(&manifest, PROFILE).await.unwrap_err();
    assert!(matches!(error, CompileError::NotComponent { .. }), "{error}");
    let error = artifacts.compiled(&layer, PROFILE).await.unwrap_err();
    assert!(matches!(error, CompileError::Worker { .. }), "{error}");
}
