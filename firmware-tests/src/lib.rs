//! The harness: dependency rules, end to end with real clients, cross builds, simulation.
