//! Tests that mount file systems: each in a mount namespace of its own, which ends with it and takes its mounts along.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::tools;

/// Tells the test's second process that it is in its namespace, and which folder is its own.
const DIR: &str = "LICHEN_TEST_MOUNTS";

/// Runs `live` for the test of that name with a folder to mount in. The test's program is started once more for it, in a
/// mount namespace. Where there can be none the test cannot run, see [`tools::missing`].
///
/// # Panics
/// When `live` does, and with `CI=true` where there can be no mount namespace.
pub fn in_own(test: &str, live: impl FnOnce(&Path)) {
    if let Some(dir) = std::env::var_os(DIR) {
        return live(Path::new(&dir));
    }
    if !available() {
        return tools::missing("a mount namespace takes root's rights and `unshare`");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let own = std::env::current_exe().expect("the test's own program");
    let status = Command::new("unshare")
        .arg("--mount")
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
