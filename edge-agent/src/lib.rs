//! Composition of a node, and the binary lichen-agent.
