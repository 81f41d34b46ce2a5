//! The pod lifecycle machine, pure.
