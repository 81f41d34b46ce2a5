//! Rules on texts that many kinds share: names, label keys and values, with Kubernetes' own messages.

/// The outcome of a rule: every reason why the text breaks it.
pub type Rule = Result<(), Vec<String>>;

const LABEL_FORMAT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_FORMAT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_FORMAT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_FORMAT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn outcome(reasons: Vec<String>) -> Rule {
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

fn no_more_than(max_bytes: usize) -> String {
    format!("must be no more than {max_bytes} bytes")
}

fn is_label(text: &str) -> bool {
    framed(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit(), |c| c == '-')
}

/// Whether every character is an `end` or a `middle`, and the first and last are an `end`.
fn framed(text: &str, end: fn(char) -> bool, middle: fn(char) -> bool) -> bool {
    text.starts_with(end) && text.ends_with(end) && text.chars().all(|c| end(c) || middle(c))
}

/// A DNS label of RFC 1123.
pub fn dns_label(text: &str) -> Rule {
    let mut reasons = Vec::new();
    if text.len() > 63 {
        reasons.push(no_more_than(63));
    }
    if !is_label(text) {
        reasons.push(LABEL_FORMAT.to_owned());
    }
    outcome(reasons)
}

/// A DNS subdomain of RFC 1123.
pub fn dns_subdomain(text: &str) -> Rule {
    let mut reasons = Vec::new();
    if text.len() > 253 {
        reasons.push(no_more_than(253));
    }
    if !text.split('.').all(is_label) {
        reasons.push(SUBDOMAIN_FORMAT.to_owned());
    }
    outcome(reasons)
}

/// A label's or annotation's key.
pub fn qualified_name(text: &str) -> Rule {
    let mut reasons = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) => {
            if prefix.is_empty() {
                reasons.push("prefix part must be non-empty".to_owned());
            } else if let Err(why) = dns_subdomain(prefix) {
                reasons.extend(why.into_iter().map(|why| format!("prefix part {why}")));
            }
            name
        }
    };
    if name.contains('/') {
        return Err(vec![format!(
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
             character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') \
             with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        )]);
    }
    if name.is_empty() {
        reasons.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        reasons.push(format!("name part {}", no_more_than(63)));
    }
    if !framed(name, |c| c.is_ascii_alphanumeric(), |c| "-_.".contains(c)) {
        reasons.push(QUALIFIED_FORMAT.to_owned());
    }
    outcome(reasons)
}

/// A label's value.
pub fn label_value(text: &str) -> Rule {
    let mut reasons = Vec::new();
    if text.len() > 63 {
        reasons.push(no_more_than(63));
    }
    if !text.is_empty() && !framed(text, |c| c.is_ascii_alphanumeric(), |c| "-_.".contains(c)) {
        reasons.push(LABEL_VALUE_FORMAT.to_owned());
    }
    outcome(reasons)
}

/// The name of most objects.
pub fn dns_subdomain_name(text: &str) -> Rule {
    characters(dns_subdomain(text))
}

/// The name of an object that becomes a DNS label: a namespace, a container.
pub fn dns_label_name(text: &str) -> Rule {
    if text.contains('.') {
        return Err(vec!["must not contain dots".to_owned()]);
    }
    dns_label(text)
}

/// A name that is only ever part of a path.
pub fn path_segment_name(text: &str) -> Rule {
    if text == "." || text == ".." {
        return Err(vec![format!("may not be '{text}'")]);
    }
    let reasons = ["/", "%"].iter().filter(|part| text.contains(**part));
    outcome(reasons.map(|part| format!("may not contain '{part}'")).collect())
}

/// The name of a Service: a DNS label of RFC 1123.
pub fn service_name(text: &str) -> Rule {
    characters(dns_label(text))
}

/// Limits on names are counted in characters where those of other texts are counted in bytes; only the wording differs.
fn characters(rule: Rule) -> Rule {
    rule.map_err(|reasons| {
        reasons
            .into_iter()
            .map(|reason| match reason.strip_suffix(" bytes") {
                Some(start) if reason.starts_with("must be no more than") => format!("{start} characters"),
                _ => reason,
            })
            .collect()
    })
}

/// The name of a port: RFC 6335.
pub fn port_name(text: &str) -> Rule {
    let mut reasons = Vec::new();
    if text.len() > 15 {
        reasons.push("must be no more than 15 characters".to_owned());
    }
    if !text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        reasons.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.contains(|c: char| c.is_ascii_lowercase()) {
        reasons.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        reasons.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        reasons.push("must not begin or end with a hyphen".to_owned());
    }
    outcome(reasons)
}

/// A key of a ConfigMap or Secret: it becomes a file's name.
pub fn config_key(text: &str) -> Rule {
    let mut reasons = Vec::new();
    if text.len() > 253 {
        reasons.push(no_more_than(253));
    }
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        reasons.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    if text == "." {
        reasons.push("must not be '.'".to_owned());
    } else if text == ".." {
        reasons.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        reasons.push("must not start with '..'".to_owned());
    }
    outcome(reasons)
}

/// The name of an environment variable: any printable ASCII but the equals sign.
pub fn env_name(text: &str) -> Rule {
    let mut reasons = Vec::new();
    if !text.chars().all(|c| (c.is_ascii_graphic() || c == ' ') && c != '=') {
        reasons.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    outcome(reasons)
}
