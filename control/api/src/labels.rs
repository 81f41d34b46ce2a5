//! Label selectors, from the text of a query and from a `LabelSelector` object.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// Anything that labels (or field values) can be looked up in.
pub trait Lookup {
    /// The value under `key`.
    fn lookup(&self, key: &str) -> Option<&str>;
}

impl Lookup for BTreeMap<String, String> {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Lookup for [(String, String)] {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

impl Lookup for Vec<(String, String)> {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.as_slice().lookup(key)
    }
}

/// The labels of an object as JSON: `metadata.labels`.
impl Lookup for Value {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl<T: Lookup> Lookup for Option<T> {
    fn lookup(&self, key: &str) -> Option<&str> {
        self.as_ref().and_then(|labels| labels.lookup(key))
    }
}

impl<T: Lookup + ?Sized> Lookup for &T {
    fn lookup(&self, key: &str) -> Option<&str> {
        (**self).lookup(key)
    }
}

/// A conjunction of requirements. The empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What must hold for its value.
    pub operator: Operator,
}

/// What must hold for a label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The value is one of these.
    In(Vec<String>),
    /// The label is absent or has none of these values.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The value is an integer greater than this.
    GreaterThan(i64),
    /// The value is an integer less than this.
    LessThan(i64),
}

/// Why a selector cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl Requirement {
    /// Whether the labels fulfil this.
    pub fn matches(&self, labels: &(impl Lookup + ?Sized)) -> bool {
        let value = labels.lookup(&self.key);
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|known| known == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|known| known != value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(bound) => number().is_some_and(|number| number > *bound),
            Operator::LessThan(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

impl Selector {
    /// A selector that matches nothing: that of a null `LabelSelector`.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// A selector out of requirements.
    pub fn new(requirements: Vec<Requirement>) -> Self {
        Self { requirements, nothing: false }
    }

    /// A selector of equalities: a Service's `spec.selector`, a pod's `nodeSelector`.
    pub fn from_map(labels: &BTreeMap<String, String>) -> Self {
        Self::new(
            labels
                .iter()
                .map(|(key, value)| Requirement {
                    key: key.clone(),
                    operator: Operator::In(vec![value.clone()]),
                })
                .collect(),
        )
    }

    /// From a `LabelSelector` object. Null matches nothing, `{}` everything.
    pub fn from_object(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                let value = value.as_str().unwrap_or_default().to_owned();
                requirements.push(Requirement { key: key.clone(), operator: Operator::In(vec![value]) });
            }
        }
        for expression in
            selector.get("matchExpressions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice)
        {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let values = || {
                let values = expression.get("values").and_then(Value::as_array);
                values.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let operator = match text("operator") {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("\"{other}\" is not a valid label selector operator")));
                }
            };
            requirements.push(Requirement { key: text("key").to_owned(), operator });
        }
        Ok(Self::new(requirements))
    }

    /// From the typed `LabelSelector`.
    pub fn from_typed(
        selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    ) -> Result<Self, SelectorError> {
        let value = serde_json::to_value(selector).map_err(|error| SelectorError(error.to_string()))?;
        Self::from_object(&value)
    }

    /// From a query's text: `app=x,tier in (a,b),!old,size>3`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser { tokens: tokens(text), next: 0 }.selector()
    }

    /// Whether the labels fulfil every requirement.
    pub fn matches(&self, labels: &(impl Lookup + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The requirements.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Requirement> = self.requirements.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        for (index, requirement) in sorted.into_iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let key = &requirement.key;
            match &requirement.operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", sorted_list(values))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", sorted_list(values))?,
                Operator::Exists => write!(f, "{key}")?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan(bound) => write!(f, "{key}>{bound}")?,
                Operator::LessThan(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

fn sorted_list(values: &[String]) -> String {
    let mut sorted: Vec<&str> = values.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.join(",")
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Symbol(symbol) => symbol,
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest.find(|c: char| "=!(),><".contains(c) || c.is_whitespace()).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.next).cloned();
        self.next += 1;
        token
    }

    fn unexpected<T>(found: Option<&Token>, expected: &str) -> Result<T, SelectorError> {
        let found = found.map_or("", Token::text);
        Err(SelectorError(format!("unable to parse requirement: found '{found}', expected: {expected}")))
    }

    fn selector(mut self) -> Result<Selector, SelectorError> {
        let mut requirements = Vec::new();
        while self.peek().is_some() {
            requirements.push(self.requirement()?);
            match self.take() {
                None => break,
                Some(Token::Symbol(",")) => match self.peek() {
                    Some(Token::Word(_) | Token::Symbol("!")) => {}
                    found => return Self::unexpected(found, "identifier after ','"),
                },
                found => return Self::unexpected(found.as_ref(), "',' or 'end of string'"),
            }
        }
        Ok(Selector::new(requirements))
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let absent = self.peek() == Some(&Token::Symbol("!"));
        if absent {
            self.next += 1;
        }
        let key = match self.take() {
            Some(Token::Word(word)) => word,
            found => return Self::unexpected(found.as_ref(), "identifier"),
        };
        if let Err(why) = crate::validation::qualified_name(&key) {
            return Err(SelectorError(format!(
                "unable to parse requirement: key: Invalid value: {key:?}: {}",
                why.join("; ")
            )));
        }
        if absent {
            return Ok(Requirement { key, operator: Operator::DoesNotExist });
        }
        let operator = match self.peek() {
            None | Some(Token::Symbol(",")) => Operator::Exists,
            Some(Token::Symbol("=" | "==")) => {
                self.next += 1;
                Operator::In(vec![self.value()?])
            }
            Some(Token::Symbol("!=")) => {
                self.next += 1;
                Operator::NotIn(vec![self.value()?])
            }
            Some(Token::Symbol(symbol @ (">" | "<"))) => {
                let greater = *symbol == ">";
                self.next += 1;
                let text = self.value()?;
                let bound = text.parse().map_err(|_| {
                    SelectorError(format!(
                        "unable to parse requirement: values[0]: Invalid value: {text:?}: for 'Gt', 'Lt' operators, the value must be an \
                         integer"
                    ))
                })?;
                if greater { Operator::GreaterThan(bound) } else { Operator::LessThan(bound) }
            }
            Some(Token::Word(word)) if word == "in" || word == "notin" => {
                let inside = word == "in";
                self.next += 1;
                let values = self.values()?;
                if inside { Operator::In(values) } else { Operator::NotIn(values) }
            }
            found => {
                return Self::unexpected(found, "in, notin, =, ==, !=, gt, lt, ',' or 'end of string'");
            }
        };
        Ok(Requirement { key, operator })
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            None | Some(Token::Symbol(",")) => Ok(String::new()),
            Some(Token::Word(_)) => {
                let word = self.take().map(|token| token.text().to_owned()).unwrap_or_default();
                checked_value(word)
            }
            found => Self::unexpected(found, "identifier"),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.take() {
            Some(Token::Symbol("(")) => {}
            found => return Self::unexpected(found.as_ref(), "'('"),
        }
        let mut values = Vec::new();
        loop {
            match self.take() {
                Some(Token::Word(word)) => {
                    values.push(checked_value(word)?);
                    match self.take() {
                        Some(Token::Symbol(",")) => {}
                        Some(Token::Symbol(")")) => return Ok(values),
                        found => return Self::unexpected(found.as_ref(), "',' or ')'"),
                    }
                }
                Some(Token::Symbol(")")) => {
                    values.push(String::new());
                    return Ok(values);
                }
                Some(Token::Symbol(",")) => values.push(String::new()),
                found => return Self::unexpected(found.as_ref(), "',', ')' or identifier"),
            }
        }
    }
}

fn checked_value(value: String) -> Result<String, SelectorError> {
    match crate::validation::label_value(&value) {
        Ok(()) => Ok(value),
        Err(why) => Err(SelectorError(format!(
            "unable to parse requirement: values[0][]: Invalid value: {value:?}: {}",
            why.join("; ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn selects() {
        let object = labels(&[("app", "web"), ("tier", "front"), ("size", "4"), ("empty", "")]);
        let check = |text: &str, expect: bool| {
            let selector = Selector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.matches(&object), expect, "{text}");
            let again = Selector::parse(&selector.to_string()).unwrap();
            assert_eq!(again.matches(&object), expect, "{text} printed as {selector}");
        };
        check("", true);
        check("app=web", true);
        check("app==web", true);
        check("app!=web", false);
        check("app != other , tier", true);
        check("other!=web", true);
        check("app in (web, api)", true);
        check("app notin (web)", false);
        check("other notin (web)", true);
        check("!other", true);
        check("!app", false);
        check("size>3,size<5", true);
        check("size>4", false);
        check("empty=", true);
        check("app=", false);
        check("empty in ()", true);
        check("example.com/x", false);
    }

    #[test]
    fn refuses() {
        let check = |text: &str, expect: &str| {
            assert_eq!(Selector::parse(text).unwrap_err().0, expect, "{text}");
        };
        check("a===b", "unable to parse requirement: found '=', expected: identifier");
        check("a in (x", "unable to parse requirement: found '', expected: ',' or ')'");
        check("a,", "unable to parse requirement: found '', expected: identifier after ','");
        check(
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt, ',' or 'end of string'",
        );
        assert!(Selector::parse("a=b c").is_err());
        assert!(Selector::parse("-a=b").is_err());
        assert!(Selector::parse("a=-b").is_err());
        assert!(Selector::parse("a>b").is_err());
    }

    #[test]
    fn selector_objects() {
        let object = labels(&[("app", "web")]);
        let check = |selector: Value, expect: bool| {
            assert_eq!(Selector::from_object(&selector).unwrap().matches(&object), expect, "{selector}");
        };
        check(Value::Null, false);
        check(serde_json::json!({}), true);
        check(serde_json::json!({"matchLabels": {"app": "web"}}), true);
        check(serde_json::json!({"matchLabels": {"app": "db"}}), false);
        check(
            serde_json::json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}),
            true,
        );
        check(serde_json::json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), false);
        assert!(
            Selector::from_object(
                &serde_json::json!({"matchExpressions": [{"key": "app", "operator": "Near"}]})
            )
            .is_err()
        );
    }
}
