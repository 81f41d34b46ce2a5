//! Machines that are not this one: programs built for them by `firmware-tests/targets.sh`, and emulators that run those.
//!
//! Building for another machine takes minutes, so it happens where it was asked for: by that script, or by `CI=true`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools::missing;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A kind of machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// What `targets.sh` calls it.
    name: &'static str,
    emulator: &'static str,
    /// What stands between the emulator and the program.
    arguments: &'static [&'static str],
}

/// 64-bit ARM with Linux, emulated a process at a time.
pub const ARM64_LINUX: Machine =
    Machine { name: "aarch64", emulator: "qemu-aarch64", arguments: &["-L", "/usr/aarch64-linux-gnu"] };

/// A microcontroller board with a Cortex-M4F. The image's semihosting prints, and gives the exit code.
pub const CORTEX_M4F: Machine = Machine {
    name: "cortex-m",
    emulator: "qemu-system-arm",
    arguments: &[
        "-M",
        "mps2-an386",
        "-cpu",
        "cortex-m4",
        "-nographic",
        "-monitor",
        "none",
        "-serial",
        "none",
        "-semihosting-config",
        "enable=on,target=native",
        "-kernel",
    ],
};

impl Machine {
    /// Builds the programs for this machine and says where they are. `None`, with a reason, where that was not asked for or
    /// the emulator is missing; see [`missing`].
    ///
    /// # Panics
    /// When a program cannot be built.
    pub fn programs(&self) -> Option<Vec<PathBuf>> {
        let asked = |name| std::env::var(name).as_deref() == Ok("true");
        if !asked("CI") && !asked("LICHEN_TARGETS") {
            println!(
                "skipped: run firmware-tests/targets.sh, which builds for {} and runs this test",
                self.name
            );
            return None;
        }
        if let Err(error) = Command::new(self.emulator).arg("--version").output() {
            missing(&format!("{}: {error}; firmware-tests/targets.sh says what to install", self.emulator));
            return None;
        }
        // What cargo says to this test about its own build is not meant for another one.
        let output = Command::new(format!("{ROOT}/firmware-tests/targets.sh"))
            .arg(self.name)
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .expect("a shell runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "targets.sh {}:\n{errors}", self.name);
        Some(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect())
    }

    /// A command that runs a program on this machine.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(self.emulator);
        command.args(self.arguments).arg(program);
        command
    }
}
