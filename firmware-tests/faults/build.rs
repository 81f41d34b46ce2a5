//! Builds the library that stands before the system's own, for the target of the tests.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=preload.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"));
    let out = PathBuf::from(variable("OUT_DIR")).join("preload.so");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition=2024", "--crate-type=cdylib", "--crate-name=preload", "-Copt-level=2"])
        .args([
            "-Cpanic=abort",
            "-Cstrip=debuginfo",
            "-Dwarnings",
            "--target",
            &variable("TARGET"),
            "preload.rs",
            "-o",
        ])
        .arg(&out)
        .status();
    assert!(status.is_ok_and(|status| status.success()), "preload.rs can't be compiled");
}
