//! The `lichen` command.

fn main() {}
