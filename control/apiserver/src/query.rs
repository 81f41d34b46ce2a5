//! Query strings.

use std::collections::BTreeMap;

/// The parameters of a query; of one that is given several times, all values in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    values: BTreeMap<String, Vec<String>>,
}

impl Query {
    /// Reads a query. What is not percent-encoded text is taken as it stands.
    pub(crate) fn parse(text: &str) -> Self {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| percent_decode(text, true).unwrap_or_else(|| text.to_owned());
            values.entry(decode(name)).or_default().push(decode(value));
        }
        Self { values }
    }

    /// The first value of a parameter, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.first().map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a parameter is there and does not say no.
    pub(crate) fn flag(&self, name: &str) -> bool {
        match self.values.get(name).and_then(|values| values.first()) {
            None => false,
            Some(value) => !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"),
        }
    }
}

/// Decodes percent-encoded text; in a query a plus is a space.
pub(crate) fn percent_decode(text: &str, plus: bool) -> Option<String> {
    let encoded = text.contains('%') || (plus && text.contains('+'));
    if !encoded {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                let digit = |at: usize| {
                    char::from(digits[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
                };
                bytes.push(digit(0)? * 16 + digit(1)?);
                rest = after;
            }
            b'+' if plus => bytes.push(b' '),
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding() {
        let cases = [
            ("a%3Db", true, Some("a=b")),
            ("a+b", true, Some("a b")),
            ("a+b", false, Some("a+b")),
            ("%", true, None),
            ("%2", true, None),
            ("%ff", true, None),
            ("%+1", true, None),
            ("%C3%A4", false, Some("ä")),
        ];
        for (text, plus, expect) in cases {
            assert_eq!(percent_decode(text, plus).as_deref(), expect, "{text}");
        }
    }

    #[test]
    fn parameters() {
        let query = Query::parse("watch=1&limit=&x=a&x=b&flag&no=false&&labelSelector=a%20in%20(b)");
        assert!(query.flag("watch") && query.flag("flag"));
        assert!(!query.flag("no") && !query.flag("absent"));
        assert_eq!(query.get("limit"), None);
        assert_eq!(query.all("x"), ["a", "b"]);
        assert_eq!(query.get("labelSelector"), Some("a in (b)"));
    }
}
