//! What lies in a container's directory, so that whoever comes later knows it: the shim, the next agent.
//!
//! Every file is whole or not there, and durable once it is there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::engine::Engine;
use crate::container::Exit;

/// A process, told apart from a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: i32,
    /// When it started, in clock ticks since the boot.
    start_ticks: u64,
    boot_id: String,
}

impl ProcessId {
    /// The process that has this number now.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: start_ticks(pid)?, boot_id: boot_id()? })
    }

    /// The process if it still is; whatever has its number by then is never taken for it.
    pub(super) fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Asked after the opening: what is compared is the process that the descriptor holds, or a later one.
        match Self::of(self.pid) {
            Ok(found) if found == *self => Ok(Some(fd)),
            _ => Ok(None),
        }
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::other("/proc/PID/stat cannot be read"))
}

/// The 22nd field, counted after the program's name, which may hold anything.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// What the agent decided when it created the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Decided {
    pub(super) engine: Engine,
    pub(super) log: PathBuf,
    pub(super) log_bytes_max: u64,
    /// The signal's number.
    pub(super) stop_signal: i32,
}

/// What the shim found once the container was created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) init: ProcessId,
    pub(super) cgroup: Cgroup,
}

/// How the container ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) exit: Exit,
    pub(super) finished: SystemTime,
}

/// A container's directory.
#[derive(Clone, Debug)]
pub(super) struct Dir(pub(super) PathBuf);

/// The records, each with its type.
impl Dir {
    pub(super) const DECIDED: &'static str = "decided.json";
    pub(super) const SHIM: &'static str = "shim.json";
    pub(super) const MADE: &'static str = "made.json";
    /// When the start was asked for.
    pub(super) const STARTED: &'static str = "started.json";
    /// That it was killed because its grace was over.
    pub(super) const KILLED: &'static str = "killed.json";
    pub(super) const ENDED: &'static str = "ended.json";
    /// The process's number, as the engine writes it.
    pub(super) const PID: &'static str = "pid";
    /// What the engine says.
    pub(super) const ENGINE_LOG: &'static str = "engine.log";

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Reads a record; none if it is not there or not to be understood.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path(name)).ok()?).ok()
    }

    pub(super) fn write<T: Serialize>(&self, name: &str, record: &T) -> io::Result<()> {
        write(&self.path(name), &serde_json::to_vec(record)?)
    }
}

/// Writes a file so that it is whole or not there, also after a power cut.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_taken_for_another() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.open().unwrap().is_some());
        let earlier = ProcessId { start_ticks: own.start_ticks - 1, ..own.clone() };
        assert!(earlier.open().unwrap().is_none(), "the number was used before");
        let before_boot = ProcessId { boot_id: "another".to_owned(), ..own };
        assert!(before_boot.open().unwrap().is_none());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let child_id = ProcessId::of(i32::try_from(child.id()).unwrap());
        child.wait().unwrap();
        // It may have been gone before it was looked at; then there is nothing to mistake.
        if let Ok(id) = child_id {
            assert!(id.open().unwrap().is_none());
        }
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for name in ["sh", "a b", "x) S 1 (y", ")"] {
            assert_eq!(parse_start_ticks(&format!("7 ({name}) {fields}")), Some(4242), "{name}");
        }
        assert_eq!(parse_start_ticks("7 (sh) S 1"), None);
    }

    #[test]
    fn records_are_read_back_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir(folder.path().to_owned());
        assert_eq!(dir.read::<Ended>(Dir::ENDED), None);
        let ended = Ended { exit: Exit::Code(3), finished: SystemTime::UNIX_EPOCH };
        dir.write(Dir::ENDED, &ended).unwrap();
        assert_eq!(dir.read(Dir::ENDED), Some(ended));
        fs::write(dir.path(Dir::ENDED), b"{").unwrap();
        assert_eq!(dir.read::<Ended>(Dir::ENDED), None);
    }
}
