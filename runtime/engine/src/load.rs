//! Loading a compiled component. The one place in the project that maps a file as machine code.

use std::path::Path;

use wasmtime::Engine;
use wasmtime::component::Component;

/// Why a `.cwasm` file was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("cannot load {path}: {reason}")]
pub struct LoadError {
    /// The file.
    pub path: String,
    /// What wasmtime says: another version, other settings, another machine, or no artifact at all.
    pub reason: String,
}

/// Maps a `.cwasm` file into memory as a component.
///
/// The caller vouches for the file: it was made by Cranelift in this cluster's own compile
/// worker, its bytes were verified against a digest signed by the cluster's CA, and nobody changes it while it is mapped
/// (the artifact store writes under a temporary name, renames, and never writes again).
pub fn load(engine: &Engine, path: &Path) -> Result<Component, LoadError> {
    deserialize(engine, path)
        .map_err(|error| LoadError { path: path.display().to_string(), reason: format!("{error:#}") })
}

#[allow(unsafe_code, reason = "a compiled component is machine code: loading it is trusting who compiled it")]
fn deserialize(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: wasmtime checks version, target and settings, but cannot check that the machine code in the file is what
    // Cranelift would emit. That is the caller's signature check, stated on `load`; files come from nowhere else.
    unsafe { Component::deserialize_file(engine, path) }
}
