//! The README's first command, as a newcomer runs it: it must end well, and find its state again.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use lichen_firmware_tests::cluster::succeed;

fn demo(data_dir: &Path) -> String {
    let arguments =
        ["demo", "--exit", "--api-addr", "127.0.0.1:0", "--mqtt-addr", "127.0.0.1:0", "--data-dir"];
    let output = Command::new(env!("CARGO_BIN_EXE_lichen")).args(arguments).arg(data_dir).output().unwrap();
    succeed(output, &arguments).unwrap()
}

/// The pods that answered, by name.
fn answering(output: &str) -> BTreeSet<String> {
    let names = output.lines().filter_map(|line| line.split_once(" from ")?.1.split_once(" on "));
    names.map(|(pod, _)| pod.to_owned()).collect()
}

#[test]
fn the_demo_runs_and_finds_the_same_pods_when_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = demo(folder.path());
    assert!(first.contains("From apply to first answer:"), "{first}");
    let pods = answering(&first);
    assert_eq!(pods.len(), 3, "{first}");
    let second = demo(folder.path());
    assert_eq!(answering(&second), pods, "first:\n{first}\nsecond:\n{second}");
}
