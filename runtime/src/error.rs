//! Why the host did not do what it was asked.

use std::path::PathBuf;

use lichen_engine::{EngineError, LoadError};

/// Why a component was not loaded or not started.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The file is no compiled component for this machine.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// wasmtime cannot be set up.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The component needs something that this host does not have.
    #[error("the component imports {name}, which this host does not offer ({detail})")]
    MissingImport {
        /// The import as the component names it.
        name: String,
        /// What exactly does not fit.
        detail: String,
    },
    /// The component exports no entry point.
    #[error("the component exports neither wasi:cli/run nor a wasi:http handler")]
    NothingToRun,
    /// The component is of another kind than the call is for.
    #[error("the component is {found}, so it cannot be {wanted}")]
    WrongWorld {
        /// What it is.
        found: &'static str,
        /// What was to be done with it.
        wanted: &'static str,
    },
    /// A directory that the guest should see cannot be opened.
    #[error("cannot mount {path}: {reason}")]
    Mount {
        /// The directory on this machine.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A listener or a thread could not be had from the system.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The host is shutting down.
    #[error("the component host is shutting down")]
    Closed,
}
