//! The controllers together, on a cluster in memory.

mod endpoints;
mod lifecycle;
mod nodes;
mod rollouts;
