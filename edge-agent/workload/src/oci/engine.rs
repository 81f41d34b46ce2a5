//! The OCI runtime's command line: which one, and how it is asked. crun, runc and youki understand the same commands.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::cgroup::{Layout, layout};
use super::record::Dir;
use crate::container::ContainerId;
use crate::runtime::RuntimeError;

/// Where programs are looked for that the path leaves out, as a user's often does with what is for root.
const MORE_PATHS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// An OCI runtime on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Engine {
    program: PathBuf,
    /// Where it keeps what it knows.
    root: PathBuf,
}

/// What an engine says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Engine {
    /// The engine to use here: the one that was chosen, or the first that is installed and can do with this machine's
    /// control groups. The error is what has to be done to the node.
    pub(super) fn detect(chosen: Option<&Path>, root: PathBuf) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("OCI containers need an agent that runs as root".to_owned());
        }
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = match chosen {
            Some(program) if program.is_file() => program.to_owned(),
            Some(program) => return Err(format!("the OCI runtime {} is not there", program.display())),
            None => choose(layout(&mountinfo), &path)?,
        };
        Ok(Self { program, root })
    }

    fn command(&self, log: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg("--log").arg(log).args(["--log-format", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        command
    }

    /// The command that creates a container whose outputs are its own.
    pub(super) fn create(&self, id: &str, dir: &Dir) -> Command {
        let mut command = self.command(&dir.path(Dir::ENGINE_LOG));
        command.arg("create").arg("--bundle").arg(&dir.0).arg("--pid-file").arg(dir.path(Dir::PID)).arg(id);
        command
    }

    pub(super) fn start(&self, id: &ContainerId, dir: &Dir) -> Result<(), RuntimeError> {
        let log = dir.path(Dir::ENGINE_LOG);
        let status = self.command(&log).arg("start").arg(id.as_str()).status();
        match status.map_err(|source| self.io(source))? {
            status if status.success() => Ok(()),
            _ => Err(RuntimeError::InvalidSpec(said(&log))),
        }
    }

    /// What the engine says of the container; none if it knows none of this id.
    pub(super) fn status(&self, id: &ContainerId) -> Result<Option<Status>, RuntimeError> {
        #[derive(Deserialize)]
        struct Reply {
            status: Status,
        }
        let mut command = self.command(Path::new("/dev/null"));
        let output = command.arg("state").arg(id.as_str()).stdout(Stdio::piped()).output();
        let output = output.map_err(|source| self.io(source))?;
        Ok(serde_json::from_slice::<Reply>(&output.stdout).ok().map(|reply| reply.status))
    }

    /// Ends whatever there is of the container and makes the engine forget it.
    pub(super) fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        let status = self.command(Path::new("/dev/null")).args(["delete", "--force", id]).status();
        status.map(drop).map_err(|source| self.io(source))
    }

    /// The command that runs another program in the container.
    pub(super) fn exec(&self, id: &ContainerId, dir: &Dir, program: &[String]) -> Command {
        let mut command = self.command(&dir.path(Dir::ENGINE_LOG));
        command.arg("exec").arg(id.as_str()).args(program);
        command
    }

    fn io(&self, source: std::io::Error) -> RuntimeError {
        RuntimeError::Io { context: format!("running {}", self.program.display()), source }
    }
}

/// The last thing that an engine said in its log, as a sentence.
pub(super) fn said(log: &Path) -> String {
    #[derive(Deserialize)]
    struct Line {
        msg: String,
    }
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<Line>(line).ok());
    last.map_or_else(|| "the OCI runtime failed and did not say why".to_owned(), |line| line.msg)
}

/// The engines that can do with a layout, the smallest first. crun refuses control groups of both versions.
fn engines(layout: Layout) -> &'static [&'static str] {
    match layout {
        Layout::V1 | Layout::V2 => &["crun", "runc", "youki"],
        Layout::Hybrid => &["runc", "youki"],
    }
}

fn choose(layout: Option<Layout>, path: &OsStr) -> Result<PathBuf, String> {
    let Some(layout) = layout else {
        return Err("OCI containers need control groups: mount them at /sys/fs/cgroup".to_owned());
    };
    let dirs: Vec<PathBuf> = std::env::split_paths(path).chain(MORE_PATHS.map(PathBuf::from)).collect();
    let installed = engines(layout).iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    installed.into_iter().find(|program| program.is_file()).ok_or_else(|| {
        let names = engines(layout).join(" or ");
        format!("OCI containers need {names} on the node: install one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_one_that_can_do_with_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["crun", "runc"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let check = |layout: Option<Layout>, expect: Result<&str, &str>| {
            let expect = expect.map(|name| dir.path().join(name)).map_err(str::to_owned);
            assert_eq!(choose(layout, dir.path().as_os_str()), expect, "{layout:?}");
        };
        check(Some(Layout::V2), Ok("crun"));
        check(Some(Layout::V1), Ok("crun"));
        check(Some(Layout::Hybrid), Ok("runc"));
        check(None, Err("OCI containers need control groups: mount them at /sys/fs/cgroup"));
        let chosen = Engine::detect(Some(Path::new("/no/such/engine")), "/root".into());
        if rustix::process::geteuid().is_root() {
            assert_eq!(chosen, Err("the OCI runtime /no/such/engine is not there".to_owned()));
        }
    }

    #[test]
    fn an_engines_last_word_is_what_counts() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let check = |text: &str, expect: &str| {
            fs::write(&log, text).unwrap();
            assert_eq!(said(&log), expect);
        };
        check("{\"level\":\"warning\",\"msg\":\"a\"}\n{\"msg\":\"b\",\"time\":\"t\"}\n", "b");
        check("{\"msg\":\"a\"}\nnonsense", "a");
        check("", "the OCI runtime failed and did not say why");
    }
}
