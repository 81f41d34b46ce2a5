//! A server whose disk is full says so to its clients, goes on answering them, and goes on writing once there is room.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lichen_firmware_tests::process::Process;
use lichen_firmware_tests::tools;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
/// Where the child mounts a file system, in a mount namespace that ends with it.
const CHILD_DIR: &str = "LICHEN_SERVER_TEST_MOUNT";
/// How often a server is asked whether it writes again.
const LOOK: Duration = Duration::from_millis(100);

#[test]
fn a_server_survives_a_full_disk() {
    let namespace = Command::new("unshare").args(["--mount", "true"]).status();
    if !namespace.is_ok_and(|status| status.success()) {
        return tools::missing("a mount namespace takes root's rights and `unshare`");
    }
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir.path())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Not a test of its own: what runs in the namespace.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    live(Path::new(&dir));
}

fn live(dir: &Path) {
    let data = dir.join("data");
    fs::create_dir(&data).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "none"]).arg(&data).status();
    assert!(mount.unwrap().success());
    let start = |name: &str, ready: &[&str]| {
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut command = Command::new(LICHEN);
        command.args(["server", "--api-addr", &port(), "--mqtt-addr", &port(), "--data-dir"]).arg(&data);
        Process::start(name, command, dir, ready)
    };
    let mut server = start("server", &["A node joins"]).unwrap();
    let apply = |name: &str, value: &str| -> Output {
        let manifest = dir.join("manifest.yaml");
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\ndata: {{value: \"{value}\"}}\n"
        );
        fs::write(&manifest, text).unwrap();
        client(&data, &["apply", "-f", manifest.to_str().unwrap()])
    };
    let applied = apply("before", "1");
    assert!(applied.status.success(), "{applied:?}");

    let mut filler = File::create(data.join("filler")).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while filler.write_all(&vec![1; size]).is_ok() {}
    }
    let large = "x".repeat(100_000);
    let told = loop {
        let output = apply("large", &large);
        if !output.status.success() {
            break String::from_utf8(output.stderr).unwrap();
        }
        // The same again would change nothing.
        let output = apply("large", "none");
        if !output.status.success() {
            break String::from_utf8(output.stderr).unwrap();
        }
    };
    let store = data.join("server/store");
    for part in [store.to_str().unwrap(), "free some space on its disk, and writing resumes by itself"] {
        assert!(told.contains(part), "{told}");
    }
    let read = client(&data, &["get", "configmap", "before"]);
    assert!(read.status.success(), "{read:?}");

    drop(filler);
    fs::remove_file(data.join("filler")).unwrap();
    while !apply("after", "1").status.success() {
        assert_eq!(server.ended().unwrap(), None);
        std::thread::sleep(LOOK);
    }
    let read = client(&data, &["get", "configmap", "after"]);
    assert!(read.status.success(), "{read:?}");
    server.stop().unwrap();
    let checked = client(&data, &["store", "check", data.to_str().unwrap()]);
    assert!(checked.status.success(), "{checked:?}");
    let report = String::from_utf8(checked.stdout).unwrap();
    assert!(report.trim_end().ends_with("no problem found"), "{report}");

    // One that cannot write at all does not start, and says why.
    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(&data).status();
    assert!(remount.unwrap().success());
    let told = format!("{:?}", start("read-only", &["A node joins"]).err().expect("it does not start"));
    assert!(told.contains(data.to_str().unwrap()), "{told}");
    assert!(told.contains("Read-only file system"), "{told}");
}

fn client(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(LICHEN);
    command.args(arguments).env("KUBECONFIG", data.join("admin.kubeconfig")).stdin(Stdio::null());
    command.output().unwrap()
}
