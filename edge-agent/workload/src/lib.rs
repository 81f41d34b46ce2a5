//! The Runtime trait, its mock, its conformance suite, and the Wasm adapter.
