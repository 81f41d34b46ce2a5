//! The program `lichen-agent`, as whoever starts it by hand or from a service file meets its refusals.

use std::path::Path;
use std::process::Command;

fn refuses(data_dir: &Path, arguments: &[&str], expect: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lichen-agent"));
    let output = command.args(["run", "--data-dir"]).arg(data_dir).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} was taken");
    assert!(error.contains(expect), "{arguments:?}: {expect:?} is missing in {error}");
    assert_eq!(error.lines().count(), 1, "one line says it: {error}");
}

#[test]
fn what_cannot_work_is_refused_at_once_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let server = ["--server", "localhost:8883", "--node-name", "n"];
    let with = |more: &[&'static str]| [&server[..], more].concat();
    refuses(dir, &["--server", "localhost", "--node-name", "n", "--token", "t"], "is not HOST:PORT");
    refuses(
        dir,
        &["--server", "localhost:8883", "--node-name", "N", "--token", "t"],
        "lowercase DNS subdomain",
    );
    refuses(dir, &with(&[]), "start it with a join token");
    refuses(dir, &with(&["--token", "abc"]), "should read <id>.<secret>.<sha256");
    refuses(dir, &with(&["--token-file", "/nowhere/token"]), "/nowhere/token");
    std::fs::write(dir.join("file"), "").unwrap();
    refuses(&dir.join("file"), &with(&["--token", "abc"]), "file");
}
