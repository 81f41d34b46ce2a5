//! The conformance suite over the mock and over real components.

mod support;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lichen_workload::conformance::{self, Subject};
use lichen_workload::mock::{MockRuntime, Script};
use lichen_workload::{Artifact, ContainerId, ContainerSpec, Exit, Runtime, RuntimeError};
use support::Node;

struct Mock(MockRuntime);

impl Mock {
    fn spec(&self, id: ContainerId, behaviour: &str, script: Script) -> ContainerSpec {
        self.0.script(behaviour, script);
        ContainerSpec::new(id, Artifact::Image { path: behaviour.into() }, "/nowhere")
    }
}

impl Subject for Mock {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.0.clone())
    }

    fn successor(&self) -> Arc<dyn Runtime> {
        Arc::new(self.0.successor())
    }

    fn outlives(&self) -> bool {
        true
    }

    fn end_unseen<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, ()> {
        async { self.0.exit(id, Exit::Code(0)).expect("it runs") }.boxed()
    }

    fn prints_and_exits(&self, id: ContainerId, code: i32) -> ContainerSpec {
        let output = ["one", "two", "three"].map(str::to_owned).to_vec();
        let script = Script { output, exit_at_start: Some(Exit::Code(code)), ..Script::default() };
        self.spec(id, &format!("exits-{code}"), script)
    }

    fn runs(&self, id: ContainerId) -> ContainerSpec {
        let output = vec!["started".to_owned()];
        self.spec(id, "runs", Script { output, exit_at_stop: Some(Exit::Code(0)), ..Script::default() })
    }

    fn broken(&self, id: ContainerId) -> ContainerSpec {
        let refuse = || RuntimeError::BadArtifact { path: "broken".to_owned(), reason: "it is".to_owned() };
        self.spec(id, "broken", Script { prepare: Some(Arc::new(refuse)), ..Script::default() })
    }
}

impl Subject for Node {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.runtime.clone())
    }

    fn successor(&self) -> Arc<dyn Runtime> {
        Arc::new(Node::new().runtime)
    }

    fn outlives(&self) -> bool {
        false
    }

    fn end_unseen<'a>(&'a self, _: &'a ContainerId) -> BoxFuture<'a, ()> {
        unreachable!("components end with their agent")
    }

    fn prints_and_exits(&self, id: ContainerId, code: i32) -> ContainerSpec {
        let code = code.to_string();
        self.spec(id, "probe", &["print", "one", "print", "two", "print", "three", "exit", &code])
    }

    fn runs(&self, id: ContainerId) -> ContainerSpec {
        self.spec(id, "probe", &["print", "started", "stop"])
    }

    fn broken(&self, id: ContainerId) -> ContainerSpec {
        let path = self.dir.path().join("broken.cwasm");
        std::fs::write(&path, b"\x7fELF and nothing more").unwrap();
        let mut spec = self.runs(id);
        spec.artifact = Artifact::Component { path, digest: "sha256:broken".to_owned() };
        spec
    }
}

#[tokio::test]
async fn the_mock_conforms() {
    conformance::test_all(&Mock(MockRuntime::default())).await;
}

#[tokio::test]
async fn components_conform() {
    conformance::test_all(&Node::new()).await;
}
