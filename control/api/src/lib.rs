//! Objects, the resource table, selectors, quantities, patch, validation, snapshot views. No I/O.
//!
//! Objects travel as JSON values; a kind's k8s-openapi type checks their shape on every write. Nothing here reads a clock, draws a random
//! number or knows another object than the one in hand.

pub use k8s_openapi as k8s;

pub mod apply;
pub mod check;
pub mod codec;
pub mod discovery;
pub mod field;
pub mod fields;
pub mod kinds;
pub mod labels;
pub mod managed;
pub mod merge_keys;
pub mod metadata;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod pod;
pub mod protobuf;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod status;
pub mod strategy;
pub mod table;
pub mod taints;
pub mod validation;
pub mod view;

pub use field::{FieldError, FieldErrorKind};
pub use quantity::Quantity;
pub use resource::{
    Column, DecodeError, FieldSelector, RESOURCES, Resource, StoredAs, Strategy, by_kind, by_plural,
    review_by_plural,
};
pub use status::Status;
