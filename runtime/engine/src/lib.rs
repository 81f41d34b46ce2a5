//! One engine configuration and its profile id, shared by whoever compiles and whoever runs.
