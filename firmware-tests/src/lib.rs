//! The harness of the tests that look at Lichen from outside: its dependency rules and its programs, run as a user
//! runs them.
//!
//! Deliberately absent: anything that a crate's own tests can see.

pub mod cluster;
pub mod history;
pub mod kubectl;
pub mod machine;
pub mod mosquitto;
pub mod mounts;
pub mod network;
pub mod process;
pub mod tools;
pub mod writer;
