//! The controllers, as pure reconcilers: (view, key, now) to steps.
//!
//! One controller is one small file, or one folder, and one entry of the table [`RECONCILERS`]. Nothing here does
//! I/O, reads a clock or draws a random number, so a simulation can run a whole cluster in one thread.
//!
//! There are no *expectations* as Kubernetes' controllers keep them: a key runs again only with a view that has seen
//! what its last run wrote (see [`Reconciler`]), and names are derived from what is known, so that a repeated
//! creation meets the first one instead of making a second object.

mod deployment;
mod endpoint_slice;
mod endpoints;
mod event_ttl;
mod garbage_collector;
mod hash;
mod meta;
mod namespace;
mod node_lifecycle;
#[cfg(feature = "plant")]
pub mod plant;
mod pod_gc;
mod pods;
mod reconciler;
mod replica_set;
mod service_account;
mod taint_eviction;
mod token_cleaner;

pub use reconciler::{Action, Event, Interest, Outcome, Propagation, Reconciler, Regarding, Severity, Step};

/// Every controller.
pub static RECONCILERS: &[&dyn Reconciler] = &[
    &deployment::DeploymentController,
    &endpoint_slice::EndpointSliceController,
    &endpoints::EndpointsController,
    &event_ttl::EventTtlController,
    &garbage_collector::GarbageCollector,
    &namespace::NamespaceController,
    &node_lifecycle::NodeLifecycleController,
    &pod_gc::PodGarbageCollector,
    &replica_set::ReplicaSetController,
    &service_account::ServiceAccountController,
    &taint_eviction::TaintEvictionController,
    &token_cleaner::TokenCleaner,
];

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
