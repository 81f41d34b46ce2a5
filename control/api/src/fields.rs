//! Field selectors: `metadata.name=x,status.phase!=Running`.

use std::fmt;

use crate::labels::{Lookup, SelectorError};
use crate::resource::Resource;
use crate::status::Status;

/// A conjunction of equalities and inequalities on fields. The empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    terms: Vec<Term>,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The field's path.
    pub field: String,
    /// What it is compared with.
    pub value: String,
    /// Whether it must be equal (or else unequal).
    pub equal: bool,
}

impl Selector {
    /// From a query's text. A backslash escapes a comma, an equals sign or itself in a value.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let bad = || SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let (field, value, equal) = split_operator(part).ok_or_else(bad)?;
            let value = unescape(value).ok_or_else(bad)?;
            terms.push(Term { field: field.to_owned(), value, equal });
        }
        Ok(Self { terms })
    }

    /// Refuses fields that the kind cannot be selected by.
    pub fn check(&self, resource: &Resource) -> Result<(), Status> {
        for term in &self.terms {
            if !resource.selects_by(&term.field) {
                let field = &term.field;
                return Err(Status::bad_request(match (resource.fields, resource.stored_as) {
                    ([], None) => format!(
                        "\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    ),
                    _ => format!("field label not supported: {field}"),
                }));
            }
        }
        Ok(())
    }

    /// The selector of stored objects that selects what this one selects of a kind's.
    pub fn of_home(&self, resource: &Resource) -> Self {
        let Some(stored) = resource.stored_as else { return self.clone() };
        let renamed = |term: &Term| {
            let home = stored.fields.iter().find(|(own, _)| *own == term.field);
            Term {
                field: home.map_or_else(|| term.field.clone(), |(_, home)| (*home).to_owned()),
                ..term.clone()
            }
        };
        Self { terms: self.terms.iter().map(renamed).collect() }
    }

    /// Whether the fields fulfil every term. An absent field counts as empty.
    pub fn matches(&self, fields: &(impl Lookup + ?Sized)) -> bool {
        self.terms
            .iter()
            .all(|term| (fields.lookup(&term.field).unwrap_or_default() == term.value) == term.equal)
    }

    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The terms.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The value that `field` must have, if the selector demands one: a list by name needs no scan.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", term.field)?;
        }
        Ok(())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_operator(term: &str) -> Option<(&str, &str, bool)> {
    for at in 0..term.len() {
        if !term.is_char_boundary(at) {
            continue;
        }
        let rest = &term[at..];
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..at], value, equal));
            }
        }
    }
    None
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next()? {
                escaped @ ('\\' | ',' | '=') => out.push(escaped),
                _ => return None,
            },
            '=' | ',' => return None,
            other => out.push(other),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects() {
        let fields = vec![
            ("metadata.name".to_owned(), "a".to_owned()),
            ("status.phase".to_owned(), "Running".to_owned()),
        ];
        let check = |text: &str, expect: bool| {
            let selector = Selector::parse(text).unwrap();
            assert_eq!(selector.matches(&fields), expect, "{text}");
            assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
        };
        check("", true);
        check("metadata.name=a", true);
        check("metadata.name==a,status.phase!=Failed", true);
        check("metadata.name!=a", false);
        check("spec.nodeName=", true);
        check("spec.nodeName=x", false);
        check("metadata.name=a\\,b", false);
    }

    #[test]
    fn refuses() {
        assert_eq!(
            Selector::parse("nope").unwrap_err().0,
            "invalid selector: 'nope'; can't understand 'nope'"
        );
        assert!(Selector::parse("a=b=c").is_err());
        let configmaps = crate::by_plural("", "v1", "configmaps").unwrap();
        let status = Selector::parse("data.k=1").unwrap().check(configmaps).unwrap_err();
        assert_eq!(
            status.message,
            "\"data.k\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }
}
