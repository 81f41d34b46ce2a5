use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What the recorded bodies below were made of, field by field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

fn varint(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = join(&[field(1, api_version.as_bytes()), field(2, kind.as_bytes())]);
    join(&[MAGIC.to_vec(), field(1, &meta), field(2, raw), field(3, b""), field(4, b"")])
}

#[test]
fn every_message_fits_the_schema() {
    for (id, known) in schema().types() {
        let Some(numbers) = numbers(id, known) else {
            let unstable = [
                "ImageVolumeStatus",
                "NodeAllocatableResourceClaimStatus",
                "PodSchedulingGroup",
                "VolumeStatus",
            ];
            assert!(unstable.contains(&known.name), "{id} has no field numbers");
            continue;
        };
        for place in numbers.values() {
            match place {
                Place::Field(name) => assert!(known.fields.contains_key(name), "{id} has no field {name}"),
                Place::Inline(message) => {
                    for inner in MESSAGES[message].values() {
                        let Place::Field(name) = inner else { panic!("{message} nests") };
                        assert!(known.fields.contains_key(name), "{id} has no field {name}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_config_map() {
    let metadata = join(&[
        field(1, b"x"),
        field(2, b""),
        field(8, b""),
        varint(7, 0),
        field(11, &join(&[field(1, b"app"), field(2, b"web")])),
    ]);
    let raw = join(&[
        field(1, &metadata),
        field(2, &join(&[field(1, b"a"), field(2, b"b")])),
        field(2, &join(&[field(1, b"empty")])),
        field(3, &join(&[field(1, b"bin"), field(2, &[0, 255])])),
        varint(4, 0),
        field(15, b"unknown"),
    ]);
    assert_eq!(
        decode(&body("v1", "ConfigMap", &raw)),
        Ok(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "x", "generateName": "", "labels": {"app": "web"}},
            "data": {"a": "b", "empty": ""}, "binaryData": {"bin": "AP8="}, "immutable": false,
        }))
    );
}

#[test]
fn a_deployment() {
    let limits = field(1, &join(&[field(1, b"cpu"), field(2, &field(1, b"500m"))]));
    let probe = join(&[field(1, &field(3, &field(1, &join(&[varint(1, 0), varint(2, 80)])))), varint(2, 0)]);
    let port = join(&[field(1, b""), varint(2, 0), varint(3, 80), field(4, b"TCP")]);
    let container = join(&[
        field(1, b"c"),
        field(2, b"hello:v1"),
        field(6, &port),
        field(8, &limits),
        field(11, &probe),
        vec![0x80, 0x01, 0],
    ]);
    let volume = join(&[field(1, b"e"), field(2, &field(2, &field(1, b"")))]);
    let pod = join(&[field(1, &volume), field(2, &container), varint(11, 0)]);
    let template = join(&[field(1, &field(8, b"")), field(2, &pod)]);
    let surge = join(&[varint(1, 1), varint(2, 0), field(3, b"50%")]);
    let strategy = join(&[field(1, b""), field(2, &field(2, &surge))]);
    let spec = join(&[varint(1, 0), field(3, &template), field(4, &strategy), varint(5, 0), varint(7, 0)]);
    let raw = join(&[field(1, &field(1, b"web")), field(2, &spec), field(3, b"")]);
    assert_eq!(
        decode(&body("apps/v1", "Deployment", &raw)),
        Ok(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "status": {},
            "spec": {
                "replicas": 0,
                "strategy": {"type": "", "rollingUpdate": {"maxSurge": "50%"}},
                "template": {"metadata": {}, "spec": {
                    "volumes": [{"name": "e", "emptyDir": {"medium": ""}}],
                    "containers": [{
                        "name": "c", "image": "hello:v1",
                        "ports": [{"name": "", "containerPort": 80, "protocol": "TCP"}],
                        "resources": {"limits": {"cpu": "500m"}},
                        "readinessProbe": {"tcpSocket": {"port": 80}},
                    }],
                }},
            },
        }))
    );
}

#[test]
fn times_and_options() {
    let raw = join(&[varint(1, 0), field(4, b"Background"), field(5, b"All")]);
    assert_eq!(
        decode(&body("v1", "DeleteOptions", &raw)),
        Ok(
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background", "dryRun": ["All"]})
        )
    );
    let renewed = join(&[vec![8, 0x80, 0xa8, 0xd6, 0xb9, 0x07], vec![16, 0xc0, 0xc4, 0x07]]);
    let raw = field(2, &join(&[field(1, b"me"), field(4, &renewed)]));
    let lease = decode(&body("coordination.k8s.io/v1", "Lease", &raw)).unwrap();
    assert_eq!(lease["spec"]["renewTime"], "2033-05-18T03:33:20.000123Z");
}

#[test]
fn refusals() {
    let check = |bytes: &[u8], expect: ProtobufError| assert_eq!(decode(bytes), Err(expect));
    check(b"{}", ProtobufError::NoMagic);
    check(b"k8s\0\x0a\x7f", ProtobufError::Malformed("it ends within a field"));
    check(
        &body("v1", "Nope", b""),
        ProtobufError::UnknownKind { api_version: "v1".to_owned(), kind: "Nope".to_owned() },
    );
    check(
        &body("v1", "ConfigMap", &varint(1, 1)),
        ProtobufError::Malformed("a field has another type than its kind says"),
    );
    check(&body("v1", "ConfigMap", &[0x0f]), ProtobufError::Malformed("a field's type is unknown"));
    check(
        &body("v1", "ConfigMap", &field(1, &field(1, &[0xff]))),
        ProtobufError::Malformed("a text is not UTF-8"),
    );
    check(&body("v1", "ConfigMap", &[0xff; 11]), ProtobufError::Malformed("a number is too long"));
}

proptest! {
    #[test]
    fn any_bytes_are_no_panic(raw in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3usize) {
        let (api_version, kind) = [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Event")][kind];
        let _ = decode(&body(api_version, kind, &raw));
        let _ = decode(&raw);
    }
}
