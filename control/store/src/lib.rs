//! The replicated, revisioned store.
//!
//! Objects are [`Record`]s under [`Key`]s. A [`Txn`] changes several of them at one [`Revision`], or none. Every
//! change is a [`Change`] in a bounded history, from which any number of [`Watch`]es read.
//!
//! The way of a transaction: `store` bounds it and proposes it through `raft`; `log` makes it durable, many in one sync;
//! `machine` has `apply` decide it and admits the outcome to `state`, which is all in memory; `hub` wakes the watches;
//! `flush` brings the state to rest in `file`, a `disk` on a `storage`, off everyone's way; `snapshot` carries it to
//! another member. All files are a `volume`'s, and `health` waits for them when they fail. `backup` takes it all out, and makes a store
//! of it again.
//!
//! Invariants: `apply` is deterministic; an acknowledged transaction is durable; all the puts of one transaction carry
//! one revision; nobody sees a revision before all changes up to it can be watched; no disk is touched on an async
//! thread, nor by an idle store. Deliberately absent: any knowledge of Kubernetes' kinds, admission, patches,
//! authorisation.

mod apply;
mod backup;
mod change;
mod check;
mod codec;
mod disk;
mod encryption;
mod error;
mod file;
mod flush;
mod health;
mod history;
mod hub;
mod key;
mod log;
mod machine;
mod member;
mod messages;
mod ordered;
mod pack;
mod peers;
mod raft;
mod record;
mod runner;
#[cfg(feature = "simulation")]
pub mod simulation;
mod snapshot;
mod state;
mod storage;
mod store;
#[cfg(test)]
mod tests;
mod txn;
mod types;
mod volume;

pub use apply::{Applied, Rejection, View, apply};
pub use backup::{Backup, BackupError};
pub use change::{Change, ChangeKind};
pub use check::{Report, check, rekey};
pub use codec::DecodeError;
pub use encryption::{Encryption, EncryptionKey, InvalidKey};
pub use error::{CommitError, Committed, ErrorKind, OpenError};
pub use history::HistoryBounds;
pub use hub::{Compacted, Event, Watch, WatchError};
pub use key::{Key, Revision, Term};
pub use member::{MemberStatus, Role};
pub use ordered::{Applier, Order};
pub use peers::Network;
pub use raft::Pace;
pub use record::{Draft, Pairs, Record};
pub use state::{Page, RangeError, RangeOptions};
pub use store::{Config, Leadership, Peering, Simulated, Store};
pub use txn::{Action, Op, Precondition, TXN_BYTES_MAX, TXN_OPS_MAX, Txn};
pub use volume::{Volume, VolumeFile};
