//! Every decoder of what an API client sends, over the corpus in `tests/corpus`.

use std::collections::BTreeMap;
use std::path::Path;

use lichen_api::{Quantity, RESOURCES, by_kind, fields, labels, patch, protobuf};
use lichen_fuzz::Fuzz;
use serde_json::{Value, json};

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

fn numbered<'a>(texts: &'a [&'a str]) -> impl Iterator<Item = (String, &'a str)> {
    texts.iter().enumerate().map(|(index, text)| (format!("{index:02}"), *text))
}

#[test]
fn selectors_print_what_they_mean() {
    const TEXTS: &[&str] = &[
        "",
        "a=b",
        "a==b,c!=d",
        "app.kubernetes.io/name in (web, api ,db)",
        "x notin (a),y",
        "!gone",
        "cores>3,cores<9",
        " spaced = out , e= ",
    ];
    let labels: BTreeMap<String, String> =
        [("a", "b"), ("c", "d"), ("x", ""), ("cores", "4")].map(|(k, v)| (k.into(), v.into())).into();
    fuzz("labels").examples(numbered(TEXTS)).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(selector) = labels::Selector::parse(text) else { return false };
        let printed = selector.to_string();
        let again = labels::Selector::parse(&printed).unwrap_or_else(|e| panic!("{printed:?}: {e}"));
        assert_eq!(again.to_string(), printed);
        assert_eq!(again.matches(&labels), selector.matches(&labels), "{text:?} is not {printed:?}");
        true
    });
}

#[test]
fn field_selectors_print_what_they_mean() {
    const TEXTS: &[&str] = &[
        "",
        "metadata.name=a",
        "spec.nodeName==n,status.phase!=Running",
        "metadata.name=with\\,comma\\=and\\\\slash",
        "a=",
    ];
    fuzz("fields").examples(numbered(TEXTS)).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(selector) = fields::Selector::parse(text) else { return false };
        for resource in RESOURCES {
            let _ = selector.check(resource);
        }
        let again = fields::Selector::parse(&selector.to_string()).unwrap();
        assert_eq!(again.terms(), selector.terms());
        true
    });
}

#[test]
fn quantities_keep_their_value() {
    const TEXTS: &[&str] =
        &["0", "500m", "1.5Gi", "-3e3", "+2E", "12e-3", "100n", ".5Ki", "5.", "9223372036854775807", "1e18"];
    fuzz("quantity").examples(numbered(TEXTS)).iterations(20_000).run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(quantity) = text.parse::<Quantity>() else { return false };
        let printed = quantity.to_string();
        let again: Quantity = printed.parse().unwrap_or_else(|e| panic!("{text:?} prints {printed:?}: {e}"));
        assert_eq!(again, quantity, "{text:?} prints {printed:?}");
        assert_eq!(again.to_string(), printed);
        let _ = (quantity.units(), quantity.milli(), quantity.plus(&again), quantity.minus(&again));
        true
    });
}

/// The requests that a real API server was recorded with.
fn recorded(folder: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
        })
        .collect()
}

#[test]
fn patches_end() {
    let media = |case: &Value| case["request"]["content-type"].as_str().unwrap().to_owned();
    let mut examples: Vec<(String, Vec<u8>)> = recorded("patches")
        .into_iter()
        .map(|(name, case)| {
            let mut target = case["before"].clone();
            target["metadata"].as_object_mut().unwrap().remove("managedFields");
            let pair = json!([media(&case), target, case["request"]["body"]]);
            (name, pair.to_string().into_bytes())
        })
        .collect();
    // Each operation doubles the document, or nests it once more.
    let copy = |index| json!({"op": "copy", "from": "/data", "path": format!("/data/x{index}")});
    let mut swap = vec![json!({"op": "add", "path": "/y", "value": {}})];
    swap.push(json!({"op": "move", "from": "/data", "path": "/y/data"}));
    swap.push(json!({"op": "move", "from": "/y", "path": "/data"}));
    let target = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b", "c": "d"}});
    let whole = |operations: Vec<Value>| {
        json!(["application/json-patch+json", target, operations]).to_string().into_bytes()
    };
    examples.push(("json.doubling".to_owned(), whole((0..18).map(copy).collect())));
    examples.push(("json.nesting".to_owned(), whole(vec![swap; 200].concat())));
    // What a patch may copy and move takes up to ten times its weight.
    fuzz("patch").examples(examples).allocation_base(32 << 20).run(|bytes| {
        let Ok(Value::Array(parts)) = serde_json::from_slice::<Value>(bytes) else { return false };
        let [media, target, body] = parts.as_slice() else { return false };
        let text = |name: &str| target[name].as_str().unwrap_or_default();
        let Some(resource) = by_kind(text("apiVersion"), text("kind")) else { return false };
        let mut object = target.clone();
        let done = match media.as_str() {
            Some("application/json-patch+json") => patch::json(&mut object, body),
            Some("application/merge-patch+json") => patch::merge(&mut object, body),
            _ => patch::strategic(&mut object, body, resource),
        };
        if done.is_ok() && media == "application/merge-patch+json" {
            // A merge patch asks for a state, so that asking again changes nothing.
            let mut again = object.clone();
            patch::merge(&mut again, body).unwrap();
            assert_eq!(again, object);
        }
        let _ = resource.strategy.decode(object, &mut |_| {});
        true
    });
}

#[test]
fn objects_are_normal_once_decoded() {
    let mut examples = Vec::new();
    for kind in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kinds")).unwrap()
    {
        let kind = kind.unwrap().file_name().into_string().unwrap();
        for (name, request) in recorded(&format!("kinds/{kind}")) {
            if name.ends_with(".request") {
                examples.push((format!("{kind}.{name}"), request.to_string().into_bytes()));
            }
        }
    }
    fuzz("object").examples(examples).run(|bytes| {
        let Ok(object) = serde_json::from_slice::<Value>(bytes) else { return false };
        let text = |name: &str| object[name].as_str().unwrap_or_default();
        let Some(resource) = by_kind(text("apiVersion"), text("kind")) else { return false };
        let Ok(mut object) = resource.strategy.decode(object, &mut |_| {}) else { return false };
        let again = resource.strategy.decode(object.clone(), &mut |path| panic!("{path} is not its own"));
        assert_eq!(again.as_ref(), Ok(&object));
        resource.strategy.default(&mut object);
        resource.strategy.prepare_create(&mut object);
        let _ = resource.strategy.validate(&object);
        let _ = resource.strategy.warnings(&object);
        let _ = resource.field_values(&object);
        true
    });
}

/// A field with a length, as protobuf writes it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 0x4000);
    let mut out = vec![number << 3 | 2];
    if bytes.len() >= 0x80 {
        out.push(bytes.len() as u8 | 0x80);
        out.push((bytes.len() >> 7) as u8);
    } else {
        out.push(bytes.len() as u8);
    }
    out.extend_from_slice(bytes);
    out
}

#[test]
fn protobuf_gives_objects() {
    let body = |api_version: &str, kind: &str, raw: &[u8]| {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [protobuf::MAGIC.to_vec(), field(1, &meta), field(2, raw), field(3, b""), field(4, b"")].concat()
    };
    let time = field(8, &[8, 0x80, 0x92, 0xa4, 0xc9, 6]);
    let metadata = [field(1, b"x"), field(11, &[field(1, b"app"), field(2, b"web")].concat()), time].concat();
    let data = [field(1, b"a"), field(2, b"b")].concat();
    let config = [field(1, &metadata), field(2, &data), field(3, &data)].concat();
    let port =
        [field(1, b"http"), vec![3 << 3, 80], field(4, &[vec![8, 1], field(3, b"web")].concat())].concat();
    let service = [field(1, &metadata), field(2, &[field(1, &port), field(2, &data)].concat())].concat();
    let quantity = [field(1, b"cpu"), field(2, &field(1, b"500m"))].concat();
    let container = [field(1, b"c"), field(2, b"hello:v1"), field(8, &field(1, &quantity))].concat();
    let pod = [field(1, &metadata), field(2, &field(2, &container))].concat();
    let template = [field(1, &metadata), field(2, &field(2, &container))].concat();
    let spec = [vec![1 << 3, 3], field(2, &field(1, &data)), field(3, &template)].concat();
    let deployment = [field(1, &metadata), field(2, &spec)].concat();
    let examples = [
        ("configmap", body("v1", "ConfigMap", &config)),
        ("secret", body("v1", "Secret", &[field(1, &metadata), field(2, &data)].concat())),
        ("service", body("v1", "Service", &service)),
        ("pod", body("v1", "Pod", &pod)),
        ("deployment", body("apps/v1", "Deployment", &deployment)),
        ("delete", body("v1", "DeleteOptions", &[1 << 3, 30])),
    ];
    fuzz("protobuf").examples(examples).iterations(10_000).run(|bytes| {
        let Ok(object) = protobuf::decode(bytes) else { return false };
        assert!(object["kind"].is_string());
        if let Some(resource) =
            by_kind(object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap())
        {
            let _ = resource.strategy.decode(object, &mut |_| {});
        }
        true
    });
}
