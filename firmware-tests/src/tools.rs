//! Programs that a test needs and a machine may lack.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The version of kubectl whose behaviour the tests compare with.
pub const KUBECTL_MINOR: &str = "v1.36.";

/// Finds the kubectl to test with: `LICHEN_KUBECTL`, else the one on the path, of the version that Lichen speaks.
///
/// Where there is none the test cannot run, see [`missing`].
///
/// # Panics
/// With `CI=true` and no such kubectl.
pub fn kubectl() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("LICHEN_KUBECTL").unwrap_or_else(|| "kubectl".into()));
    let version = Command::new(&path).args(["version", "--client"]).output();
    let reason = match version {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains(KUBECTL_MINOR) => return Some(path),
        Ok(_) => format!("{} is not kubectl {KUBECTL_MINOR}x", path.display()),
        Err(error) => format!("{}: {error}", path.display()),
    };
    missing(&format!("{reason}; install kubectl {KUBECTL_MINOR}x or name it in LICHEN_KUBECTL"));
    None
}

/// Says that a test does not run, and why.
///
/// # Panics
/// With `CI=true`: there every test runs.
pub fn missing(reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have what every test needs: {reason}");
    println!("skipped: {reason}");
}

/// A program that stands beside another one, as the build puts all of them in one folder.
///
/// # Panics
/// When it has not been built: a test of the whole workspace builds it.
pub fn beside(program: &str, name: &str) -> PathBuf {
    let path = Path::new(program).with_file_name(name);
    assert!(path.exists(), "{} is not built: run cargo build --workspace first", path.display());
    path
}

/// Where a program is that is named by its path, or by a name to be looked for on the path.
///
/// # Panics
/// When it is not there.
pub fn on_path(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{} is not on the path", program.display()))
}

/// Writes an executable script.
///
/// # Panics
/// When it cannot be written.
pub fn script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("the script is written");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("the script is made executable");
}
