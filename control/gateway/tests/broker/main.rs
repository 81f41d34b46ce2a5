//! What we ask of a broker, asked of each that we name: the embedded one, and Mosquitto as `examples/mosquitto` sets it up,
//! with certificates and with passwords.
//!
//! A broker may answer what is forbidden as it likes, with a refusal, the end of the connection or silence: what counts is
//! that nothing comes of it.

mod bed;
mod client;
mod conformance;
mod sessions;

/// Makes each question a test of each broker.
macro_rules! conformance {
    ($($question:ident)*) => {
        conformance!(@ embedded, Embedded, $($question)*);
        conformance!(@ mosquitto_with_certificates, MosquittoCertificates, $($question)*);
        conformance!(@ mosquitto_with_passwords, MosquittoPasswords, $($question)*);
    };
    (@ $module:ident, $kind:ident, $($question:ident)*) => {
        mod $module {
            $(#[test]
            fn $question() {
                crate::bed::run(crate::bed::Kind::$kind, crate::conformance::$question);
            })*

            #[test]
            fn sessions_keep_their_promises() {
                crate::sessions::run(crate::bed::Kind::$kind);
            }
        }
    };
}

conformance! {
    a_will_appears_after_a_loss_and_none_after_a_goodbye
    a_second_connection_under_a_client_id_takes_over
    large_packets_pass
    quality_1_is_acknowledged
    nothing_waits_for_who_is_away
    who_is_silent_is_given_up
    a_node_reaches_its_own_topics_only
    a_stranger_reaches_no_node
    packets_go_out_at_once
    thousands_of_clients_are_served
}
