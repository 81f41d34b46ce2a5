//! A runtime over real components, as a node has it.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::path::Path;
use std::time::SystemTime;

use lichen_engine::ProfileId;
use lichen_workload::{Artifact, ContainerId, ContainerSpec, LogLimits, WasmConfig, WasmRuntime};

pub(crate) struct Node {
    pub(crate) runtime: WasmRuntime,
    pub(crate) dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with_logs(LogLimits::default())
    }

    pub(crate) fn with_logs(logs: LogLimits) -> Self {
        let config = WasmConfig { logs, ..WasmConfig::default() };
        Self {
            runtime: WasmRuntime::new(&config, SystemTime::now).unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A container of a committed guest.
    pub(crate) fn spec(&self, id: ContainerId, guest: &str, args: &[&str]) -> ContainerSpec {
        let log = self.dir.path().join(format!("{id}.log"));
        ContainerSpec {
            args: args.iter().map(|text| (*text).to_owned()).collect(),
            ..ContainerSpec::new(id, self.artifact(guest), log)
        }
    }

    pub(crate) fn artifact(&self, guest: &str) -> Artifact {
        let path = self.dir.path().join(format!("{guest}.cwasm"));
        if !path.exists() {
            let source = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../runtime/guests")
                .join(format!("{guest}.wasm"));
            let compiled =
                lichen_engine::compile(&std::fs::read(source).unwrap(), &ProfileId::host()).unwrap();
            std::fs::write(&path, compiled).unwrap();
        }
        Artifact::Component { path, digest: format!("sha256:{guest}") }
    }
}
