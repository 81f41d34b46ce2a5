//! The lichen binary: server, agent, up, demo, token, apply, get, logs, bench.
