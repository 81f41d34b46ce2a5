//! A cluster in a process of its own, as a user starts it: free ports, and a data directory that ends with the test.
//!
//! Clusters of one machine share the loopback addresses that stand for cluster addresses, so a machine runs one at a
//! time: [`Cluster::start`] waits for its turn.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};

use crate::process::Process;

static TURN: Mutex<()> = Mutex::new(());
/// What `lichen up` and `lichen server` print when they are ready.
pub const READY: [&str; 2] = ["To use it:", "A node joins with a token:"];

/// A running cluster. Dropping it ends its process.
pub struct Cluster {
    program: PathBuf,
    process: Process,
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
        self.process = launch(&self.program, &self.data_dir)?;
        Ok(())
    }

    /// Asks the process to end and waits until it has.
    ///
    /// # Errors
    /// When it ends with a failure.
    pub fn stop(self) -> Result<()> {
        self.process.stop()
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

fn launch(program: &Path, data_dir: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(["up", "--api-addr", "127.0.0.1:0", "--mqtt-addr", "127.0.0.1:0"]);
    command.args(["--node", "edge-1", "--node", "edge-2", "--data-dir"]).arg(data_dir);
    Process::start("cluster", command, data_dir, &READY)
}
