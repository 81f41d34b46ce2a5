//! What stands between a container and the agents that come and go: one small process a container.
//!
//! It creates the container through the engine and becomes the parent of its process, holds the other ends of its outputs and
//! writes what comes out of them to the log, and in the end writes down how it ended. An agent that dies takes nothing with
//! it: neither the shim nor the container hold anything of the agent's, and what the shim knows lies in files.
//!
//! It is the agent's own program under another command, one thread, no runtime. Whoever stops the agent must leave it alone:
//! a service manager that ends all of a service's processes (systemd's `KillMode=control-group`) ends containers too.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use lichen_runtime::Lines;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, set_child_subreaper, setsid, waitpid,
};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::engine::said;
use super::record::{Decided, Dir, Ended, Made, ProcessId};
use crate::container::Exit;
use crate::logs::{Disk, LogLimits, LogLine, Stream};

/// How much is read from an output at once.
const READ_BYTES: usize = 64 * 1024;
/// How long an output may stay open after the container's end: a process of it is all that could hold it, and those end
/// with the first.
const DRAIN: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// What the shim tells the agent that started it, once, as a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Told {
    /// The container is created.
    Created,
    /// It can't be.
    Failed(String),
}

/// Runs the shim of the container whose directory is given. It returns when the container has ended.
///
/// # Errors
/// When the container cannot be created, which the agent was told then, or its end not written down.
pub fn run(dir: &Path) -> io::Result<()> {
    let dir = Dir(dir.to_owned());
    match create(&dir) {
        Ok(container) => {
            tell(&Told::Created);
            container.attend(&dir)
        }
        Err(why) => {
            tell(&Told::Failed(why.clone()));
            Err(io::Error::other(why))
        }
    }
}

fn tell(told: &Told) {
    // An agent that is gone meanwhile finds out by the files.
    let text = serde_json::to_string(told).unwrap_or_default();
    let _ = writeln!(io::stdout().lock(), "{text}");
}

struct Container {
    decided: Decided,
    pid: Pid,
    /// Becomes readable when the process ends.
    process: OwnedFd,
    made: Made,
    disk: Disk,
    outputs: Vec<Output>,
}

struct Output {
    stream: Stream,
    pipe: PipeReader,
    lines: Lines,
}

fn create(dir: &Dir) -> Result<Container, String> {
    let said_by = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    // A session of its own: a terminal's signals are the agent's.
    setsid().map_err(io::Error::from).map_err(said_by("leaving the agent's session"))?;
    set_child_subreaper(Pid::from_raw(1))
        .map_err(io::Error::from)
        .map_err(said_by("becoming a subreaper"))?;
    let own = i32::try_from(std::process::id()).map_err(|error| error.to_string())?;
    let own = ProcessId::of(own).map_err(said_by("looking at the shim itself"))?;
    dir.write(Dir::SHIM, &own).map_err(said_by("writing down who the shim is"))?;
    let decided: Decided = dir.read(Dir::DECIDED).ok_or("the container's directory holds no decision")?;
    let id = dir.0.file_name().and_then(|name| name.to_str()).ok_or("the directory has no name")?.to_owned();
    let limits = LogLimits { bytes_max: decided.log_bytes_max };
    let disk = Disk::open(&decided.log, limits).map_err(said_by("opening the log"))?;
    let mut outputs = Vec::new();
    let mut ends = Vec::new();
    for stream in [Stream::Stdout, Stream::Stderr] {
        let (pipe, end) = io::pipe().map_err(said_by("making a pipe"))?;
        outputs.push(Output { stream, pipe, lines: Lines::default() });
        ends.push(end);
    }
    let (stderr, stdout) = (ends.pop(), ends.pop());
    let mut command = decided.engine.create(&id, dir);
    if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
        command.stdout(stdout).stderr(stderr);
    }
    let status = command.status().map_err(said_by("running the OCI runtime"))?;
    // Only the container holds the other ends from here on.
    drop(command);
    if !status.success() {
        return Err(said(&dir.path(Dir::ENGINE_LOG)));
    }
    let pid = std::fs::read_to_string(dir.path(Dir::PID)).map_err(said_by("reading the process's number"))?;
    let raw: i32 = pid.trim().parse().map_err(|_| format!("{pid:?} is no process's number"))?;
    let pid = Pid::from_raw(raw).ok_or("a process has no number")?;
    // It is a child of this process, so its number is its own until it is waited for.
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from);
    let process = process.map_err(said_by("holding the process"))?;
    let init = ProcessId::of(raw).map_err(said_by("looking at the process"))?;
    let cgroup = Cgroup::of(raw).map_err(said_by("looking for the process's control groups"))?;
    let made = Made { init, cgroup };
    dir.write(Dir::MADE, &made).map_err(said_by("writing down what was made"))?;
    Ok(Container { decided, pid, process, made, disk, outputs })
}

impl Container {
    /// Writes the log until the container has ended, then says how it did.
    fn attend(mut self, dir: &Dir) -> io::Result<()> {
        let mut ended = false;
        while !ended || !self.outputs.is_empty() {
            let mut fds = vec![PollFd::new(&self.process, PollFlags::IN)];
            fds.extend(self.outputs.iter().map(|output| PollFd::new(&output.pipe, PollFlags::IN)));
            if ended {
                fds.remove(0);
            }
            match poll(&mut fds, ended.then_some(&DRAIN)) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let (process, outputs) = if ended { (false, &ready[..]) } else { (ready[0], &ready[1..]) };
            ended |= process;
            for index in (0..outputs.len()).rev().filter(|index| outputs[*index]) {
                if !self.read(index) {
                    self.outputs.remove(index);
                }
            }
        }
        for index in 0..self.outputs.len() {
            self.finish(index);
        }
        let status = loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.ok().flatten(),
            }
        };
        let killed = dir.has(Dir::KILLED);
        let exit = exit(status.map(|(_, status)| status), self.made.cgroup.oom_kills(), killed);
        // What the engine keeps of it stays until the container is removed: its start may not have returned yet.
        dir.write(Dir::ENDED, &Ended { exit, finished: SystemTime::now() })
    }

    /// Takes what an output holds; false at its end.
    fn read(&mut self, index: usize) -> bool {
        let mut buffer = vec![0; READ_BYTES];
        match self.outputs[index].pipe.read(&mut buffer) {
            Ok(0) => {
                self.finish(index);
                false
            }
            Ok(count) => {
                let output = &mut self.outputs[index];
                let (stream, mut entries) = (output.stream, Vec::new());
                output.lines.push(&buffer[..count], |text, partial| {
                    LogLine { time: SystemTime::now(), stream, partial, text }.encode(&mut entries);
                });
                self.write(&entries);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(_) => false,
        }
    }

    fn finish(&mut self, index: usize) {
        let output = &mut self.outputs[index];
        let (stream, mut entries) = (output.stream, Vec::new());
        output.lines.finish(|text, partial| {
            LogLine { time: SystemTime::now(), stream, partial, text }.encode(&mut entries);
        });
        self.write(&entries);
    }

    fn write(&mut self, entries: &[u8]) {
        if !entries.is_empty()
            && let Err(error) = self.disk.append(&self.decided.log, entries)
        {
            // A full disk must not stop the container. What it printed meanwhile is lost, and said to be.
            eprintln!("{}: {error}: {} bytes are lost", self.decided.log.display(), entries.len());
        }
    }
}

/// How the process ended, in the words of all runtimes.
fn exit(status: Option<WaitStatus>, oom_kills: u64, killed: bool) -> Exit {
    const SIGKILL: i32 = 9;
    let Some(status) = status else { return Exit::Lost };
    match (status.exit_status(), status.terminating_signal()) {
        // A shell says with this code that what it ran was killed.
        (Some(code), _) if oom_kills > 0 && code == 128 + SIGKILL => Exit::OutOfMemory,
        (Some(code), _) => Exit::Code(code),
        (None, Some(SIGKILL)) if oom_kills > 0 => Exit::OutOfMemory,
        (None, Some(SIGKILL)) if killed => Exit::Killed,
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Lost,
    }
}

/// Starts the shim of a container; the answer is its process, with the container created.
pub(super) fn spawn(program: &[std::ffi::OsString], dir: &Dir) -> Result<std::process::Child, SpawnError> {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    let (path, arguments) = program.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
    let log = File::create(dir.path("shim.log"))?;
    let mut shim = Command::new(path)
        .arg0("lichen-oci-shim")
        .args(arguments)
        .arg(&dir.0)
        // The agent's environment may hold secrets. The engine needs to find its own helpers only.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    match hear(&mut shim) {
        Ok(Told::Created) => Ok(shim),
        told => {
            // It ends by itself when it failed; a shim that says nothing is not waited for.
            let _ = shim.kill();
            let _ = shim.wait();
            match told {
                Ok(Told::Failed(why)) => Err(SpawnError::Refused(why)),
                Err(error) => Err(error.into()),
                Ok(Told::Created) => Ok(shim),
            }
        }
    }
}

/// Why no container was created.
pub(super) enum SpawnError {
    /// The engine refused it.
    Refused(String),
    /// The shim could not be run, or did not answer.
    Io(io::Error),
}

impl From<io::Error> for SpawnError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How long a container's creation may take.
const CREATE_MAX: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

fn hear(shim: &mut std::process::Child) -> io::Result<Told> {
    let Some(mut stdout) = shim.stdout.take() else { return Err(io::Error::other("it has no output")) };
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !text.ends_with(b"\n") {
        let mut fds = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&CREATE_MAX)) {
            Ok(0) => return Err(io::Error::other("the container was not created in time")),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match stdout.read(&mut buffer)? {
            0 => return Err(io::Error::other("the shim ended before it said anything")),
            count => text.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let status = |script: &str| {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = Pid::from_child(&child);
            let status = waitpid(Some(pid), WaitOptions::empty()).unwrap().map(|(_, status)| status);
            // It was waited for above; this only says so to the library.
            let _ = child.wait();
            status
        };
        let check = |script: &str, oom_kills: u64, killed: bool, expect: Exit| {
            assert_eq!(exit(status(script), oom_kills, killed), expect, "{script} {oom_kills} {killed}");
        };
        check("exit 0", 0, false, Exit::Code(0));
        check("exit 3", 1, true, Exit::Code(3));
        check("exit 137", 1, false, Exit::OutOfMemory);
        check("kill -9 $$", 1, true, Exit::OutOfMemory);
        check("kill -9 $$", 0, true, Exit::Killed);
        check("kill -9 $$", 0, false, Exit::Signal(9));
        check("kill -15 $$", 0, true, Exit::Signal(15));
        assert_eq!(exit(None, 0, false), Exit::Lost);
        // The signal's number is the system's own.
        let by_std = Command::new("sh").args(["-c", "kill -15 $$"]).status().unwrap();
        assert_eq!(by_std.signal(), Some(15));
    }
}
