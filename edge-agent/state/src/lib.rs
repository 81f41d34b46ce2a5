//! The node's checkpoint.
