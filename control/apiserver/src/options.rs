//! Options out of queries and bodies, refused as Kubernetes refuses them.

use lichen_api::k8s::apimachinery::pkg::apis::meta::v1 as meta;
use lichen_api::status::Cause;
use lichen_api::{FieldError, FieldErrorKind, Status, fields, labels};
use lichen_registry::{
    DeleteOptions, FieldValidation, Filter, ListOptions, Propagation, RevisionMatch, WatchStart, WriteOptions,
};
use lichen_store::Revision;
use serde_json::{Value, json};

use crate::query::Query;

/// Longest name of a field manager.
const MANAGER_BYTES_MAX: usize = 128;
/// The manager of who names neither itself nor its program.
const UNKNOWN_MANAGER: &str = "unknown";

/// What a list or a watch was asked with.
#[derive(Debug)]
pub(crate) struct ListParameters {
    /// The options of a list.
    pub(crate) list: ListOptions,
    /// Where a watch begins.
    pub(crate) start: WatchStart,
    /// Whether a watch marks the end of what existed when it began.
    pub(crate) mark_initial_end: bool,
    /// Whether a watch sends bookmarks.
    pub(crate) bookmarks: bool,
    /// Seconds after which a watch ends.
    pub(crate) timeout_seconds: Option<u64>,
}

/// A refusal of options as such, which are a kind of their own.
pub(crate) fn invalid(kind: &str, errors: Vec<FieldError>) -> Status {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let why = match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    let mut status = Status::unprocessable(format!("{kind}.meta.k8s.io \"\" is invalid: {why}"));
    let details = status.details_mut();
    details.group = "meta.k8s.io".to_owned();
    details.kind = kind.to_owned();
    details.causes = errors
        .into_iter()
        .map(|error| Cause {
            reason: error.kind.reason().to_owned(),
            message: error.body(),
            field: error.field,
        })
        .collect();
    status
}

/// Which objects are meant.
pub(crate) fn filter(query: &Query) -> Result<Filter, Status> {
    let bad = |error: labels::SelectorError| Status::bad_request(error.to_string());
    Ok(Filter {
        labels: labels::Selector::parse(query.get("labelSelector").unwrap_or_default()).map_err(bad)?,
        fields: fields::Selector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(bad)?,
        name: None,
    })
}

/// The resourceVersion of a query.
pub(crate) fn revision(query: &Query) -> Result<Option<u64>, Status> {
    let Some(text) = query.get("resourceVersion") else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))
    })
}

fn integer(query: &Query, name: &str) -> Result<Option<i64>, Status> {
    let Some(text) = query.get(name) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax")))
}

/// Options of a list or a watch.
pub(crate) fn list(query: &Query, watch: bool) -> Result<ListParameters, Status> {
    let filter = filter(query)?;
    let limit =
        integer(query, "limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
    let asked = revision(query)?;
    let matching = query.get("resourceVersionMatch");
    let initial = (!query.all("sendInitialEvents").is_empty()).then(|| query.flag("sendInitialEvents"));
    check_match(watch, query.get("resourceVersion"), matching, initial)?;

    let continue_token = query.get("continue").filter(|_| !watch).map(str::to_owned);
    let revision = match (asked, matching) {
        (None, _) => RevisionMatch::Newest,
        (Some(asked), Some("Exact")) => RevisionMatch::Exact(Revision(asked)),
        // Without a match, a limit has always meant the state at exactly that revision.
        (Some(asked), None) if asked > 0 && limit.is_some() && !watch => {
            RevisionMatch::Exact(Revision(asked))
        }
        (Some(asked), _) => RevisionMatch::NotOlderThan(Revision(asked)),
    };
    // A list from whatever this member has is answered whole.
    let limit = limit.filter(|_| asked != Some(0) || matching.is_some() || continue_token.is_some());
    let start = match (asked, initial) {
        (_, Some(true)) | (None | Some(0), None) => WatchStart::Initial,
        (Some(asked), _) if asked > 0 => WatchStart::After(Revision(asked)),
        _ => WatchStart::Now,
    };
    Ok(ListParameters {
        list: ListOptions { filter, limit, continue_token, revision },
        start,
        mark_initial_end: initial == Some(true),
        bookmarks: query.flag("allowWatchBookmarks"),
        timeout_seconds: integer(query, "timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok()),
    })
}

fn check_match(
    watch: bool,
    revision: Option<&str>,
    matching: Option<&str>,
    initial: Option<bool>,
) -> Result<(), Status> {
    const FIELD: &str = "resourceVersionMatch";
    let mut errors = Vec::new();
    if let (Some(_), false) = (initial, watch) {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        return Err(invalid("ListOptions", errors));
    }
    match (watch, initial, matching) {
        (true, Some(_), Some("NotOlderThan")) | (_, None, None) => {}
        (true, Some(_), None) => {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(FieldError::forbidden(FIELD, why));
        }
        (true, None, Some(other)) => {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden(FIELD, why));
            if other != "NotOlderThan" {
                errors.push(FieldError::not_supported(FIELD, other, &["NotOlderThan"]));
            }
        }
        (true, Some(_), Some(other)) => {
            errors.push(FieldError::not_supported(FIELD, other, &["NotOlderThan"]))
        }
        (false, _, Some(other)) => {
            if revision.is_none() {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                errors.push(FieldError::forbidden(FIELD, why));
            } else if other == "Exact" && revision == Some("0") {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.push(FieldError::forbidden(FIELD, why));
            } else if !matches!(other, "Exact" | "NotOlderThan") {
                errors.push(FieldError::not_supported(FIELD, other, &["Exact", "NotOlderThan", ""]));
            }
        }
        (false, Some(_), None) => {}
    }
    if errors.is_empty() { Ok(()) } else { Err(invalid("ListOptions", errors)) }
}

/// Options of a server-side apply, and whether it is forced. Its manager has to be named.
pub(crate) fn apply(query: &Query) -> Result<(WriteOptions, bool), Status> {
    let mut errors = Vec::new();
    if query.get("fieldManager").is_none_or(str::is_empty) {
        errors.push(FieldError::required("fieldManager", "is required for apply patch"));
    }
    let options = write_into(query, None, errors, "PatchOptions")?;
    Ok((options, query.flag("force")))
}

/// Options of a create, update or patch; `kind` names them in refusals.
pub(crate) fn write(query: &Query, user_agent: Option<&str>, kind: &str) -> Result<WriteOptions, Status> {
    let mut errors = Vec::new();
    if kind == "PatchOptions" && query.get("force").is_some() {
        errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
    }
    write_into(query, user_agent, errors, kind)
}

fn write_into(
    query: &Query,
    user_agent: Option<&str>,
    mut errors: Vec<FieldError>,
    kind: &str,
) -> Result<WriteOptions, Status> {
    let dry_run = dry_run(query.all("dryRun"), &mut errors);
    let manager = query.get("fieldManager");
    if manager.is_some_and(|manager| manager.len() > MANAGER_BYTES_MAX) {
        errors.push(FieldError::too_long("fieldManager", MANAGER_BYTES_MAX));
    }
    if manager.is_some_and(|manager| manager.chars().any(char::is_control)) {
        errors.push(FieldError::invalid("fieldManager", manager, "should only contain printable characters"));
    }
    let field_validation = match query.get("fieldValidation") {
        None | Some("Warn") => FieldValidation::Warn,
        Some("Strict") => FieldValidation::Strict,
        Some("Ignore") => FieldValidation::Ignore,
        Some(other) => {
            errors.push(FieldError::not_supported(
                "fieldValidation",
                other,
                &["", "Ignore", "Strict", "Warn"],
            ));
            FieldValidation::Warn
        }
    };
    if !errors.is_empty() {
        return Err(invalid(kind, errors));
    }
    let manager = manager.map_or_else(|| program(user_agent), str::to_owned);
    Ok(WriteOptions { field_manager: Some(manager), dry_run, field_validation, ..WriteOptions::default() })
}

/// The name of the program in a User-Agent header.
fn program(user_agent: Option<&str>) -> String {
    let name = user_agent.and_then(|text| text.split('/').next()).unwrap_or_default();
    let name: String = name.chars().filter(|letter| !letter.is_control()).collect();
    match name.trim() {
        "" => UNKNOWN_MANAGER.to_owned(),
        name if name.len() > MANAGER_BYTES_MAX => UNKNOWN_MANAGER.to_owned(),
        name => name.to_owned(),
    }
}

fn dry_run(values: &[String], errors: &mut Vec<FieldError>) -> bool {
    let values: Vec<&String> = values.iter().filter(|value| !value.is_empty()).collect();
    if values.iter().any(|value| *value != "All") {
        errors.push(FieldError::not_supported("dryRun", json!(values), &["All"]));
    }
    !values.is_empty()
}

/// Options of a deletion: the body's if there is one, else the query's.
pub(crate) fn delete(query: &Query, body: Option<&Value>) -> Result<DeleteOptions, Status> {
    let from_query;
    let given = match body {
        Some(body) => {
            let text = |name: &str| body.get(name).and_then(Value::as_str);
            if let Some(kind) = text("kind").filter(|kind| *kind != "DeleteOptions") {
                let version = text("apiVersion").unwrap_or("meta.k8s.io/v1");
                return Err(Status::bad_request(format!(
                    "no kind \"{kind}\" is registered for version \"{version}\""
                )));
            }
            // A precondition of the wrong type must not pass for none at all.
            <meta::DeleteOptions as serde::Deserialize>::deserialize(body)
                .map_err(|error| Status::bad_request(format!("DeleteOptions cannot be decoded: {error}")))?;
            body
        }
        None => {
            let mut object = serde_json::Map::new();
            if let Some(seconds) = integer(query, "gracePeriodSeconds")? {
                object.insert("gracePeriodSeconds".to_owned(), json!(seconds));
            }
            if let Some(policy) = query.get("propagationPolicy") {
                object.insert("propagationPolicy".to_owned(), json!(policy));
            }
            if query.get("orphanDependents").is_some() {
                object.insert("orphanDependents".to_owned(), json!(query.flag("orphanDependents")));
            }
            object.insert("dryRun".to_owned(), json!(query.all("dryRun")));
            from_query = Value::Object(object);
            &from_query
        }
    };
    let mut errors = Vec::new();
    let values: Vec<String> = given["dryRun"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let dry_run = dry_run(&values, &mut errors);
    let policy = given["propagationPolicy"].as_str();
    let propagation = match policy {
        None => given["orphanDependents"].as_bool().map(|orphan| match orphan {
            true => Propagation::Orphan,
            false => Propagation::Background,
        }),
        Some("Background") => Some(Propagation::Background),
        Some("Foreground") => Some(Propagation::Foreground),
        Some("Orphan") => Some(Propagation::Orphan),
        Some(other) => {
            errors.push(FieldError {
                kind: FieldErrorKind::NotSupported,
                field: "propagationPolicy".to_owned(),
                value: json!(other),
                detail: "supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"".to_owned(),
            });
            None
        }
    };
    if policy.is_some() && given["orphanDependents"].is_boolean() {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        errors.push(FieldError::invalid("propagationPolicy", policy, why));
    }
    let preconditions = &given["preconditions"];
    let revision = preconditions["resourceVersion"].as_str().filter(|text| !text.is_empty());
    let revision = match revision.map(str::parse) {
        None => None,
        Some(Ok(revision)) => Some(Revision(revision)),
        Some(Err(_)) => {
            errors.push(FieldError::invalid("preconditions.resourceVersion", revision, "must be a number"));
            None
        }
    };
    if !errors.is_empty() {
        return Err(invalid("DeleteOptions", errors));
    }
    Ok(DeleteOptions {
        uid: preconditions["uid"].as_str().filter(|uid| !uid.is_empty()).map(str::to_owned),
        revision,
        grace_seconds: given["gracePeriodSeconds"].as_i64(),
        propagation,
        dry_run,
        fence: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_lists_and_watches_begin() {
        use RevisionMatch::{Exact, Newest, NotOlderThan};
        let r = Revision;
        let cases = [
            ("", Newest, WatchStart::Initial, None),
            ("resourceVersion=0&limit=5", NotOlderThan(r(0)), WatchStart::Initial, None),
            ("resourceVersion=7", NotOlderThan(r(7)), WatchStart::After(r(7)), None),
            ("limit=5", Newest, WatchStart::Initial, Some(5)),
            ("limit=-1", Newest, WatchStart::Initial, None),
        ];
        for (text, expect, start, limit) in cases {
            let query = Query::parse(text);
            let parsed = list(&query, false).unwrap();
            assert_eq!((parsed.list.revision, parsed.list.limit), (expect, limit), "{text}");
            assert_eq!(list(&query, true).unwrap().start, start, "{text}");
        }
        let exact = list(&Query::parse("resourceVersion=7&limit=5"), false).unwrap();
        assert_eq!(exact.list.revision, Exact(r(7)));
        let text = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let initial = list(&Query::parse(text), true).unwrap();
        assert!(initial.mark_initial_end && initial.bookmarks);
        assert_eq!(initial.start, WatchStart::Initial);
    }

    #[test]
    fn a_deletion_with_odd_options_is_refused() {
        let cases = [
            (json!({}), 0),
            (json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 3}), 0),
            (json!({"kind": "Pod"}), 400),
            (json!({"preconditions": "x"}), 400),
            (json!({"preconditions": {"uid": 5}}), 400),
            (json!({"gracePeriodSeconds": "soon"}), 400),
            (json!({"preconditions": {"resourceVersion": "x"}}), 422),
            (json!({"propagationPolicy": "Nope"}), 422),
            (json!({"dryRun": ["Some"]}), 422),
        ];
        for (body, expect) in cases {
            let code = delete(&Query::default(), Some(&body)).map_or_else(|status| status.code, |_| 0);
            assert_eq!(code, expect, "{body}");
        }
    }

    #[test]
    fn who_manages_the_fields() {
        let cases = [
            (None, "unknown"),
            (Some("kubectl/v1.36.0 (linux/amd64)"), "kubectl"),
            (Some(""), "unknown"),
            (Some("curl"), "curl"),
        ];
        for (agent, expect) in cases {
            let options = write(&Query::default(), agent, "CreateOptions").unwrap();
            assert_eq!(options.field_manager.as_deref(), Some(expect), "{agent:?}");
        }
    }
}
