//! The one write path: strategy, admission, transaction, always under an identity.
//!
//! HTTP clients, the gateway, the scheduler and the controllers all change objects here and nowhere else. An object is
//! parsed on its write; reads, lists and watches hand out records, whose bytes are copied.
//!
//! Invariants:
//! - what is written has been decoded, defaulted, validated and admitted, and carries its managedFields from the first
//!   write on;
//! - an object and what is allocated for it (a Service's address, a node's range) change in one transaction;
//! - a write that changes nothing is not written;
//! - an object is created only in a namespace that, in the same transaction, exists and is not terminating.
//!
//! Deliberately absent: sockets and encodings, and authorisation, which the API server does before it calls.

mod admission;
mod allocate;
mod apply;
mod bootstrap;
mod create;
mod delete;
mod error;
mod identity;
mod list;
mod metadata;
mod modify;
mod options;
mod pods;
mod presence;
mod registry;
mod scale;
mod streams;
mod watch;

pub use allocate::{AllocationRanges, NODE_PORTS, POD_RANGE, SERVICE_RANGE};
pub use identity::{Identity, MASTERS_GROUP};
pub use options::{
    Configuration, DeleteOptions, Deleted, FieldValidation, Filter, List, ListOptions, Patch, Propagation,
    RevisionMatch, WatchOptions, WatchStart, WriteOptions, Written,
};
pub use pods::Binding;
pub use presence::{NODE_LEASE_NAMESPACE, NodePresence};
pub use registry::{Registry, Sources, key_of, name_of, namespace_of, object_of};
pub use streams::{LogRequest, LogStream, NodeStreams};
pub use watch::{Watch, WatchEvent};
