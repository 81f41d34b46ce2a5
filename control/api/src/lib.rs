//! Objects, the resource table, selectors, quantities, patch, validation, snapshot views. No I/O.

pub use k8s_openapi as k8s;

pub mod view;
