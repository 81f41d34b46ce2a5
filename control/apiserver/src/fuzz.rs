//! Every decoder of a request, over the corpus in `tests/corpus`.

use lichen_fuzz::Fuzz;
use serde_json::json;

use crate::parse;

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

#[test]
fn json_is_read_as_it_was_written() {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "a", "labels": { "ä": "\u{1}\"\\" } },
        "data": { "a": "1" }, "list": [1, -2, 2.5, 1e300, null, true, "x", u64::MAX, i64::MIN],
    });
    let examples = [
        ("object", object.to_string()),
        ("twice", r#"{"a":1,"a":2,"l":[{"b":1,"b":2}]}"#.to_owned()),
        ("deep", "[".repeat(100) + &"]".repeat(100)),
    ];
    fuzz("json").examples(examples).iterations(10_000).run(|bytes| {
        let Ok(parsed) = parse::json(bytes) else { return false };
        let again = parse::json(parsed.value.to_string().as_bytes()).unwrap();
        assert_eq!(again.duplicates, Vec::<String>::new());
        assert_eq!(again.value, parsed.value);
        true
    });
}

#[test]
fn yaml_does_not_unfold_without_bound() {
    let list = (0..40).map(|_| "- *a\n").collect::<String>();
    let examples = [
        ("object", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  a: |\n    b\n".to_owned()),
        ("scalars", "a: [1, -2.5, ~, true, 'x', \"\\x41\", 0x10, 1e3]\n1: one\ntrue: yes\n".to_owned()),
        ("alias", format!("x: &a {}\ny:\n{list}", "text".repeat(10))),
        ("nested", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n".to_owned()),
    ];
    fuzz("yaml").examples(examples).allocation_base(8 << 20).run(|bytes| {
        let Ok(parsed) = parse::yaml(bytes) else { return false };
        let again = parse::json(parsed.value.to_string().as_bytes()).unwrap();
        assert_eq!(again.value, parsed.value);
        true
    });
}

#[test]
fn request_lines_are_understood_or_refused() {
    const LINES: &[&str] = &[
        "/api/v1/namespaces/default/pods?labelSelector=a%3Db&limit=5&resourceVersion=7",
        "/apis/apps/v1/deployments?watch=1&allowWatchBookmarks=true&timeoutSeconds=9&fieldSelector=metadata.name%3Da",
        "/api/v1/pods?sendInitialEvents=true&resourceVersionMatch=NotOlderThan&watch=true",
        "/api/v1/namespaces/a/pods/p%20q/log?follow=true&tailLines=3&container=c",
        "/openapi/v3/apis/apps/v1",
        "/api/v1/namespaces/a/finalize",
    ];
    let examples = LINES.iter().enumerate().map(|(index, line)| (index.to_string(), line));
    fuzz("request-line").examples(examples).iterations(10_000).run(|bytes| {
        let Ok(line) = std::str::from_utf8(bytes) else { return false };
        let (path, query) = line.split_once('?').unwrap_or((line, ""));
        let query = crate::query::Query::parse(query);
        let _ = crate::options::list(&query, query.flag("watch"));
        let _ = crate::negotiate::objects(Some(line));
        let _ = crate::negotiate::discovery(Some(line));
        crate::path::parse(path).is_some()
    });
}
