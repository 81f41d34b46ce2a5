use std::sync::Arc;

use lichen_pods::{ImageFailure, PullPolicy};
use lichen_state::Checkpoint;
use lichen_workload::RuntimeError;
use lichen_workload::mock::{MockRuntime, Script};
use tokio::sync::watch;

use super::*;
use crate::testing::{Fake, Transfer};

struct Bench {
    fake: Arc<Fake>,
    runtime: MockRuntime,
    artifacts: Artifacts,
    connected: watch::Sender<bool>,
    dir: tempfile::TempDir,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a directory");
    let fake = Fake::new();
    let runtime = MockRuntime::default();
    let (connected, receiver) = watch::channel(true);
    let (checkpoint, _) = Checkpoint::open(dir.path()).expect("opens");
    let artifacts = Artifacts {
        dir: dir.path().join("artifacts"),
        profile: lichen_engine::ProfileId::host().to_string(),
        ca_pem: fake.authority.ca_pem().to_owned(),
        uplink: fake.clone(),
        connected: receiver,
        runtime: Arc::new(runtime.clone()),
        checkpoint: Arc::new(checkpoint),
        state: Mutex::default(),
    };
    Bench { fake, runtime, artifacts, connected, dir }
}

impl Bench {
    async fn prepare(&self, policy: PullPolicy) -> Result<Prepared, Failure> {
        self.artifacts.prepare("team/hello:v1", policy, || {}).await
    }

    fn script(&self, transfers: &[Transfer]) {
        self.fake.transfers.lock().expect("not poisoned").extend(transfers.iter().cloned());
    }

    fn offsets(&self) -> Vec<u64> {
        std::mem::take(&mut *self.fake.offsets.lock().expect("not poisoned"))
    }
}

#[tokio::test]
async fn an_artifact_is_pulled_once() {
    let b = bench();
    let prepared = b.prepare(PullPolicy::IfNotPresent).await.expect("is pulled");
    assert_eq!(prepared.image_id, format!("team/hello@sha256:{}", "01".repeat(32)));
    assert!(prepared.pulled_ms.is_some());
    let Artifact::Component { path, .. } = &prepared.artifact else { panic!("{prepared:?}") };
    assert!(std::fs::read(path).expect("reads") == b.fake.artifact);
    let again = b.prepare(PullPolicy::IfNotPresent).await.expect("is there");
    assert_eq!((again.pulled_ms, &again.artifact), (None, &prepared.artifact));
    assert_eq!(b.offsets(), [0]);
    b.prepare(PullPolicy::Always).await.expect("is asked for anew");
    b.connected.send_replace(false);
    b.prepare(PullPolicy::Always).await.expect("a node that is cut off runs what it has");
    assert_eq!(b.offsets(), [0]);
    let left: Vec<_> = std::fs::read_dir(b.dir.path().join("artifacts")).expect("reads").collect();
    assert_eq!(left.len(), 1, "nothing else is left: {left:?}");
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_was() {
    let b = bench();
    b.script(&[Transfer::LostAfter(90_000), Transfer::LostAfter(0), Transfer::LostAfter(60_000)]);
    let prepared = b.prepare(PullPolicy::IfNotPresent).await.expect("is pulled");
    assert_eq!(b.offsets(), [0, 90_000, 90_000, 150_000]);
    let Artifact::Component { path, .. } = &prepared.artifact else { panic!("{prepared:?}") };
    assert!(std::fs::read(path).expect("reads") == b.fake.artifact);
}

#[tokio::test]
async fn what_is_wrong_is_refused() {
    let check = async |transfer: Transfer, kind: ImageFailure, says: &str| {
        let b = bench();
        b.script(&[transfer]);
        let (failure, message) = b.prepare(PullPolicy::IfNotPresent).await.expect_err("is refused");
        assert_eq!(failure, kind, "{message}");
        assert!(message.contains(says), "{message}");
        b.prepare(PullPolicy::IfNotPresent).await.expect("the next try succeeds");
    };
    check(Transfer::Damaged, ImageFailure::Pull, "the artifact's digest is ").await;
    check(Transfer::Forged, ImageFailure::Pull, "the artifact is refused: ").await;
    check(Transfer::OtherProfile, ImageFailure::Pull, "the artifact is refused: ").await;
    check(Transfer::Error("NotFound: hello:v1: not found"), ImageFailure::Pull, "hello:v1: not found").await;
    check(Transfer::Error("Unusable: no component"), ImageFailure::Inspect, "no component").await;
    check(Transfer::Error("Invalid: a bad name"), ImageFailure::InvalidName, "a bad name").await;
}

#[tokio::test]
async fn a_policy_of_never_pulls_nothing() {
    let b = bench();
    let (failure, _) = b.prepare(PullPolicy::Never).await.expect_err("is not there");
    assert_eq!(failure, ImageFailure::NeverPull);
    assert_eq!(b.offsets(), [0u64; 0]);
}

#[tokio::test]
async fn a_file_that_was_changed_is_pulled_anew() {
    let b = bench();
    let prepared = b.prepare(PullPolicy::IfNotPresent).await.expect("is pulled");
    let Artifact::Component { path, .. } = &prepared.artifact else { panic!("{prepared:?}") };
    std::fs::write(path, b"something else").expect("writes");
    // As after a restart: nothing was verified in this run.
    b.artifacts.state().verified.clear();
    b.prepare(PullPolicy::IfNotPresent).await.expect("is pulled anew");
    assert_eq!(b.offsets(), [0, 0]);
    assert!(std::fs::read(path).expect("reads") == b.fake.artifact);
}

#[tokio::test]
async fn what_the_runtime_cannot_run_is_told() {
    let b = bench();
    let first = b.prepare(PullPolicy::IfNotPresent).await.expect("is pulled");
    let Artifact::Component { path, .. } = &first.artifact else { panic!("{first:?}") };
    let fault = || RuntimeError::MissingImport("wasi:gadget/x".to_owned());
    b.runtime
        .script(path.display().to_string(), Script { prepare: Some(Arc::new(fault)), ..Script::default() });
    let (failure, message) = b.prepare(PullPolicy::IfNotPresent).await.expect_err("cannot run");
    assert_eq!(failure, ImageFailure::Inspect);
    assert_eq!(message, "the component imports wasi:gadget/x, which this node does not offer");
}
