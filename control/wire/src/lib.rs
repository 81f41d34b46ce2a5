#![no_std]
//! Frames, sealing, the schema of every body, and the sans-IO Session. no_std.
