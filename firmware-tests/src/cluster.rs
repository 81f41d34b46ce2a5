//! A cluster in a process of its own, as a user starts it: free ports, and a data directory that ends with the test.
//!
//! Clusters of one machine share the loopback addresses that stand for cluster addresses, so a machine runs one at a
//! time: [`Cluster::start`] waits for its turn.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};

static TURN: Mutex<()> = Mutex::new(());
/// What `lichen up` and `lichen server` print when they are ready.
const READY: [&str; 2] = ["To use it:", "A node joins with a token:"];

/// A running cluster. Dropping it ends its process.
pub struct Cluster {
    program: PathBuf,
    process: Child,
    /// The folder with the cluster's state and its `admin.kubeconfig`.
    pub data_dir: PathBuf,
    _folder: Option<tempfile::TempDir>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Runs `program up` with two nodes in a fresh folder and waits until it is ready.
    ///
    /// # Errors
    /// When the process cannot be started, or ends before it is ready.
    pub fn start(program: impl AsRef<Path>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut cluster = Self::start_in(program, folder.path())?;
        cluster._folder = Some(folder);
        Ok(cluster)
    }

    /// The same in a folder that outlives the cluster.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_in(program: impl AsRef<Path>, data_dir: &Path) -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let program = program.as_ref().to_owned();
        let process = launch(&program, data_dir)?;
        Ok(Self { program, process, data_dir: data_dir.into(), _folder: None, _turn: turn })
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir.join("admin.kubeconfig")
    }

    /// Runs `lichen` with the administrator's kubeconfig and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it printed.
    pub fn lichen(&self, arguments: &[&str]) -> Result<String> {
        succeed(self.command(&self.program, arguments).output()?, arguments)
    }

    /// A command that talks to this cluster.
    pub fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null());
        command
    }

    /// Ends the process as a power cut would, and starts it again in the same folder.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = launch(&self.program, &self.data_dir)?;
        Ok(())
    }

    /// Asks the process to end and waits until it has.
    ///
    /// # Errors
    /// When it ends with a failure.
    pub fn stop(mut self) -> Result<()> {
        let id = self.process.id().to_string();
        ensure!(Command::new("kill").args(["-TERM", &id]).status()?.success(), "kill -TERM {id}");
        let status = self.process.wait()?;
        ensure!(status.success(), "the cluster ended with {status}");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended by itself, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a command printed, if it succeeded.
///
/// # Errors
/// With both outputs when it failed.
pub fn succeed(output: Output, arguments: &[&str]) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{arguments:?} ended with {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

fn launch(program: &Path, data_dir: &Path) -> Result<Child> {
    let mut process = Command::new(program)
        .args([
            "up",
            "--api-addr",
            "127.0.0.1:0",
            "--mqtt-addr",
            "127.0.0.1:0",
            "--node",
            "edge-1",
            "--node",
            "edge-2",
        ])
        .arg("--data-dir")
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let output = process.stdout.take().context("the process has an output")?;
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next().transpose()? {
        if READY.iter().any(|ready| line.starts_with(ready)) {
            // Reading on keeps the process from a broken pipe; the thread ends with the process.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(process);
        }
    }
    bail!("the cluster ended before it was ready: {}", process.wait()?)
}
