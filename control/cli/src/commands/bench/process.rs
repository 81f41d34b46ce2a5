//! What a process costs, as the kernel accounts for it.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Clock ticks a second of `/proc/PID/stat`; 100 on every Linux that Lichen runs on (`getconf CLK_TCK`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A program under measurement. Dropping it ends it.
pub(super) struct Process {
    child: Child,
    id: u32,
}

impl Process {
    /// Starts this program with arguments and waits for a line of its output that begins with `ready`.
    pub(super) async fn start(arguments: &[String], ready: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let id = child.id().context("the process has ended")?;
        let mut lines = BufReader::new(child.stdout.take().context("the process has an output")?).lines();
        while let Some(line) = lines.next_line().await? {
            if line.starts_with(ready) {
                // Reading on keeps the process from a broken pipe.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok(Self { child, id });
            }
        }
        bail!("{arguments:?} ended before it was ready: {}", child.wait().await?)
    }

    /// Starts another program, which says nothing when it is ready.
    pub(super) fn spawn(program: &Path, arguments: &[&OsStr]) -> Result<Self> {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let id = child.id().context("the process has ended")?;
        Ok(Self { child, id })
    }

    /// What it has used so far.
    pub(super) fn usage(&self) -> Result<Usage> {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.id);
            fs::read_to_string(&path).with_context(|| path)
        };
        let stat = read("stat")?;
        // The second field is a name in brackets that may hold anything; fields 14 and 15 are user and system time.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        let memory = read("smaps_rollup")?;
        Ok(Usage {
            cpu: Duration::from_secs_f64((ticks(11) + ticks(12)) / TICKS_PER_SECOND),
            pss_bytes: field(&memory, "Pss:") * 1024,
            resident_bytes: field(&memory, "Rss:") * 1024,
            written_bytes: field(&read("io")?, "write_bytes:"),
        })
    }

    /// Kills it and waits until it has.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}

/// What a process has used.
#[derive(Clone, Copy)]
pub(super) struct Usage {
    /// Processor time of all its threads.
    pub(super) cpu: Duration,
    /// Proportional set size now.
    pub(super) pss_bytes: u64,
    /// Resident set size now.
    pub(super) resident_bytes: u64,
    /// Bytes it has caused to be written to storage.
    pub(super) written_bytes: u64,
}

/// The number after a name in a file of `name value` lines.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        assert_eq!(field("Rss:  9 kB\nPss:       1234 kB\n", "Pss:"), 1234);
        assert_eq!(field("", "Pss:"), 0);
    }
}
