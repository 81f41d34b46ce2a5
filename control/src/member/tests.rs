//! What a server decides before it is a member.

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
