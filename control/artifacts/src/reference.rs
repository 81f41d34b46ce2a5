//! Image references: `name[:tag][@digest]`.
//!
//! The grammar is the usual one of container images. A first component with a dot or a colon in it, or `localhost`, is
//! a registry's host; a reference without one means the embedded registry. Docker's habit of reading `hello` as
//! `docker.io/library/hello` is deliberately absent: nothing is fetched from a place that the reference does not name.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// The tag that a reference without one means.
pub const DEFAULT_TAG: &str = "latest";

/// The longest repository name, host included, that the OCI specification lets a client count on.
pub const NAME_BYTES_MAX: usize = 255;

/// The longest tag.
pub const TAG_BYTES_MAX: usize = 128;

/// A parsed image reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The registry's host, with its port if it has one; none means the embedded registry.
    pub host: Option<String>,
    /// The repository, such as `team/hello`.
    pub repository: String,
    /// The tag, when one was written.
    pub tag: Option<String>,
    /// The manifest's digest, when one was written. It wins over the tag.
    pub digest: Option<Digest>,
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was written.
    #[error("the image reference is empty")]
    Empty,
    /// A repository's name has characters or a shape that names don't have.
    #[error(
        "{0:?} is not a repository name: want lower-case letters and digits, parted by one of . _ - or /"
    )]
    Name(String),
    /// A name is too long.
    #[error("the repository name is longer than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// A tag has characters that tags don't have, or is too long.
    #[error(
        "{0:?} is not a tag: want at most {TAG_BYTES_MAX} letters, digits, and . _ - (the first a letter, digit or _)"
    )]
    Tag(String),
    /// What follows the `@` is no digest.
    #[error(transparent)]
    Digest(#[from] crate::DigestError),
}

impl Reference {
    /// What a manifest is asked for by: the digest if there is one, else the tag, else [`DEFAULT_TAG`].
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; an earlier one belongs to a host's port.
        let (name, tag) = match rest.rfind(':').filter(|colon| !rest[*colon..].contains('/')) {
            Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
            None => (rest, None),
        };
        if name.len() > NAME_BYTES_MAX {
            return Err(ReferenceError::NameTooLong);
        }
        let (host, repository) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (Some(first.to_owned()), rest),
            _ => (None, name),
        };
        if !is_repository(repository) {
            return Err(ReferenceError::Name(repository.to_owned()));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        Ok(Reference { host, repository: repository.to_owned(), tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_host(first: &str) -> bool {
    let (name, port) = first.split_once(':').map_or((first, None), |(name, port)| (name, Some(port)));
    let alphanumeric = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    (name == "localhost" || name.contains('.') || port.is_some())
        && alphanumeric(name.bytes().next())
        && alphanumeric(name.bytes().last())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// True if `name` is a repository name: components of lower-case letters and digits with single separators between
/// them, joined by slashes. Such a name is also safe as a relative path: no component starts with a dot or underscore.
pub(crate) fn is_repository(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX && name.split('/').all(is_component)
}

fn is_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !edge(bytes.first()) || !edge(bytes.last()) {
        return false;
    }
    // Between letters and digits stands one dot, one or two underscores, or any number of dashes.
    bytes
        .split(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

/// True if `tag` is a tag, and so also a safe file name.
pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(text: &str, host: Option<&str>, repository: &str, tag: Option<&str>, digest: bool) {
        let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(reference.host.as_deref(), host, "{text}");
        assert_eq!(reference.repository, repository, "{text}");
        assert_eq!(reference.tag.as_deref(), tag, "{text}");
        assert_eq!(reference.digest.is_some(), digest, "{text}");
        assert_eq!(reference.to_string(), text);
    }

    #[test]
    fn references_are_taken_apart() {
        check("hello", None, "hello", None, false);
        check("hello:v1", None, "hello", Some("v1"), false);
        check("team/hello:v1.2_3-rc", None, "team/hello", Some("v1.2_3-rc"), false);
        check("a/b/c__d--e.f", None, "a/b/c__d--e.f", None, false);
        check(&format!("hello@{DIGEST}"), None, "hello", None, true);
        check(&format!("hello:v1@{DIGEST}"), None, "hello", Some("v1"), true);
        check("ghcr.io/team/hello:v1", Some("ghcr.io"), "team/hello", Some("v1"), false);
        check("localhost:5000/hello", Some("localhost:5000"), "hello", None, false);
        check("localhost/hello:v1", Some("localhost"), "hello", Some("v1"), false);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(256);
        for text in [
            "",
            ":v1",
            "Hello",
            "hello:",
            "hello:-v",
            "hello:v/1",
            "hello:99999/x",
            "a//b",
            "../etc",
            "a/../b",
            "_tags/x",
            "a..b",
            "a._b",
            "-a",
            "a-",
            "hello@sha256:12",
            "hello@",
            " hello",
            "h\u{e9}llo",
            "hello:v 1",
            long.as_str(),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_digest_wins_over_the_tag() {
        let selector = |text: &str| text.parse::<Reference>().unwrap().selector();
        assert_eq!(selector(&format!("hello:v1@{DIGEST}")), DIGEST);
        assert_eq!(selector("hello:v1"), "v1");
        assert_eq!(selector("hello"), "latest");
    }
}
