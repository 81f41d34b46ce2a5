//! What servers say to each other when one joins, over the corpus in `tests/corpus`.

use lichen_fuzz::Fuzz;
use serde_json::json;

use super::*;
use crate::member::Membership;

const CA: &str = "-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";

fn fuzz(name: &str) -> Fuzz {
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), name)
}

#[test]
fn requests_are_stable() {
    let request = JoinRequest { protocol: PROTOCOL, id: "abcdef".into(), secret: "0123456789abcdef".into() };
    let known = serde_json::to_value(&request).unwrap();
    let mut more = known.clone();
    more["later"] = json!([{ "deep": [1, -2, 0.5, null] }]);
    let examples = [("bare", known.to_string()), ("more", more.to_string())];
    fuzz("join-request").examples(examples).iterations(10_000).run(|bytes| {
        let Ok(request) = JoinRequest::read(bytes) else { return false };
        let sent = serde_json::to_vec(&request).unwrap();
        let again = JoinRequest::read(&sent).unwrap();
        assert_eq!(serde_json::to_vec(&again).unwrap(), sent);
        true
    });
}

#[test]
fn a_request_of_another_version_is_told_so_whatever_else_it_says() {
    for (request, words) in [
        (json!({ "protocol": PROTOCOL + 1, "ticket": 5 }), "run the same version of lichen"),
        (json!({ "protocol": "new" }), "run the same version of lichen"),
        (json!({ "id": "abcdef", "secret": "s" }), "run the same version of lichen"),
        (json!({ "protocol": PROTOCOL, "id": "abcdef" }), "missing field `secret`"),
        (json!("later"), "no request to join"),
    ] {
        let error = JoinRequest::read(request.to_string().as_bytes()).err().unwrap();
        assert!(error.contains(words), "{request}: {error}");
    }
}

#[test]
fn replies_are_believed_for_their_authority_alone() {
    let contact = Contact { id: "0000000000000007".into(), address: "10.0.0.7:6444".into() };
    let key = EncryptionKey::parse(&"07".repeat(32)).unwrap();
    let reply = JoinReply {
        protocol: PROTOCOL,
        ca: CA.into(),
        ca_key: "a key".into(),
        encryption_key: key.text(),
        members: vec![contact.clone(), contact],
    };
    let digest = lichen_pki::digest_of_pem(CA).unwrap();
    let examples = [("members", serde_json::to_vec(&reply).unwrap())];
    fuzz("join-reply").examples(examples).iterations(10_000).run(|bytes| {
        assert!(JoinReply::read(bytes, &[0; 32]).is_err());
        let Ok(found) = JoinReply::read(bytes, &digest) else { return false };
        assert_eq!(lichen_pki::digest_of_pem(&found.handover.ca_pem).unwrap(), digest);
        assert!(EncryptionKey::parse(&found.encryption_key.text()).as_ref() == Ok(&found.encryption_key));
        true
    });
}

#[test]
fn what_is_kept_of_a_membership_is_stable() {
    let contact = Contact { id: "0000000000000007".into(), address: "10.0.0.7:6444".into() };
    let examples = [Vec::new(), vec![contact]].map(|joined| {
        let membership = Membership { listen: ([0, 0, 0, 0], 6444).into(), joined };
        let name = if membership.joined.is_empty() { "first" } else { "joined" };
        (name, serde_json::to_vec_pretty(&membership).unwrap())
    });
    fuzz("membership").examples(examples).run(|bytes| {
        let Ok(membership) = Membership::parse(bytes) else { return false };
        assert_eq!(Membership::parse(&serde_json::to_vec(&membership).unwrap()).unwrap(), membership);
        true
    });
}
