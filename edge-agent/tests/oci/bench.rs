//! An engine with a busybox image.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use lichen_workload::conformance::Subject;
use lichen_workload::oci::image::{self, ImageConfig};
use lichen_workload::oci::unpack::Budget;
use lichen_workload::{
    Artifact, ContainerId, ContainerSpec, Event, Exit, LogLimits, LogOptions, LogStream, OciConfig,
    OciRuntime, Runtime,
};

/// Longer than any step takes; reaching it means that something hangs.
const LONG: Duration = Duration::from_secs(60);
/// How often a test looks whether something has come to be.
const LOOK: Duration = Duration::from_millis(10);
/// Tells the process that is there for crun alone.
const CRUN_ALONE: &str = "LICHEN_TEST_CRUN_ALONE";
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];
const APPLETS: [&str; 14] = [
    "cat", "echo", "grep", "hostname", "id", "ip", "ls", "printf", "pwd", "sh", "sleep", "tail", "touch",
    "true",
];

pub(crate) struct Bench {
    pub(crate) engine: &'static str,
    pub(crate) runtime: OciRuntime,
    pub(crate) config: OciConfig,
    pub(crate) folder: tempfile::TempDir,
    /// Held so that nobody else on this machine has containers of the same names: their control groups would be shared.
    _turn: Arc<File>,
}

/// A bench for each engine that is here and can do with this machine. Where there is none the test cannot run: with `CI=true`
/// that is a failure, elsewhere the reason is printed.
pub(crate) fn benches(test: &str) -> Vec<Bench> {
    let busybox = BUSYBOX.iter().map(Path::new).find(|path| path.is_file());
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let turn = Arc::new(File::create(std::env::temp_dir().join("lichen-oci-tests.lock")).unwrap());
    turn.lock().unwrap();
    let found: Vec<Bench> = ["runc", "crun"]
        .into_iter()
        .filter_map(|engine| {
            let program = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
                .map(|dir| Path::new(dir).join(engine))
                .into_iter()
                .find(|program| program.is_file())?;
            // crun refuses control groups of both versions beside each other; see `crun_alone`.
            if engine == "crun" && is_hybrid() || engine != "crun" && std::env::var_os(CRUN_ALONE).is_some() {
                return None;
            }
            Some(Bench::new(engine, program, busybox.filter(|_| root)?, test, turn.clone()))
        })
        .collect();
    if found.is_empty() {
        let reason = "OCI containers need root, runc or crun, and busybox-static";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to test them: {reason}");
        println!("skipped: {reason}");
    }
    found
}

/// Has every other test run with crun in a process of its own, for which control groups of version 2 are not mounted. Does
/// nothing where crun needs no such help, or is not installed while runc is.
pub(crate) fn crun_alone(but: &str) {
    if std::env::var_os(CRUN_ALONE).is_some() || !is_hybrid() {
        return;
    }
    let is_there = |program: &str, argument: &str| {
        Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
    };
    if !is_there("crun", "--version") || !is_there("unshare", "--version") {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to test crun");
        return println!("skipped: crun takes crun and unshare");
    }
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            "umount -a -t cgroup2 && exec \"$@\"",
            "sh",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--skip", but])
        .env(CRUN_ALONE, "1")
        .status();
    assert!(status.unwrap().success(), "crun fails what is told above");
}

/// Whether control groups of both versions are mounted.
fn is_hybrid() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(" - cgroup ") && mounts.contains(" - cgroup2 ")
}

impl Bench {
    fn new(engine: &'static str, program: PathBuf, busybox: &Path, test: &str, turn: Arc<File>) -> Self {
        let folder = tempfile::Builder::new().prefix(&format!("lichen-oci-{test}-")).tempdir().unwrap();
        let layer = folder.path().join("layer.tar");
        let mut builder = tar::Builder::new(std::fs::File::create(&layer).unwrap());
        builder.append_path_with_name(busybox, "bin/busybox").unwrap();
        for applet in APPLETS {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
        }
        builder.finish().unwrap();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let said =
            ImageConfig { env: words(&["PATH=/bin"]), cmd: words(&["/bin/sh"]), ..ImageConfig::default() };
        image::create(&folder.path().join("image"), &said, &[layer], Budget::default()).unwrap();
        let mut config = OciConfig::new(folder.path().join("containers"));
        config.shim = vec![env!("CARGO_BIN_EXE_lichen-agent").into(), "oci-shim".into()];
        config.engine = Some(program);
        Self {
            engine,
            runtime: OciRuntime::new(config.clone(), SystemTime::now),
            config,
            folder,
            _turn: turn,
        }
    }

    pub(crate) fn limit_logs(&mut self, logs: LogLimits) {
        self.config.logs = logs;
        self.runtime = OciRuntime::new(self.config.clone(), SystemTime::now);
    }

    /// A container that runs a script.
    pub(crate) fn sh(&self, id: ContainerId, script: &str) -> ContainerSpec {
        let log = self.folder.path().join(format!("{id}.log"));
        // Its name in the machine is its id, so that a test can tell where it is.
        let hostname = id.to_string();
        let mut spec =
            ContainerSpec::new(id, Artifact::Image { path: self.folder.path().join("image") }, log);
        spec.args = vec!["-c".into(), script.into()];
        spec.command = vec!["sh".into()];
        spec.process.hostname = hostname;
        spec
    }

    /// A container that says `started` and ends with 0 when it is asked to.
    pub(crate) fn sleeps(&self, id: ContainerId) -> ContainerSpec {
        self.sh(id, "trap 'exit 0' TERM; echo started; while :; do sleep 60 & wait $!; done")
    }

    /// Runs a container to its end; its exit and its log.
    pub(crate) async fn run(&self, spec: ContainerSpec) -> (Exit, String) {
        let mut events = self.runtime.events();
        let id = spec.id.clone();
        self.runtime.create(spec).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        let exit = loop {
            match tokio::time::timeout(LONG, events.recv()).await.unwrap().unwrap() {
                Event::Exited { id: ended, exit } if ended == id => break exit,
                _ => {}
            }
        };
        let log = text(self.runtime.logs(&id, LogOptions::default()).unwrap()).await;
        self.runtime.remove(&id).await.unwrap();
        (exit, log)
    }

    /// Waits until the log begins with this.
    pub(crate) async fn says(&self, id: &ContainerId, start: &str) {
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut log = self.runtime.logs(id, options).unwrap();
        let mut seen = Vec::new();
        while !seen.starts_with(start.as_bytes()) {
            seen.extend_from_slice(&tokio::time::timeout(LONG, log.next()).await.unwrap().unwrap().unwrap());
        }
    }

    /// Stops and removes a container.
    pub(crate) async fn end(&self, id: &ContainerId) {
        self.runtime.stop(id, LONG).await.unwrap();
        self.runtime.remove(id).await.unwrap();
    }

    /// The number of a container's process.
    pub(crate) fn init(&self, id: &ContainerId) -> String {
        std::fs::read_to_string(self.config.dir.join(id.as_str()).join("pid")).unwrap().trim().to_owned()
    }

    /// The containers of which something is left.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for dir in [self.config.dir.clone(), self.config.dir.join(".engine")] {
            let entries = std::fs::read_dir(dir).into_iter().flatten();
            left.extend(entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()));
        }
        left.retain(|name| name != ".engine");
        left
    }
}

impl Drop for Bench {
    /// A test that failed leaves containers, and mounts in the folder.
    fn drop(&mut self) {
        for name in self.left() {
            let mut engine = Command::new(self.config.engine.as_deref().unwrap_or(Path::new("true")));
            let _ = engine
                .arg("--root")
                .arg(self.config.dir.join(".engine"))
                .args(["delete", "--force", &name])
                .output();
            let _ = Command::new("umount").arg(self.config.dir.join(&name).join("rootfs")).output();
        }
    }
}

impl Subject for Bench {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.runtime.clone())
    }

    fn successor(&self) -> Arc<dyn Runtime> {
        Arc::new(OciRuntime::new(self.config.clone(), SystemTime::now))
    }

    fn outlives(&self) -> bool {
        true
    }

    fn end_unseen<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, ()> {
        async {
            kill("-TERM", &self.init(id));
            // Its shim has told when this is there.
            let told = self.config.dir.join(id.as_str()).join("ended.json");
            tokio::time::timeout(LONG, async {
                while !told.exists() {
                    tokio::time::sleep(LOOK).await;
                }
            })
            .await
            .expect("it ends in time");
        }
        .boxed()
    }

    fn prints_and_exits(&self, id: ContainerId, code: i32) -> ContainerSpec {
        self.sh(id, &format!("echo one; echo two; echo three; exit {code}"))
    }

    fn runs(&self, id: ContainerId) -> ContainerSpec {
        self.sleeps(id)
    }

    fn broken(&self, id: ContainerId) -> ContainerSpec {
        let mut spec = self.sleeps(id);
        spec.artifact = Artifact::Image { path: self.folder.path().join("no-image") };
        spec
    }
}

pub(crate) fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success(), "kill {signal} {pid}");
}

pub(crate) fn lives(pid: &str) -> bool {
    // What has ended and waits to be waited for lives no more.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

pub(crate) async fn text(mut log: LogStream) -> String {
    let mut text = Vec::new();
    while let Some(chunk) = tokio::time::timeout(LONG, log.next()).await.unwrap() {
        text.extend_from_slice(&chunk.unwrap());
    }
    String::from_utf8(text).unwrap()
}
