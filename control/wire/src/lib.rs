//! What travels between a node and its control plane: topics, sealed frames, the schema of every body,
//! the join exchange, and the [`Session`](session::Session) that makes a lossy carrier reliable.
//!
//! Invariants: nothing here does I/O, reads a clock or draws randomness (time and seeds come in as
//! parameters); no decoder panics or allocates, whatever the bytes; every buffer has a named bound. Without
//! the `alloc` feature the crate needs no heap at all, so that a microcontroller speaks the same protocol.
//!
//! Deliberately absent: MQTT itself, sockets, and any Kubernetes type. A kind is a string and an object is
//! opaque bytes here.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(any(feature = "alloc", test))]
extern crate alloc;

pub use heapless;

pub mod body;
pub mod codec;
pub mod frame;
pub mod join;
pub mod keys;
#[cfg(feature = "plant")]
pub mod plant;
pub mod report;
pub mod session;
pub mod stream;
pub mod topic;

/// Largest frame on the wire, header and seal included.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Longest node name that the wire carries.
pub const NODE_NAME_BYTES_MAX: usize = 128;

#[cfg(any(feature = "golden", test))]
pub mod golden;

#[cfg(any(feature = "testing", test))]
pub mod testing;

#[cfg(test)]
mod fuzz;
