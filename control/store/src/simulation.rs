//! What the simulation plays members on, beside a [`Volume`](crate::Volume) and a [`Network`](crate::Network) of its own:
//! processes that can be killed, paused and slowed, and bugs that it can plant. In no build but the tests'.
//!
//! A member is opened and called within its [`Process`]; the tasks that it and raft start belong to that process, too.
//! All chance comes from the process' own dice, and a paused clock tells the time: so the same seed is the same run.

pub mod plant;
mod process;
mod runtime;
mod watching;

pub use crate::raft::LogBounds;
pub use process::Process;
pub(crate) use runtime::Runtime;
