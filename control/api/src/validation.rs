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
