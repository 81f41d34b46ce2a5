//! A member's disk: a file system in a file, which can be full, and which a library that is loaded before the system's own
//! makes slow or failing to the server alone. The same library puts its clock wrong.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use lichen_firmware_tests::cluster::succeed;
use lichen_firmware_tests::mounts;

/// How large a disk is.
const DISK_BYTES: u64 = 256 << 20;
/// What fills it.
const FILLER: &str = "filler";
/// The library, as `build.rs` built it of `preload.rs`.
const PRELOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));
/// Where the library looks for the levels.
const LEVELS: &str = "LICHEN_FAULTS_LEVELS";

/// What a server is made to believe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Levels {
    /// For how many milliseconds what makes something durable takes longer.
    pub(crate) sync_ms: u64,
    /// How many writes and syncs succeed until some fail.
    pub(crate) fail_after: u64,
    /// How many fail.
    pub(crate) fail_count: u64,
    /// By how many seconds its clock is wrong.
    pub(crate) clock_seconds: i64,
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sync_ms, fail_after, fail_count, clock_seconds } = *self;
        match (sync_ms, fail_count, clock_seconds) {
            (0, 0, seconds) => write!(f, "{seconds:+} s"),
            (0, count, _) => write!(f, "{count} errors after {fail_after} writes and syncs"),
            (sync_ms, ..) => write!(f, "{sync_ms} ms a sync"),
        }
    }
}

/// Why there can be no disks on this machine, if so.
pub(crate) fn unavailable() -> Option<&'static str> {
    let runs = |program: &str, argument: &str| {
        Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
    };
    let there = runs("mkfs.ext4", "-V") && runs("losetup", "--find") && runs("fallocate", "--version");
    (!there).then_some("a file system in a file takes mkfs.ext4, losetup, fallocate and a loop device")
}

/// A disk.
pub(crate) struct Disk {
    /// Where it is mounted.
    pub(crate) data: PathBuf,
    library: PathBuf,
    levels: PathBuf,
}

impl Disk {
    /// Makes a disk and mounts it.
    pub(crate) fn make(dir: &Path, name: &str) -> Result<Self> {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let disk = Self { data: dir.join(name), library: file("preload.so"), levels: file("levels") };
        let image = file("disk");
        File::create(&image)?.set_len(DISK_BYTES)?;
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).output().context("mkfs.ext4")?;
        succeed(made, &["mkfs.ext4"])?;
        fs::create_dir(&disk.data)?;
        mounts::mount(&["-o", "loop", &image.to_string_lossy()], &disk.data);
        fs::write(&disk.library, PRELOAD)?;
        File::create(&disk.levels)?.set_len(u64::try_from(size_of::<Levels>())?)?;
        disk.set(&Levels::default())?;
        Ok(disk)
    }

    /// Makes a command believe what is set here.
    pub(crate) fn deceive<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_PRELOAD", &self.library).env(LEVELS, &self.levels)
    }

    /// Sets what a server believes from now on.
    pub(crate) fn set(&self, levels: &Levels) -> Result<()> {
        let Levels { sync_ms, fail_after, fail_count, clock_seconds } = levels;
        let file = File::options().write(true).open(&self.levels)?;
        let numbers = [sync_ms.to_ne_bytes(), fail_after.to_ne_bytes(), fail_count.to_ne_bytes()];
        let bytes = [numbers.concat(), clock_seconds.to_ne_bytes().to_vec()].concat();
        Ok(file.write_all_at(&bytes, 0)?)
    }

    /// Takes all the space that is left.
    pub(crate) fn fill(&self) -> Result<()> {
        let path = self.data.join(FILLER);
        let mut file = File::options().create(true).append(true).open(&path)?;
        let mut size = DISK_BYTES;
        while size >= 1 << 12 {
            let offset = file.metadata()?.len().to_string();
            let mut fallocate = Command::new("fallocate");
            fallocate.args(["--offset", &offset, "--length", &size.to_string()]).arg(&path);
            if !fallocate.output().context("fallocate")?.status.success() {
                size /= 2;
            }
        }
        // Whatever can't be allocated in whole blocks.
        while file.write_all(&[1; 512]).is_ok() {}
        Ok(())
    }

    /// Gives it back.
    pub(crate) fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.data.join(FILLER))?)
    }

    /// Removes everything.
    pub(crate) fn wipe(&self) -> Result<()> {
        for entry in fs::read_dir(&self.data)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}
