//! What a server decides before it is a member.

use lichen_store::{MemberStatus, Role};

use super::*;

#[test]
fn others_reach_a_server_where_it_listens_or_at_its_name() {
    let check = |listen: &str, names: &[&str], expect: &str| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let config = Config { names, ..Config::new("unused") };
        assert_eq!(reachable(&config, listen.parse().unwrap()).unwrap(), expect);
    };
    check("10.0.0.7:6444", &["a.example"], "10.0.0.7:6444");
    check("0.0.0.0:6444", &["a.example", "b.example"], "a.example:6444");
    check("0.0.0.0:6444", &["10.0.0.8"], "10.0.0.8:6444");
    check("[::]:6444", &["fd00::1"], "[fd00::1]:6444");
}

#[test]
fn who_joins_is_told_where_a_member_is_that_the_cluster_does_not_know_yet() {
    let member = |id, address: &str, role| MemberStatus { id, address: address.into(), role };
    let members = vec![
        member(1, "", Role::Leader),
        member(2, "10.0.0.2:6444", Role::Voter),
        member(3, "10.0.0.3:6444", Role::Learner),
    ];
    let found = api::contacts(members, Some(1), "10.0.0.1:6444");
    let expect = [("0000000000000001", "10.0.0.1:6444"), ("0000000000000002", "10.0.0.2:6444")];
    let expect = expect.map(|(id, address)| Contact { id: id.into(), address: address.into() });
    assert_eq!(found, expect);
}
