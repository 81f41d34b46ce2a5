//! One file a command.

pub(crate) mod agent;
pub(crate) mod apply;
pub(crate) mod backup;
pub(crate) mod bench;
pub(crate) mod compile_worker;
pub(crate) mod delete;
pub(crate) mod demo;
pub(crate) mod fetch;
pub(crate) mod get;
pub(crate) mod logs;
pub(crate) mod member;
pub(crate) mod node;
pub(crate) mod oci_shim;
pub(crate) mod push;
pub(crate) mod secrets;
pub(crate) mod server;
pub(crate) mod store;
pub(crate) mod token;
pub(crate) mod up;
