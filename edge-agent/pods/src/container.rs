//! What is known of one container.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::io::Exit;
use crate::probe::Probes;

/// The exit code of what was killed or lost.
const CODE_KILLED: i32 = 137;
/// The exit code of an attempt that could not be started.
const CODE_START_FAILED: i32 = 128;
/// The longest message that a termination keeps.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What is known of one container. Everything but what is skipped is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container's name.
    pub name: String,
    /// Where it is.
    pub stage: Stage,
    /// How many attempts were started; the number of the next one.
    pub starts: u32,
    /// What `imageID` says, once known.
    pub image_id: Option<String>,
    /// How the attempt before the present one ended.
    pub last: Option<Termination>,
    /// The back-off of restarts.
    pub restart: Backoff,
    /// The back-off of pulls.
    pub pull: Backoff,
    /// Probes of the running attempt.
    #[serde(skip)]
    pub(crate) probes: Probes,
    /// Whether its artifact is ready to start in this run of the agent.
    #[serde(skip)]
    pub(crate) prepared: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It waits for the pod, or for the init containers.
    Waiting,
    /// Its artifact is being fetched and prepared.
    Preparing,
    /// Its artifact can't be had; tried again at `until`.
    ImageFailed {
        /// The waiting reason of the failure.
        reason: String,
        /// What went wrong.
        message: String,
        /// When the failure's own reason gives way to `ImagePullBackOff`, if it does and has not yet.
        shown_until: Option<Timestamp>,
        /// When the next try is.
        until: Timestamp,
    },
    /// Its environment is being resolved.
    Configuring,
    /// Its environment refers to something that does not exist, or it asks for what this node can't do.
    ConfigMissing {
        /// What is missing.
        message: String,
    },
    /// An attempt was told to start.
    Starting {
        /// The attempt.
        attempt: u32,
        /// When.
        at: Timestamp,
    },
    /// An attempt runs.
    Running {
        /// The attempt.
        attempt: u32,
        /// What `containerID` says.
        container_id: String,
        /// Since when.
        started_at: Timestamp,
    },
    /// An attempt was told to stop.
    Stopping {
        /// The attempt.
        attempt: u32,
        /// What `containerID` says.
        container_id: String,
        /// Since when it ran.
        started_at: Timestamp,
    },
    /// It failed and waits for its restart.
    BackOff {
        /// How long the wait is.
        delay_s: u32,
        /// When the restart is.
        until: Timestamp,
    },
    /// It ended and is not restarted.
    Exited(Termination),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// What `containerID` says.
    pub container_id: Option<String>,
    /// The exit code.
    pub exit_code: i32,
    /// The reason, as Kubernetes words it.
    pub reason: String,
    /// What a user is told.
    pub message: Option<String>,
    /// Since when it ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

impl ContainerState {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            stage: Stage::Waiting,
            starts: 0,
            image_id: None,
            last: None,
            restart: Backoff::default(),
            pull: Backoff::default(),
            probes: Probes::default(),
            prepared: false,
        }
    }

    /// The attempt that lives, if one does.
    pub fn live_attempt(&self) -> Option<u32> {
        match self.stage {
            Stage::Starting { attempt, .. }
            | Stage::Running { attempt, .. }
            | Stage::Stopping { attempt, .. } => Some(attempt),
            _ => None,
        }
    }

    /// What `restartCount` says.
    pub fn restarts(&self) -> u32 {
        self.starts.saturating_sub(1)
    }

    /// The termination record of the attempt that lives, were it to end now.
    pub(crate) fn terminate(&self, how: Ending<'_>, now: Timestamp) -> Termination {
        let (container_id, started_at) = match &self.stage {
            Stage::Running { container_id, started_at, .. }
            | Stage::Stopping { container_id, started_at, .. } => {
                (Some(container_id.clone()).filter(|id| !id.is_empty()), Some(*started_at))
            }
            Stage::Starting { at, .. } => (None, Some(*at)),
            _ => (None, None),
        };
        let (exit_code, reason, message) = match how {
            Ending::Exit(Exit::Code { code: 0, message }) => (0, "Completed", message.clone()),
            Ending::Exit(Exit::Code { code, message }) => (*code, "Error", message.clone()),
            Ending::Exit(Exit::OutOfMemory) => (CODE_KILLED, "OOMKilled", None),
            Ending::Exit(Exit::Error { code, message }) => (*code, "Error", Some(message.clone())),
            Ending::Exit(Exit::Killed) => (CODE_KILLED, "Error", None),
            Ending::StartFailed(message) => (CODE_START_FAILED, "StartError", Some(message.to_owned())),
            Ending::Lost => (
                CODE_KILLED,
                "ContainerStatusUnknown",
                Some("the node's agent was restarted, and the container ended with it".to_owned()),
            ),
        };
        let message = message.map(|mut text| {
            let end = (0..=MESSAGE_BYTES_MAX.min(text.len())).rev().find(|i| text.is_char_boundary(*i));
            text.truncate(end.unwrap_or(0));
            text
        });
        Termination {
            container_id,
            exit_code,
            reason: reason.to_owned(),
            message,
            started_at,
            finished_at: now,
        }
    }
}

/// Why an attempt lives no more.
pub(crate) enum Ending<'a> {
    Exit(&'a Exit),
    StartFailed(&'a str),
    Lost,
}
