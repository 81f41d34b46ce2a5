//! Composition of a server: configuration, build, run; and the workqueue that drives the reconcilers.
