//! What a client accepts, and what it gets.

use lichen_api::Status;
use lichen_api::table::IncludeObject;

/// Media types of replies.
pub(crate) const REPLY_TYPES: [&str; 2] = ["application/json", "application/yaml"];

/// How a reply is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    /// JSON for people.
    Pretty,
    Yaml,
}

/// In which form objects are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As they are.
    Object,
    /// As rows of a Table.
    Table,
    /// Their metadata only.
    Partial,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) encoding: Encoding,
    pub(crate) shape: Shape,
    /// What a Table's rows carry.
    pub(crate) include: IncludeObject,
}

impl Format {
    /// Plain JSON.
    pub(crate) const JSON: Self =
        Self { encoding: Encoding::Json, shape: Shape::Object, include: IncludeObject::Metadata };
}

/// One clause of an Accept header.
struct Clause<'a> {
    media: &'a str,
    as_kind: Option<&'a str>,
    group: Option<&'a str>,
    version: Option<&'a str>,
    quality: f32,
}

fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut all = Vec::new();
    for text in accept.split(',') {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if media.is_empty() {
            continue;
        }
        let mut clause = Clause { media, as_kind: None, group: None, version: None, quality: 1.0 };
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => clause.as_kind = Some(value),
                Some(("g", value)) => clause.group = Some(value),
                Some(("v", value)) => clause.version = Some(value),
                Some(("q", value)) => clause.quality = value.parse().unwrap_or(0.0),
                _ => {}
            }
        }
        if clause.quality > 0.0 {
            all.push(clause);
        }
    }
    // Stable: equal ones stay in the client's order.
    all.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    all
}

fn encoding(media: &str) -> Option<Encoding> {
    match media.to_ascii_lowercase().as_str() {
        "application/json" | "application/*" | "*/*" => Some(Encoding::Json),
        "application/yaml" => Some(Encoding::Yaml),
        _ => None,
    }
}

/// Agrees on the form of a reply that carries objects.
pub(crate) fn objects(accept: Option<&str>) -> Result<Format, Status> {
    let accept = accept.unwrap_or_default();
    let all = clauses(accept);
    if all.is_empty() && accept.trim().is_empty() {
        return Ok(Format::JSON);
    }
    for clause in all {
        let Some(encoding) = encoding(clause.media) else { continue };
        let meta = clause.group == Some("meta.k8s.io");
        let shape = match (clause.as_kind, clause.version) {
            (None, _) => Shape::Object,
            (Some("Table"), Some("v1" | "v1beta1")) if meta => Shape::Table,
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1" | "v1beta1")) if meta => {
                Shape::Partial
            }
            _ => continue,
        };
        return Ok(Format { encoding, shape, ..Format::JSON });
    }
    Err(Status::not_acceptable(&REPLY_TYPES))
}

/// Agrees on the form of a discovery document: whether it is the aggregated one.
pub(crate) fn discovery(accept: Option<&str>) -> Result<bool, Status> {
    let accept = accept.unwrap_or_default();
    let all = clauses(accept);
    if all.is_empty() && accept.trim().is_empty() {
        return Ok(false);
    }
    for clause in all {
        if encoding(clause.media) != Some(Encoding::Json) {
            continue;
        }
        match (clause.as_kind, clause.group, clause.version) {
            (None, _, _) => return Ok(false),
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => return Ok(true),
            _ => {}
        }
    }
    Err(Status::not_acceptable(&REPLY_TYPES))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

    #[test]
    fn objects_are_sent_as_the_client_wants() {
        let json = Some((Encoding::Json, Shape::Object));
        let cases = [
            (None, json),
            (Some(""), json),
            (Some("*/*"), json),
            (Some("application/json"), json),
            (Some("application/yaml"), Some((Encoding::Yaml, Shape::Object))),
            (Some(TABLE), Some((Encoding::Json, Shape::Table))),
            (Some("application/vnd.kubernetes.protobuf,application/json"), json),
            (
                Some("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
                Some((Encoding::Json, Shape::Partial)),
            ),
            (Some("application/yaml;q=0.5, application/json;q=0.9"), json),
            (Some("application/json;as=Table;v=v9;g=meta.k8s.io"), None),
            (Some("application/json;as=Nope;g=meta.k8s.io;v=v1"), None),
            (Some("text/html"), None),
            (Some("application/json;q=0"), None),
        ];
        for (accept, expect) in cases {
            let got = objects(accept).ok().map(|format| (format.encoding, format.shape));
            assert_eq!(got, expect, "{accept:?}");
        }
    }

    #[test]
    fn discovery_is_aggregated_for_those_who_know_it() {
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let old =
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        let cases =
            [(None, Some(false)), (Some(v2), Some(true)), (Some(old), Some(false)), (Some("text/csv"), None)];
        for (accept, expect) in cases {
            assert_eq!(discovery(accept).ok(), expect, "{accept:?}");
        }
    }
}
