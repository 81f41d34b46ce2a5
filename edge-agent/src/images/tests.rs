use std::sync::{Arc, Mutex};

use lichen_pods::PullPolicy;
use lichen_state::Checkpoint;
use lichen_workload::Artifact;
use lichen_workload::mock::MockRuntime;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::artifacts::Prepared;
use crate::testing::Fake;

struct Bench {
    fake: Arc<Fake>,
    runtime: MockRuntime,
    artifacts: Artifacts,
    /// Kept, since without it the node counts as cut off for good.
    _connected: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a directory");
    let (fake, runtime) = (Fake::new(), MockRuntime::default());
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
    Bench { fake, runtime, artifacts, _connected: connected, _dir: dir }
}

fn layer(path: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, content).expect("is written");
    builder.into_inner().expect("is written")
}

impl Bench {
    /// Puts an image of these layers under every reference, after `change` had its way with its manifest.
    fn publish(&self, platform: &str, layers: &[Vec<u8>], change: impl Fn(&mut Value)) {
        let (os, architecture) = platform.split_once('/').expect("a platform");
        let config = json!({ "os": os, "architecture": architecture, "config": { "Cmd": ["/hi"] } });
        let config = serde_json::to_vec(&config).expect("encodes");
        let describe = |content: &[u8]| json!({ "digest": format!("sha256:{}", hex(&self.fake.add(content))), "size": content.len() });
        let layers: Vec<Value> = layers.iter().map(|layer| describe(layer)).collect();
        let mut manifest = json!({ "config": describe(&config), "layers": layers });
        change(&mut manifest);
        let digest = self.fake.add(&serde_json::to_vec(&manifest).expect("encodes"));
        *self.fake.image.lock().expect("not poisoned") = Some(digest);
    }

    async fn prepare(&self) -> Result<Prepared, Failure> {
        self.artifacts.prepare("web:v1", PullPolicy::Always, || {}).await
    }

    fn asked(&self) -> Vec<u64> {
        std::mem::take(&mut *self.fake.asked.lock().expect("not poisoned"))
            .into_iter()
            .map(|(_, at)| at)
            .collect()
    }
}

#[tokio::test]
async fn an_image_is_pulled_blob_by_blob_and_unpacked_once() {
    let b = bench();
    let (base, top) = (layer("base", &[b'x'; 100_000]), layer("top", b"1"));
    b.publish(&image::platform(), &[base.clone(), top], |_| {});
    let prepared = b.prepare().await.expect("is pulled");
    let Artifact::Image { path } = &prepared.artifact else { panic!("{prepared:?}") };
    assert_eq!(prepared.image_id, format!("web@sha256:{}", path.file_name().expect("a name").display()));
    assert_eq!(std::fs::metadata(path.join("rootfs/base")).expect("is there").len(), 100_000);
    assert_eq!(std::fs::read(path.join("rootfs/top")).expect("reads"), b"1");
    // Each from its beginning, but for those that broke off: they go on where they were.
    let asked = b.asked();
    assert!(asked.iter().any(|offset| *offset > 50_000), "{asked:?}");
    b.prepare().await.expect("is there");
    assert_eq!(b.asked(), [0u64; 0], "nothing is fetched again");

    // The next version brings what is new in it: a manifest and a layer.
    b.publish(&image::platform(), &[base, layer("top", b"2")], |_| {});
    let next = b.prepare().await.expect("is pulled");
    assert_eq!(std::fs::read(next.artifact.path().join("rootfs/top")).expect("reads"), b"2");
    assert_eq!(b.fake.asked.lock().expect("not poisoned").iter().filter(|(_, at)| *at == 0).count(), 2);

    // A node that was started anew has it.
    let again = b.artifacts.prepare("web:v1", PullPolicy::Never, || {}).await.expect("is there");
    assert_eq!(again.artifact, next.artifact);
}

#[tokio::test]
async fn what_is_wrong_with_an_image_is_told() {
    let check = async |platform: &str, layers: &[Vec<u8>], change: &dyn Fn(&mut Value), expect: &str| {
        let b = bench();
        b.publish(platform, layers, change);
        let (failure, message) = b.prepare().await.expect_err("is refused");
        assert_eq!(failure, ImageFailure::Inspect, "{message}");
        assert!(message.contains(expect), "{message}");
    };
    let (here, good) = (image::platform(), layer("a", b"1"));
    check(
        "windows/amd64",
        std::slice::from_ref(&good),
        &|_| {},
        "made for windows/amd64, this node is linux/",
    )
    .await;
    check(&here, &[layer("a", b"1")[..600].to_vec()], &|_| {}, "layer 1 of 1: the layer is damaged").await;
    check(&here, &[b"\x28\xb5\x2f\xfd".to_vec()], &|_| {}, "build the image with gzip").await;
    check(&here, &[], &|manifest| manifest["config"]["digest"] = json!("md5:1"), "no SHA-256 digest").await;
    check(&here, &[], &|manifest| manifest["layers"] = json!(null), "the image's manifest").await;
    check(
        &here,
        &[good],
        &|manifest| manifest["layers"][0]["size"] = json!(1u64 << 40),
        "more than a node takes",
    )
    .await;
}

#[tokio::test]
async fn a_node_without_an_oci_runtime_fetches_nothing() {
    let b = bench();
    b.publish(&image::platform(), &[layer("a", b"1")], |_| {});
    b.runtime.lack(Handler::Oci, "install one");
    assert_eq!(b.prepare().await, Err((ImageFailure::NoRuntime, "install one".to_owned())));
    assert_eq!(b.asked(), [0u64; 0]);
}
