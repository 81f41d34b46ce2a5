//! Signals, by the names that images have for them.

use rustix::process::Signal;

/// A signal by its name or number; none if there is no such signal.
pub(super) fn parse(text: &str) -> Option<Signal> {
    const NAMES: [(&str, Signal); 9] = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("TERM", Signal::TERM),
        ("CONT", Signal::CONT),
        ("WINCH", Signal::WINCH),
    ];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, signal)| *signal);
    named.or_else(|| Signal::from_named_raw(name.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_names_or_numbers() {
        let check = |text: &str, expect: Option<Signal>| assert_eq!(parse(text), expect, "{text}");
        check("SIGTERM", Some(Signal::TERM));
        check("INT", Some(Signal::INT));
        check("15", Some(Signal::TERM));
        check("SIGRTMIN+3", None);
        check("", None);
    }
}
