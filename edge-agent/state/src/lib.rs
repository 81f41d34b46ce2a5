//! The node's checkpoint: what it must still know after a crash, a reboot, or a year without its control plane.
//!
//! A [`Checkpoint`] is one redb file with a format version, beside a key file that only its owner reads. The
//! identity and the bodies of Secrets are sealed under that key, so that a copy of the checkpoint alone gives
//! nothing away.
//!
//! Invariants: a [`Checkpoint::commit`] is atomic and durable when it returns; one that changes nothing writes
//! nothing; a file that is damaged, of a newer version, in use, or without its key is refused with an error
//! that says so, and is left as it is.
//!
//! Deliberately absent: what pods, objects and addresses mean; anything that can be computed again.

mod checkpoint;
mod contents;
#[cfg(test)]
mod fuzz;
mod memory;
mod seal;

pub use checkpoint::{Checkpoint, CommitError, FORMAT, OpenError, wipe};
pub use contents::{Broker, Change, Contents, Identity, Object, Space, SyncState};
pub use memory::Memory;
