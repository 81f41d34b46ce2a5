//! The pod lifecycle machine, pure.
//!
//! [`PodMachine`] is one pod on one node: `step(input, now)` takes what happened and answers with what is to be
//! done ([`Command`]) and when to be asked again. It does no I/O and reads no clock.
//!
//! Invariants, each with a property test:
//! - a container's attempt is started at most once, across restarts of the agent too: the shell makes
//!   [`PodState`] durable before it carries out the commands of a step;
//! - a container is started only after its artifact was prepared and its configuration resolved, and never
//!   while an earlier attempt of it lives;
//! - init containers run one after the other, and before the others;
//! - Succeeded and Failed are final, and nothing starts once a pod is terminating;
//! - [`Command::Gone`] comes once, last, when nothing of the pod runs any more; once more if the agent restarts before the
//!   shell has forgotten the pod.
//!
//! Deliberately absent: lifecycle hooks, restartable init containers (they wait with a reason), ephemeral
//! containers, active deadlines, and in-place changes of a container's image or resources.

mod attempt;
mod backoff;
mod container;
mod io;
mod machine;
mod probe;
mod state;
mod status;

pub use backoff::Backoff;
pub use container::{ContainerState, Stage, Termination};
pub use io::{
    Command, EventKind, Exit, ImageFailure, Input, Output, PodEvent, ProbeKind, ProbeTarget, PullPolicy,
};
pub use machine::PodMachine;
pub use state::{Life, PodState, Sandbox, Terminating};
