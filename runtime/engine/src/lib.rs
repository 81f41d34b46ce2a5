//! One engine configuration and its profile id, shared by whoever compiles and whoever runs.
//!
//! A compiled component (`.cwasm`) loads only into an engine whose settings equal those it was compiled with. So there is
//! one function that makes a [`wasmtime::Config`], and a [`ProfileId`] that names everything in it that must agree: a node
//! says which profile it runs, and the compile worker makes the artifact for that profile.
//!
//! Cranelift comes with the feature `compile`, which only the process that compiles enables; without it this crate loads
//! and never compiles. Absent on purpose: wasmtime's own cache (ours is the artifact store, by digest and profile), and any
//! notion of Pods or limits.

mod load;
mod profile;

#[cfg(feature = "compile")]
mod compile;

#[cfg(feature = "compile")]
pub use compile::{COMPONENT_BYTES_MAX, CompileError, compile};
pub use load::{LoadError, load};
pub use profile::{
    Baseline, EngineError, InvalidProfile, MEMORY_GUARD_BYTES, MEMORY_RESERVATION_BYTES, ProfileId, Target,
    WASMTIME_MAJOR, engine, running_config,
};

pub use wasmtime;
