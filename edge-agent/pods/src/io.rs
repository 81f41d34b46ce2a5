//! What goes into the machine and what comes out of it.

use std::sync::Arc;

use jiff::Timestamp;
use lichen_api::k8s::api::core::v1::{Pod, PodStatus};

/// Something that happened to a pod.
#[derive(Debug, Clone)]
pub enum Input {
    /// The pod as the control plane wants it, new or changed. A deletion timestamp begins the termination.
    Desired(Arc<Pod>),
    /// The control plane no longer knows the pod.
    Removed,
    /// The pod's address and volumes stand.
    SandboxReady {
        /// The pod's cluster address.
        pod_ip: String,
        /// The node's cluster address.
        host_ip: String,
    },
    /// The pod's address or volumes can't be had now. The shell tries again when something that could help
    /// changes, or when the machine asks by [`Command::SetUp`].
    SandboxFailed {
        /// The event's reason, such as `FailedMount`.
        reason: &'static str,
        /// What is missing.
        message: String,
    },
    /// A container's artifact is not on the node and is being fetched.
    Pulling {
        /// The container.
        container: String,
    },
    /// A container's artifact is on the node, verified and ready to start.
    Prepared {
        /// The container.
        container: String,
        /// What `imageID` says.
        image_id: String,
        /// Whether it had to be fetched, and in how many milliseconds; `None` if it was on the node.
        pulled_ms: Option<u64>,
    },
    /// A container's artifact can't be had.
    PrepareFailed {
        /// The container.
        container: String,
        /// What kind of failure.
        failure: ImageFailure,
        /// What went wrong.
        message: String,
    },
    /// A container's environment is resolved.
    ConfigReady {
        /// The container.
        container: String,
    },
    /// A container refers to something that does not exist. The shell sends `ConfigReady` once it does.
    ConfigMissing {
        /// The container.
        container: String,
        /// What is missing.
        message: String,
    },
    /// An attempt runs.
    Started {
        /// The container.
        container: String,
        /// The attempt of the `Start` command.
        attempt: u32,
        /// What `containerID` says.
        container_id: String,
    },
    /// An attempt could not be started.
    StartFailed {
        /// The container.
        container: String,
        /// The attempt of the `Start` command.
        attempt: u32,
        /// Why.
        message: String,
    },
    /// An attempt ended.
    Exited {
        /// The container.
        container: String,
        /// The attempt.
        attempt: u32,
        /// How it ended.
        exit: Exit,
    },
    /// A probe answered.
    Probed {
        /// The container.
        container: String,
        /// The attempt that was probed.
        attempt: u32,
        /// Which probe.
        kind: ProbeKind,
        /// Its failure, if it failed.
        result: Result<(), String>,
    },
    /// Time passed.
    Tick,
    /// The agent started anew: what ran before runs no more, but for the containers that the runtime adopted.
    RuntimeLost {
        /// Names of the containers whose live attempt the runtime still knows. What it knows follows: [`Input::Started`]
        /// if the machine has yet to hear so, [`Input::Exited`] if it ended meanwhile.
        adopted: Vec<String>,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// By itself or by a signal, with a code.
    Code {
        /// The exit code.
        code: i32,
        /// What a user is told beside the code.
        message: Option<String>,
    },
    /// It wanted more memory than its limit.
    OutOfMemory,
    /// It trapped or its host failed it.
    Error {
        /// The exit code to show.
        code: i32,
        /// What happened.
        message: String,
    },
    /// It did not end within its grace and was killed.
    Killed,
}

/// Why an artifact can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFailure {
    /// Fetching failed.
    Pull,
    /// The reference is malformed.
    InvalidName,
    /// The policy is Never and it is not on the node.
    NeverPull,
    /// It was fetched, and this node can't run it.
    Inspect,
    /// This node has no runtime for it.
    NoRuntime,
}

impl ImageFailure {
    /// The waiting reason, as Kubernetes words it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Pull => "ErrImagePull",
            Self::InvalidName => "InvalidImageName",
            Self::NeverPull => "ErrImageNeverPull",
            Self::Inspect => "ImageInspectError",
            Self::NoRuntime => "ErrRuntimeUnavailable",
        }
    }
}

/// When an artifact is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// The reference is resolved anew each time.
    Always,
    /// Only if the node doesn't have it.
    IfNotPresent,
    /// Never.
    Never,
}

/// The three probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Has it come up?
    Startup,
    /// May it get traffic?
    Readiness,
    /// Is it alive?
    Liveness,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeTarget {
    /// A GET that must answer with 200 to 399.
    Http {
        /// Another host than the pod's address.
        host: Option<String>,
        /// The port.
        port: u16,
        /// Path and query.
        path: String,
        /// Whether TLS is spoken.
        tls: bool,
        /// Headers to send.
        headers: Vec<(String, String)>,
    },
    /// A connection that must open.
    Tcp {
        /// Another host than the pod's address.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// Something that this node can't ask; it counts as a failure that says so.
    Unsupported(String),
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Give the pod its address and make its volumes.
    SetUp,
    /// Get a container's artifact onto the node and ready to start.
    Prepare {
        /// The container.
        container: String,
        /// The reference.
        image: String,
        /// When to fetch.
        policy: PullPolicy,
    },
    /// Resolve a container's environment.
    Configure {
        /// The container.
        container: String,
    },
    /// Start an attempt.
    Start {
        /// The container.
        container: String,
        /// Its number; 0 is the first.
        attempt: u32,
    },
    /// Stop an attempt: ask, then kill after the grace.
    Stop {
        /// The container.
        container: String,
        /// The attempt.
        attempt: u32,
        /// The grace.
        grace_s: u32,
    },
    /// Run a probe and answer with [`Input::Probed`] within its time limit.
    Probe {
        /// The container.
        container: String,
        /// The attempt.
        attempt: u32,
        /// Which probe.
        kind: ProbeKind,
        /// What to ask.
        target: ProbeTarget,
        /// Its time limit.
        timeout_s: u32,
    },
    /// The pod's status changed.
    Report(Box<PodStatus>),
    /// Something worth an Event.
    Event(PodEvent),
    /// The pod is finished: its address is free for others. Its volumes and logs stay until it is gone.
    Release,
    /// Nothing of the pod runs any more and it is to be forgotten.
    Gone {
        /// Whether the control plane waits to hear so.
        confirm: bool,
    },
}

/// An Event about a pod or one of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// Its kind.
    pub kind: EventKind,
    /// A CamelCase reason.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
    /// The field path of the container it is about, if it is about one.
    pub field_path: Option<String>,
}

/// An Event's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// All is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

impl EventKind {
    /// The word in an Event's `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What a step leads to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// What is to be done, in this order.
    pub commands: Vec<Command>,
    /// When the machine wants a [`Input::Tick`], unless something happens before.
    pub wake: Option<Timestamp>,
}
