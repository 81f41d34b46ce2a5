//! What streams are opened for, and what is said on them: the schema of `request` in
//! [`StreamOpen`](crate::body::Body::StreamOpen), of the head that precedes an artifact's bytes, and of errors.
//!
//! A stream that fails ends with an error whose text is a [`StreamError`] as it prints: a code that software
//! acts on, then a sentence for people.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::body::Blob;
use crate::codec::{self, CodecError};

/// Longest request, and longest head of an artifact, in bytes.
pub const REQUEST_BYTES_MAX: usize = 2048;

/// What the context of the signature over [`ArtifactHead::statement`] is.
pub const ARTIFACT_SIGNING_CONTEXT: &str = "compiled-artifact";

/// Longest statement about an artifact, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 512;

/// What the opener of a stream asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamRequest<'a> {
    /// Agent: a component, compiled for its engine profile. The answer is an [`ArtifactHead`] written by
    /// [`ArtifactHead::write`], then the bytes of the compiled artifact from `offset` on.
    Artifact {
        /// The image reference, as the pod has it.
        #[serde(borrow)]
        image: &'a str,
        /// The engine profile.
        #[serde(borrow)]
        profile: &'a str,
        /// How many bytes the agent has already, from a transfer that broke off.
        offset: u64,
    },
    /// Agent: which manifest an image of an OCI container has for a platform. The answer is an [`ImageHead`] and nothing
    /// else.
    Image {
        /// The image reference, as the pod has it.
        #[serde(borrow)]
        image: &'a str,
        /// The platform, such as `linux/arm64`.
        #[serde(borrow)]
        platform: &'a str,
    },
    /// Agent: content by its digest: a manifest, and what it names. The answer is its bytes from `offset` on.
    Blob {
        /// The SHA-256 of the whole.
        sha256: [u8; 32],
        /// How many bytes the agent has already, from a transfer that broke off.
        offset: u64,
    },
    /// Gateway: the logs of a container, as lines.
    Logs {
        /// The pod's namespace.
        #[serde(borrow)]
        namespace: &'a str,
        /// The pod's name.
        #[serde(borrow)]
        pod: &'a str,
        /// The pod's UID.
        #[serde(borrow)]
        uid: &'a str,
        /// The container.
        #[serde(borrow)]
        container: &'a str,
        /// Whether to go on with lines that are yet to be written.
        follow: bool,
        /// How many of the last lines to begin with; all if absent.
        tail_lines: Option<u64>,
        /// Only lines from this time on, in milliseconds since 1970.
        since_unix_ms: Option<i64>,
        /// Whether each line begins with its time.
        timestamps: bool,
        /// Whether the logs of the attempt before the current one are meant.
        previous: bool,
        /// After how many bytes to end.
        limit_bytes: Option<u64>,
    },
    /// Agent: a new certificate and a new key. The answer is the reply to the request, whole.
    Renew {
        /// A renewal as [`crate::join::Joiner`] writes it.
        #[serde(borrow)]
        request: Blob<'a>,
    },
}

impl<'a> StreamRequest<'a> {
    /// Writes the request and returns its length.
    pub fn write(&self, out: &mut [u8]) -> Result<usize, CodecError> {
        codec::encode(self, out)
    }

    /// Reads a request.
    pub fn read(bytes: &'a [u8]) -> Result<Self, CodecError> {
        codec::decode(bytes)
    }
}

/// What stands before an artifact's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactHead<'a> {
    /// SHA-256 of the manifest that the reference led to: the image's identity.
    pub manifest: [u8; 32],
    /// SHA-256 of the component.
    pub component: [u8; 32],
    /// SHA-256 of the compiled artifact.
    pub sha256: [u8; 32],
    /// Length of the compiled artifact, all of it.
    pub len: u64,
    /// The cluster CA's signature over [`ArtifactHead::statement`].
    #[serde(borrow)]
    pub signature: Blob<'a>,
}

impl<'a> ArtifactHead<'a> {
    /// Writes the head with its length before it, and returns how many bytes that took.
    pub fn write(&self, out: &mut [u8]) -> Result<usize, CodecError> {
        let space = out.len();
        let (len, rest) = out.split_first_chunk_mut::<2>().ok_or(CodecError::Space(space))?;
        let written = codec::encode(self, rest)?;
        *len = u16::try_from(written).map_err(|_| CodecError::Space(space))?.to_be_bytes();
        Ok(2 + written)
    }

    /// Reads a head off the start of a stream: the head and how many bytes it took, or none if more are needed.
    pub fn read(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, CodecError> {
        let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes(*len));
        if len > REQUEST_BYTES_MAX {
            return Err(CodecError::Malformed(0));
        }
        match rest.get(..len) {
            Some(head) => Ok(Some((codec::decode(head)?, 2 + len))),
            None => Ok(None),
        }
    }

    /// Writes the text that the signature is over: which component the artifact was made from, for which
    /// profile, and what came out. `None` if the profile's name is too long.
    pub fn statement(&self, profile: &str) -> Option<heapless::Vec<u8, STATEMENT_BYTES_MAX>> {
        statement(&self.component, profile, &self.sha256, self.len)
    }
}

/// Where the reference of an OCI container's image leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHead {
    /// SHA-256 of the manifest: the image's identity.
    pub manifest: [u8; 32],
    /// The manifest's length.
    pub len: u64,
}

impl ImageHead {
    /// Writes the head and returns its length.
    pub fn write(&self, out: &mut [u8]) -> Result<usize, CodecError> {
        codec::encode(self, out)
    }

    /// Reads a whole head.
    pub fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(bytes)
    }
}

/// See [`ArtifactHead::statement`].
pub fn statement(
    component: &[u8; 32],
    profile: &str,
    sha256: &[u8; 32],
    len: u64,
) -> Option<heapless::Vec<u8, STATEMENT_BYTES_MAX>> {
    struct Hex<'a>(&'a [u8; 32]);
    impl fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }
    let mut text = heapless::String::<STATEMENT_BYTES_MAX>::new();
    let (component, sha256) = (Hex(component), Hex(sha256));
    fmt::Write::write_fmt(
        &mut text,
        format_args!("lichen compiled artifact v1\nsha256:{component}\n{profile}\nsha256:{sha256}\n{len}\n"),
    )
    .ok()?;
    Some(text.into_bytes())
}

/// What kind of error a stream ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamErrorCode {
    /// The request makes no sense, or the image reference can't be parsed.
    Invalid,
    /// The image, pod or container does not exist.
    NotFound,
    /// The artifact exists, and is no component that can be compiled.
    Unusable,
    /// The reference leads to the image of an OCI container, not to a component.
    Image,
    /// It may work later.
    Unavailable,
    /// Something broke on the side that answers.
    Internal,
}

impl StreamErrorCode {
    const ALL: [StreamErrorCode; 6] =
        [Self::Invalid, Self::NotFound, Self::Unusable, Self::Image, Self::Unavailable, Self::Internal];

    /// The code's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::NotFound => "NotFound",
            Self::Unusable => "Unusable",
            Self::Image => "Image",
            Self::Unavailable => "Unavailable",
            Self::Internal => "Internal",
        }
    }
}

/// An error that a stream ended with. It prints as `code: message`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamError<'a> {
    /// What kind.
    pub code: StreamErrorCode,
    /// What happened.
    pub message: &'a str,
}

impl<'a> StreamError<'a> {
    /// Takes an error's text apart. A text without a code is internal.
    pub fn parse(text: &'a str) -> Self {
        let known = text.split_once(": ").and_then(|(name, message)| {
            let code = StreamErrorCode::ALL.into_iter().find(|code| code.name() == name)?;
            Some(Self { code, message })
        });
        known.unwrap_or(Self { code: StreamErrorCode::Internal, message: text })
    }
}

impl fmt::Display for StreamError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.message)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn requests_and_heads_read_back() {
        let request = StreamRequest::Artifact { image: "hello:v1", profile: "p", offset: 7 };
        let mut out = [0; REQUEST_BYTES_MAX];
        let len = request.write(&mut out).unwrap();
        assert_eq!(StreamRequest::read(&out[..len]), Ok(request));
        let blob = StreamRequest::Blob { sha256: [200; 32], offset: 7 };
        let len = blob.write(&mut out).unwrap();
        assert_eq!(StreamRequest::read(&out[..len]), Ok(blob));
        let image = ImageHead { manifest: [9; 32], len: 1 };
        let len = image.write(&mut out).unwrap();
        assert_eq!(ImageHead::read(&out[..len]), Ok(image));
        let head = ArtifactHead {
            manifest: [1; 32],
            component: [2; 32],
            sha256: [3; 32],
            len: 9,
            signature: Blob(b"signature"),
        };
        let len = head.write(&mut out).unwrap();
        for cut in 0..len {
            assert_eq!(ArtifactHead::read(&out[..cut]), Ok(None));
        }
        assert_eq!(ArtifactHead::read(&out), Ok(Some((head, len))));
    }

    #[test]
    fn errors_read_back() {
        let error = StreamError { code: StreamErrorCode::NotFound, message: "hello:v1: not found" };
        assert_eq!(StreamError::parse(&error.to_string()), error);
        let odd = StreamError::parse("Odd: text");
        assert_eq!((odd.code, odd.message), (StreamErrorCode::Internal, "Odd: text"));
    }
}
