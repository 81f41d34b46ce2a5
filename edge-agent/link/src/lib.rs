//! The MQTT adapter for a wire session.
