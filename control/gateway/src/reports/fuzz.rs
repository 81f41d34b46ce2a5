//! What a node reports, over the corpus in `tests/corpus`.

use lichen_fuzz::Fuzz;
use serde_json::json;

use super::{decode, without_nulls};

#[test]
fn reports_are_objects_or_refused() {
    let pod = json!({ "metadata": { "name": "a", "labels": null }, "status": { "phase": "Running", "n": [1, -2, 0.5] } });
    let examples = [
        ("pod", serde_cbor::to_vec(&pod).unwrap()),
        ("pod-packed", serde_cbor::ser::to_vec_packed(&pod).unwrap()),
        ("empty", b"\xa0".to_vec()),
        ("unknown-lengths", b"\xbf\x61a\x9f\x01\xf6\xff\x61b\x7f\x61x\xff\xff".to_vec()),
    ];
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), "report").examples(examples).iterations(10_000).run(|bytes| {
        let Ok(value) = decode(bytes) else { return false };
        let value = without_nulls(value);
        assert_eq!(decode(&serde_cbor::to_vec(&value).unwrap()).unwrap().to_string(), value.to_string());
        true
    });
}
