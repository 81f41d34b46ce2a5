//! One file a kind: names, columns, selectable fields, strategy.

pub mod configmap;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod event;
pub mod event_v1;
pub mod lease;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod replicaset;
pub mod review;
pub mod secret;
pub mod service;
pub mod serviceaccount;
