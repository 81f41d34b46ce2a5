//! The `lichen-agent` command.

fn main() {}
