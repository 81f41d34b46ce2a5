//! What is secret stands in no file of a server, and nobody without the key makes it serve.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use lichen_firmware_tests::process::Process;

const LICHEN: &str = env!("CARGO_BIN_EXE_lichen");
const VALUE: &str = "correct-horse-battery-staple";
/// The same, as a Secret's `data` has it.
const ENCODED: &str = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==";

fn lichen(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(LICHEN);
    command.args(arguments).env("KUBECONFIG", data.join("admin.kubeconfig")).stdin(Stdio::null());
    command.output().unwrap()
}

fn succeed(data: &Path, arguments: &[&str]) -> String {
    let output = lichen(data, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Fails if a file of the store tells the secret.
fn keeps_silent(store: &Path) {
    for file in fs::read_dir(store).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        for text in [VALUE, ENCODED] {
            let told = bytes.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!told, "{} tells it", path.display());
        }
    }
}

#[test]
fn a_secret_stands_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let start = |name: &str, more: &[&str]| {
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut command = Command::new(LICHEN);
        command
            .args(["server", "--api-addr", &port(), "--mqtt-addr", &port(), "--data-dir"])
            .arg(&data)
            .args(more);
        Process::start(name, command, dir.path(), &["A node joins"])
    };
    let store = data.join("server/store");
    let manifest = dir.path().join("secret.yaml");
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: default}}\nstringData: {{word: {VALUE}}}\n"
    );
    fs::write(&manifest, text).unwrap();
    let read = || {
        let object = succeed(&data, &["get", "secret", "s", "-o", "json"]);
        assert!(object.contains(ENCODED), "{object}");
    };

    let mut server = start("first", &[]).unwrap();
    succeed(&data, &["apply", "-f", manifest.to_str().unwrap()]);
    keeps_silent(&store);
    server.kill().unwrap();
    keeps_silent(&store);
    let server = start("again", &[]).unwrap();
    read();
    succeed(&data, &["secrets", "rotate-key"]);
    read();
    server.stop().unwrap();
    keeps_silent(&store);

    // Another key in its place: the server from now on starts with that one alone.
    let (old, new) = (data.join("server/encryption.key"), dir.path().join("new.key"));
    fs::write(&new, format!("{}\n", "5c".repeat(32))).unwrap();
    let (from, to) = (old.to_str().unwrap(), new.to_str().unwrap());
    succeed(&data, &["store", "rekey", data.to_str().unwrap(), "--old-key-file", from, "--new-key-file", to]);
    let told = format!("{:?}", start("old key", &[]).err().expect("it does not start"));
    assert!(told.contains("was encrypted with another encryption key"), "{told}");
    let kept = dir.path().join("kept.key");
    fs::rename(&old, kept).unwrap();
    let told = format!("{:?}", start("no key", &[]).err().expect("it does not start"));
    assert!(told.contains("is missing") && told.contains(from), "{told}");
    assert!(!old.exists(), "no other key was made in its place");
    let server = start("new key", &["--encryption-key-file", to]).unwrap();
    read();
    server.stop().unwrap();
    let check = ["store", "check", data.to_str().unwrap(), "--encryption-key-file", to];
    assert!(succeed(&data, &check).trim_end().ends_with("no problem found"));
}
