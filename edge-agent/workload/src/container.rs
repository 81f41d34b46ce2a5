//! The values a [`Runtime`](crate::Runtime) is asked with and answers with.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The longest id a runtime accepts, in bytes. It fits a file name with room for a suffix.
pub const CONTAINER_ID_BYTES_MAX: usize = 200;

/// The id of one attempt to run one container of one pod. The caller chooses it; a runtime never reuses one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// Why a text is no container id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a container id is 1 to {CONTAINER_ID_BYTES_MAX} of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, and starts with a letter or digit"
)]
pub struct InvalidId;

impl ContainerId {
    /// Takes an id that is safe as a file name.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidId> {
        let id = id.into();
        let starts_well = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if starts_well && id.len() <= CONTAINER_ID_BYTES_MAX && id.bytes().all(allowed) {
            Ok(Self(id))
        } else {
            Err(InvalidId)
        }
    }

    /// The id of an attempt: `<pod uid>_<container>_<attempt>`.
    pub fn of_attempt(pod_uid: &str, container: &str, attempt: u32) -> Result<Self, InvalidId> {
        Self::new(format!("{pod_uid}_{container}_{attempt}"))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = InvalidId;

    fn try_from(id: String) -> Result<Self, InvalidId> {
        Self::new(id)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

/// What a container is started from: already on this node's disk, and already verified against its digest and signature.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Artifact {
    /// A component compiled for this node's profile. Loading it runs machine code: only pass a file whose signature holds.
    Component {
        /// The `.cwasm` file.
        path: PathBuf,
        /// The digest of the file's bytes, `sha256:<hex>`: the key under which a loaded component is shared.
        digest: String,
    },
    /// An OCI image.
    Image {
        /// The directory into which [`oci::image`](crate::oci::image) unpacked it. Containers share it and never write to it.
        path: PathBuf,
    },
}

impl Artifact {
    /// The runtime that it is for.
    pub fn handler(&self) -> Handler {
        match self {
            Self::Component { .. } => Handler::Wasm,
            Self::Image { .. } => Handler::Oci,
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        match self {
            Self::Component { path, .. } | Self::Image { path } => path,
        }
    }
}

/// What runs an artifact, by the name that a RuntimeClass and a `containerID` have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Handler {
    /// Components, in the agent's own process.
    Wasm,
    /// OCI images, as processes that outlive the agent.
    Oci,
}

impl Handler {
    /// Its name: `wasm`, `oci`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wasm => "wasm",
            Self::Oci => "oci",
        }
    }
}

/// A directory or file of the node that the container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The directory or file on the node. A component can be given directories only.
    pub host: PathBuf,
    /// The absolute path inside the container.
    pub guest: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What a container may use at most. Absent means the runtime's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes. Going beyond it ends the container with [`Exit::OutOfMemory`].
    pub memory_bytes: Option<u64>,
    /// CPU in thousandths of a core.
    pub cpu_millis: Option<u32>,
}

/// What only a process has. A component knows none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Where it starts; the image's directory if absent.
    pub working_dir: Option<String>,
    /// The name that the machine has inside.
    pub hostname: String,
    /// As whom it runs; the image's user if absent.
    pub user: Option<u32>,
    /// With which group.
    pub group: Option<u32>,
    /// With which groups beside that one.
    pub groups: Vec<u32>,
    /// Its capabilities, such as `NET_BIND_SERVICE`. It has no others.
    pub capabilities: Vec<String>,
    /// Whether a program that it starts may give it more privileges than it has, as setuid does.
    pub may_gain_privileges: bool,
    /// Whether it must not run as root; it is refused then if it would.
    pub not_root: bool,
    /// Whether it can't write to its root.
    pub read_only_root: bool,
    /// Whether it uses the node's network. Otherwise it has a loopback interface of its own and nothing else.
    pub host_network: bool,
}

/// Everything a runtime needs to start one attempt of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Chosen by the caller, never used again.
    pub id: ContainerId,
    /// What to run.
    pub artifact: Artifact,
    /// The program and its first arguments. Empty leaves what the image says; a component has one program, so of these
    /// only what follows its name counts.
    pub command: Vec<String>,
    /// The arguments after those. Empty with an empty command leaves what the image says.
    pub args: Vec<String>,
    /// The environment, in order; a later value of a name wins.
    pub env: Vec<(String, String)>,
    /// What the container sees of the node's files.
    pub mounts: Vec<Mount>,
    /// What it may use.
    pub limits: Limits,
    /// What only a process has.
    pub process: Process,
    /// Where the runtime serves for a container that exports a request handler instead of opening sockets (`wasi:http`).
    /// Others ignore it.
    pub serve: Vec<SocketAddr>,
    /// The file that stdout and stderr go to, in the CRI line format. Its directory exists.
    pub log: PathBuf,
}

impl ContainerSpec {
    /// A container that is told nothing and may use what the runtime gives by default.
    pub fn new(id: ContainerId, artifact: Artifact, log: impl Into<PathBuf>) -> Self {
        Self {
            id,
            artifact,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            limits: Limits::default(),
            process: Process::default(),
            serve: Vec::new(),
            log: log.into(),
        }
    }
}

/// How a container ended. Each start has exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It returned or exited by itself.
    Code(i32),
    /// A process was ended by a signal it did not get from us.
    Signal(i32),
    /// A component broke a rule of its machine (unreachable, out of bounds, ...). The text says which.
    Trap(String),
    /// It asked for more memory than its limit.
    OutOfMemory,
    /// It was stopped and had not ended when its grace was over.
    Killed,
    /// Nobody can say: whoever watched it is gone, as a component is whose agent died.
    Lost,
}

impl Exit {
    /// The number Kubernetes shows: 128 + signal where there is no code of its own.
    pub fn code(&self) -> i32 {
        match self {
            Self::Code(code) => *code,
            Self::Signal(signal) => 128 + signal,
            Self::Trap(_) => 134,
            Self::OutOfMemory | Self::Killed | Self::Lost => 137,
        }
    }

    /// The reason Kubernetes shows.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Code(0) => "Completed",
            Self::Code(_) | Self::Signal(_) | Self::Trap(_) | Self::Killed => "Error",
            Self::OutOfMemory => "OOMKilled",
            Self::Lost => "ContainerStatusUnknown",
        }
    }

    /// A sentence for the container's status, where there is more to say than the code.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Code(_) => None,
            Self::Signal(signal) => Some(format!("ended by signal {signal}")),
            Self::Trap(trap) => Some(trap.clone()),
            Self::OutOfMemory => Some("asked for more memory than its limit".to_owned()),
            Self::Killed => Some("did not end within its grace period".to_owned()),
            Self::Lost => Some("the agent that ran it is gone".to_owned()),
        }
    }

    /// Whether it ended well.
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

/// Where a container is in its one life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Checked and set up, not started.
    Created,
    /// Started.
    Running {
        /// When it started.
        started: SystemTime,
    },
    /// Ended. It stays known until it is removed.
    Exited {
        /// When it started; a container whose start failed never did.
        started: SystemTime,
        /// When it ended.
        finished: SystemTime,
        /// How.
        exit: Exit,
    },
}

impl State {
    /// Its name in messages: `created`, `running`, `exited`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
        }
    }
}

/// A change of a container's state that nobody asked for at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The container runs.
    Started {
        /// Which.
        id: ContainerId,
    },
    /// The container ended, by itself or because it was stopped.
    Exited {
        /// Which.
        id: ContainerId,
        /// How.
        exit: Exit,
    },
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory in use now, in bytes. For a component: its linear memories.
    pub memory_bytes: u64,
    /// The most it ever used, in bytes.
    pub memory_peak_bytes: u64,
    /// CPU time since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Requests served by the runtime on its behalf.
    pub requests: u64,
}
