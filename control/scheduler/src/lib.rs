//! The scheduler, pure: a snapshot and pods to place give a plan.
