//! MQTT to sessions to registry, and the embedded broker.

pub mod broker;
