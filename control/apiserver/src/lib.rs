//! HTTPS around the registry: discovery, encodings, watch streams, subresources, authentication, authorisation.
//!
//! [`build`] binds, [`Bound::run`] serves until its shutdown signal and then drains. Paths are dynamic: whatever the
//! resource table of `lichen-api` has is served.
//!
//! Invariants: who is not in `system:masters` learns nothing but the version, the health and who he is; every
//! refusal is a Kubernetes `Status` (or the plain text that Kubernetes itself sends); every body, queue and wait is
//! bounded.
//!
//! Deliberately absent: any rule about objects (the registry's), and the handlers that are mounted beside the API (the
//! artifact registry's), which share only its port and its authentication.

mod auth;
mod body;
mod collection;
mod delete;
mod discovery;
mod documents;
mod forward;
#[cfg(test)]
mod fuzz;
mod health;
mod lists;
mod logs;
mod negotiate;
mod object;
mod options;
mod parse;
mod path;
mod query;
mod respond;
mod reviews;
mod router;
mod server;
mod watches;

pub use forward::{Forward, Forwarded};
pub use respond::{Body, BodyError, boxed};
pub use router::Mount;
pub use server::{Bound, BuildError, Config, build};
