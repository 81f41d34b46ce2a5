//! The component host: limits, instances, capabilities. Knows no Pod.
