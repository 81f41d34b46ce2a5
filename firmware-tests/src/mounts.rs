//! Tests that mount file systems: each in a mount namespace of its own, which ends with it and takes its mounts along. Or
//! in namespaces for all that a machine has, so that its network and its processes end as well, however it does.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::tools;

/// Tells the test's second process that it is in its namespace, and which folder is its own.
const DIR: &str = "LICHEN_TEST_MOUNTS";

/// What `unshare` is told to make all that a machine has. When it ends, so does everything in them.
const MACHINE: &[&str] = &["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Runs `live` for the test of that name with a folder to mount in. The test's program is started once more for it, in a
/// mount namespace. Where there can be none the test cannot run, see [`tools::missing`].
///
/// # Panics
/// When `live` does, and with `CI=true` where there can be no mount namespace.
pub fn in_own(test: &str, live: impl FnOnce(&Path)) {
    again_in(test, &["--mount"], live);
}

/// The same in namespaces for mounts, network and processes.
///
/// # Panics
/// As [`in_own`].
pub fn in_own_machine(test: &str, live: impl FnOnce(&Path)) {
    again_in(test, MACHINE, live);
}

/// A command that runs a program in namespaces of its own for mounts, network and processes.
pub fn machine(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(MACHINE).arg(program);
    command
}

fn again_in(test: &str, namespaces: &[&str], live: impl FnOnce(&Path)) {
    if let Some(dir) = std::env::var_os(DIR) {
        return live(Path::new(&dir));
    }
    if !available() {
        return tools::missing("a mount namespace takes root's rights and `unshare`");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let own = std::env::current_exe().expect("the test's own program");
    let status = Command::new("unshare")
        .args(namespaces)
        .arg(own)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(DIR, dir.path())
        .status();
    assert!(status.expect("unshare runs").success(), "{test} failed in its mount namespace");
}

/// Whether there can be mount namespaces.
pub fn available() -> bool {
    let tried = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Mounts, with the arguments of `mount`.
///
/// # Panics
/// When it cannot be mounted.
pub fn mount(arguments: &[&str], at: &Path) {
    let status = Command::new("mount").args(arguments).arg(at).status();
    assert!(status.expect("mount runs").success(), "mount {} {}", arguments.join(" "), at.display());
}

/// Unmounts.
///
/// # Panics
/// When it cannot be unmounted.
pub fn unmount(at: &Path) {
    let status = Command::new("umount").arg(at).status();
    assert!(status.expect("umount runs").success(), "umount {}", at.display());
}
