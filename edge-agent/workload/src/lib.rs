//! What runs a container on a node: the [`Runtime`] trait, its mock, its conformance suite, container logs, and the Wasm
//! and OCI adapters.
//!
//! The trait is shaped by two very different things at once: a component inside this process, and an OCI process that
//! outlives it. Neither Pods nor restart policies nor networking appear here: a container has an id chosen by the caller,
//! an artifact that is already on disk and verified, and one typed [`Exit`].

pub mod conformance;
pub mod container;
mod descriptor;
pub mod logs;
pub mod mock;
pub mod oci;
pub mod runtime;
mod runtimes;
pub mod wasm;

pub use container::{
    Artifact, ContainerId, ContainerSpec, Event, Exit, Handler, InvalidId, Limits, Mount, Process, State,
    Stats,
};
pub use logs::{LogError, LogFile, LogLimits, LogLine, LogOptions, LogStream, LogWriter, Stream};
pub use oci::{OciConfig, OciRuntime};
pub use runtime::{ExecRequest, ExecSession, Runtime, RuntimeError};
pub use runtimes::Runtimes;
pub use wasm::{WasmConfig, WasmRuntime};
