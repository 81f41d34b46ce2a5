//! The controllers, as pure reconcilers.
