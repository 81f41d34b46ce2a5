//! A server whose disk is full or has become read-only says so to its clients, goes on answering them, and goes on writing
//! once it can.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lichen_firmware_tests::process::Process;
use lichen_firmware_tests::{mounts, tools};

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
/// How often a server is asked whether it writes again.
const LOOK: Duration = Duration::from_millis(100);

#[test]
fn a_server_survives_a_full_disk() {
    mounts::in_own("a_server_survives_a_full_disk", full);
}

#[test]
fn a_server_survives_a_disk_that_becomes_read_only() {
    mounts::in_own("a_server_survives_a_disk_that_becomes_read_only", read_only);
}

/// A server's data directory, and a client of it.
struct Bench {
    dir: PathBuf,
    data: PathBuf,
}

impl Bench {
    fn new(dir: &Path) -> Self {
        let bench = Self { dir: dir.to_owned(), data: dir.join("data") };
        fs::create_dir(&bench.data).unwrap();
        bench
    }

    fn start(&self, name: &str) -> anyhow::Result<Process> {
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut command = Command::new(LICHEN);
        command.args(["server", "--api-addr", &port(), "--mqtt-addr", &port(), "--data-dir"]).arg(&self.data);
        Process::start(name, command, &self.dir, &["A node joins"])
    }

    fn client(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(LICHEN);
        command.args(arguments).env("KUBECONFIG", self.data.join("admin.kubeconfig")).stdin(Stdio::null());
        command.output().unwrap()
    }

    fn apply(&self, name: &str, value: &str) -> Output {
        let manifest = self.dir.join("manifest.yaml");
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\ndata: {{value: \"{value}\"}}\n"
        );
        fs::write(&manifest, text).unwrap();
        self.client(&["apply", "-f", manifest.to_str().unwrap()])
    }

    /// What a client is told instead of having its write acknowledged.
    fn refused(&self, output: &Output, advice: &str) {
        let told = String::from_utf8_lossy(&output.stderr);
        let store = self.data.join("server/store");
        for part in [store.to_str().unwrap(), advice] {
            assert!(told.contains(part), "{told}");
        }
    }

    fn reads(&self, name: &str) {
        let read = self.client(&["get", "configmap", name]);
        assert!(read.status.success(), "{read:?}");
    }

    fn sound(&self) {
        let checked = self.client(&["store", "check", self.data.to_str().unwrap()]);
        assert!(checked.status.success(), "{checked:?}");
        let report = String::from_utf8(checked.stdout).unwrap();
        assert!(report.trim_end().ends_with("no problem found"), "{report}");
    }
}

fn full(dir: &Path) {
    let bench = Bench::new(dir);
    mounts::mount(&["-t", "tmpfs", "-o", "size=48m", "none"], &bench.data);
    let mut server = bench.start("server").unwrap();
    let applied = bench.apply("before", "1");
    assert!(applied.status.success(), "{applied:?}");

    let mut filler = File::create(bench.data.join("filler")).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while filler.write_all(&vec![1; size]).is_ok() {}
    }
    let large = "x".repeat(100_000);
    // The same again would change nothing.
    let mut applied = ["none", large.as_str()].into_iter().cycle().map(|value| bench.apply("large", value));
    let refused = applied.find(|output| !output.status.success()).unwrap();
    bench.refused(&refused, "free some space on its disk, and writing resumes by itself");
    bench.reads("before");

    drop(filler);
    fs::remove_file(bench.data.join("filler")).unwrap();
    while !bench.apply("after", "1").status.success() {
        assert_eq!(server.ended().unwrap(), None);
        std::thread::sleep(LOOK);
    }
    bench.reads("after");
    server.stop().unwrap();
    bench.sound();

    // One that cannot write at all does not start, and says why.
    mounts::mount(&["-o", "remount,ro"], &bench.data);
    let told = format!("{:?}", bench.start("read-only").err().expect("it does not start"));
    assert!(told.contains(bench.data.to_str().unwrap()), "{told}");
    assert!(told.contains("Read-only file system"), "{told}");
}

/// The kernel does this to a file system in which it found an error; whoever has files open there is not asked. It is the
/// error that is made up.
fn read_only(dir: &Path) {
    let Some(disk) = Disk::make(dir) else { return };
    let bench = Bench::new(dir);
    disk.mount(&bench.data);
    let mut server = bench.start("server").unwrap();
    let applied = bench.apply("before", "1");
    assert!(applied.status.success(), "{applied:?}");

    disk.fail();
    let refused = bench.apply("lost", "1");
    assert!(!refused.status.success(), "{refused:?}");
    bench.refused(&refused, "Read-only file system");
    bench.reads("before");
    let refused = bench.apply("lost", "2");
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(server.ended().unwrap(), None, "it lives on");

    // Such a file system can be written to only once it was checked, which takes that nobody uses it.
    server.stop().unwrap();
    mounts::unmount(&bench.data);
    disk.repair();
    disk.mount(&bench.data);
    bench.sound();
    let server = bench.start("again").unwrap();
    bench.reads("before");
    let lost = bench.client(&["get", "configmap", "lost"]);
    assert!(!lost.status.success(), "what was refused is not there: {lost:?}");
    let applied = bench.apply("after", "1");
    assert!(applied.status.success(), "{applied:?}");
    server.stop().unwrap();
}

/// A file system in a file.
struct Disk {
    image: PathBuf,
    device: String,
}

impl Disk {
    /// Nothing where there are no loop devices, or no tools for them.
    fn make(dir: &Path) -> Option<Self> {
        let image = dir.join("image");
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).arg(&image).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let device = run("mkfs.ext4", &["-q"]).and_then(|_| run("losetup", &["--find", "--show"]));
        match device {
            Some(device) => Some(Self { image, device }),
            None => {
                tools::missing("a file system in a file takes mkfs.ext4, losetup and a loop device");
                None
            }
        }
    }

    fn mount(&self, at: &Path) {
        mounts::mount(&["-t", "ext4", "-o", "errors=remount-ro", &self.device], at);
    }

    fn fail(&self) {
        let name = Path::new(&self.device).file_name().unwrap();
        fs::write(Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error"), "1").unwrap();
    }

    fn repair(&self) {
        // It says by its code that it has mended something.
        let status = Command::new("e2fsck").args(["-p", "-f"]).arg(&self.device).status().unwrap();
        assert!(status.code().is_some_and(|code| code < 4), "{status}: {}", self.image.display());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is detached once nobody uses it any more.
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}
