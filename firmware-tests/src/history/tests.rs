//! The checker knows good histories from bad ones.

use std::slice::from_ref;

use super::*;

const RULES: Rules = Rules { first: 1, all: true, window: Some(2) };

fn put(key: &str, value: &str) -> Step {
    Step { key: key.into(), expect: Expect::Anything, value: Some(value.into()) }
}

fn delete(key: &str) -> Step {
    Step { key: key.into(), expect: Expect::Anything, value: None }
}

fn expecting(step: Step, expect: Expect) -> Step {
    Step { expect, ..step }
}

fn wrote(began: u64, ended: u64, steps: &[Step], outcome: Outcome) -> Operation {
    Operation { began, ended, did: Did::Wrote { steps: steps.to_vec(), outcome } }
}

fn read(began: u64, ended: u64, key: &str, found: Option<(Revision, &str)>) -> Operation {
    let found = found.map(|(revision, value)| (revision, value.to_owned()));
    Operation { began, ended, did: Did::Read { key: key.into(), found } }
}

fn listed(began: u64, ended: u64, revision: Revision, found: &[(&str, Revision, &str)]) -> Operation {
    let found = found.iter().map(|(key, at, value)| ((*key).to_owned(), (*at, (*value).to_owned())));
    let did = Did::Listed { prefix: String::new(), revision, found: found.collect() };
    Operation { began, ended, did }
}

fn change(revision: Revision, key: &str, value: Option<&str>) -> Told {
    Told::Change(Change { revision, key: key.into(), value: value.map(str::to_owned) })
}

fn watched(prefix: &str, from: Revision, told: &[Told], end: End) -> Watched {
    Watched { who: "a watch".into(), prefix: prefix.into(), from, told: told.to_vec(), end }
}

fn check(expected: Result<(), Fault>, what: &str, operations: &[Operation], watches: &[Watched]) {
    let history = History { operations: operations.to_vec(), watches: watches.to_vec() };
    let found = history.check(&RULES);
    assert_eq!(found.as_ref().map(drop).map_err(|violation| violation.fault), expected, "{what}: {found:?}");
}

#[test]
fn operations_have_their_place() {
    use Outcome::{Conflict, Done, Refused, Unknown};
    let good = |what: &str, operations: &[Operation]| check(Ok(()), what, operations, &[]);
    let bad = |fault: Fault, what: &str, operations: &[Operation]| check(Err(fault), what, operations, &[]);
    let a1 = put("a", "1");
    let a2 = put("a", "2");
    let first = wrote(0, 1, std::slice::from_ref(&a1), Done(2));
    let second = wrote(2, 3, std::slice::from_ref(&a2), Done(3));
    good("nothing", &[]);
    good("one after the other", &[first.clone(), read(2, 3, "a", Some((2, "1")))]);
    good(
        "a read beside a write sees it, and another one does not",
        &[wrote(0, 5, from_ref(&a1), Done(2)), read(1, 2, "a", None), read(3, 4, "a", Some((2, "1")))],
    );
    good(
        "a write that nobody knows of never happened",
        &[wrote(0, 1, from_ref(&a1), Unknown), read(2, 3, "a", None)],
    );
    good(
        "it happened late",
        &[wrote(0, 1, from_ref(&a1), Unknown), read(2, 3, "a", None), read(4, 5, "a", Some((2, "1")))],
    );
    bad(
        Fault::Stale,
        "it came and went",
        &[wrote(0, 1, from_ref(&a1), Unknown), read(2, 3, "a", Some((2, "1"))), read(4, 5, "a", None)],
    );
    bad(Fault::Stale, "an old value", &[first.clone(), second.clone(), read(4, 5, "a", Some((2, "1")))]);
    bad(Fault::Stale, "a write that is not seen", &[first.clone(), read(2, 3, "a", None)]);
    bad(Fault::Invented, "a value from nowhere", &[first.clone(), read(2, 3, "a", Some((3, "9")))]);
    bad(
        Fault::Invented,
        "a refused write that happened",
        &[wrote(0, 1, from_ref(&a1), Refused), read(2, 3, "a", Some((2, "1")))],
    );
    bad(
        Fault::Order,
        "the later one came first",
        &[wrote(0, 1, from_ref(&a1), Done(3)), wrote(2, 3, from_ref(&a2), Done(2))],
    );
    bad(
        Fault::Order,
        "seen before it was written",
        &[listed(0, 1, 2, &[("a", 2, "1")]), wrote(2, 3, from_ref(&a1), Done(2))],
    );
    bad(
        Fault::Lost,
        "two were told the same revision",
        &[first.clone(), wrote(0, 1, from_ref(&a2), Done(2))],
    );
    bad(
        Fault::Repeated,
        "it happened twice",
        &[
            wrote(0, 1, from_ref(&a1), Unknown),
            read(2, 3, "a", Some((2, "1"))),
            read(4, 5, "a", Some((3, "1"))),
        ],
    );
    bad(Fault::Unseen, "a hole", &[first.clone(), wrote(2, 3, from_ref(&a2), Done(4))]);
    good(
        "a swap",
        &[
            first.clone(),
            wrote(2, 3, &[expecting(a2.clone(), Expect::Revision(2))], Done(3)),
            wrote(4, 5, &[expecting(put("a", "3"), Expect::Revision(2))], Conflict),
        ],
    );
    bad(
        Fault::Unexpected,
        "a swap of what was not there",
        &[first.clone(), wrote(2, 3, &[expecting(a2.clone(), Expect::Absent)], Done(3))],
    );
    bad(
        Fault::Stale,
        "a conflict with what is gone",
        &[
            first.clone(),
            second.clone(),
            wrote(4, 5, &[expecting(put("a", "3"), Expect::Revision(3))], Conflict),
        ],
    );
    let both = [a1.clone(), put("b", "1b")];
    good(
        "both or nothing",
        &[
            wrote(0, 9, &both, Done(2)),
            listed(1, 2, 1, &[]),
            listed(3, 4, 2, &[("a", 2, "1"), ("b", 2, "1b")]),
        ],
    );
    bad(Fault::Wrong, "half of it", &[wrote(0, 9, &both, Done(2)), listed(1, 2, 2, &[("a", 2, "1")])]);
    bad(Fault::Stale, "an old list", &[first.clone(), listed(2, 3, 1, &[])]);
    bad(
        Fault::Lost,
        "a deletion of what is still there",
        &[first.clone(), wrote(2, 3, &[delete("a")], Done(2))],
    );
}

#[test]
fn deletions_have_their_place() {
    use Outcome::{Done, Refused, Unknown};
    let first = wrote(0, 1, &[put("a", "1")], Done(2));
    let gone = watched("", 1, &[change(2, "a", Some("1")), change(3, "a", None)], End::Complete(3));
    let case = |expected: Result<(), Fault>, what: &str, operations: &[Operation]| {
        let operations = [std::slice::from_ref(&first), operations].concat();
        check(expected, what, &operations, std::slice::from_ref(&gone));
    };
    let delete = |began, ended, outcome| wrote(began, ended, &[delete("a")], outcome);
    case(Ok(()), "acknowledged", &[delete(2, 3, Done(3)), read(4, 5, "a", None)]);
    case(Ok(()), "and again, with nothing to do", &[delete(2, 3, Done(3)), delete(4, 5, Done(3))]);
    case(
        Ok(()),
        "the longer one did it",
        &[delete(2, 9, Done(3)), read(3, 4, "a", None), delete(5, 6, Done(3))],
    );
    case(
        Ok(()),
        "nobody knew",
        &[delete(2, 3, Unknown), read(4, 5, "a", Some((2, "1"))), read(6, 7, "a", None)],
    );
    case(Err(Fault::Invented), "nobody did it", &[]);
    case(Err(Fault::Invented), "it was refused", &[delete(2, 3, Refused)]);
    case(Err(Fault::Stale), "it is still read", &[delete(2, 3, Done(3)), read(4, 5, "a", Some((2, "1")))]);
    case(
        Err(Fault::Invented),
        "it was seen before it began",
        &[read(2, 3, "a", None), delete(4, 5, Unknown)],
    );
}

#[test]
fn watches_tell_all_of_it_once() {
    let writes = [
        wrote(0, 1, &[put("a", "1")], Outcome::Done(2)),
        wrote(2, 3, &[put("b", "2"), put("c", "3")], Outcome::Done(3)),
        wrote(4, 5, &[put("a", "4")], Outcome::Done(4)),
    ];
    let (a, b, c) = (change(2, "a", Some("1")), change(3, "b", Some("2")), change(3, "c", Some("3")));
    let last = change(4, "a", Some("4"));
    let all = [a.clone(), b.clone(), c.clone(), last.clone()];
    let case = |expected: Result<(), Fault>, what: &str, prefix: &str, from, told: &[Told], end| {
        check(expected, what, &writes, &[watched(prefix, from, told, end)]);
    };
    case(Ok(()), "everything", "", 1, &all, End::Complete(4));
    case(Ok(()), "of one key", "a", 1, &[a.clone(), last.clone()], End::Complete(4));
    case(Ok(()), "from the middle", "", 2, &all[1..], End::Complete(4));
    case(Ok(()), "cut within a transaction", "", 1, &all[..2], End::Cut);
    case(Ok(()), "progress between", "", 1, &[a.clone(), Told::Progress(2), b.clone(), c.clone()], End::Cut);
    case(Err(Fault::Gap), "the end is missing", "", 1, &all[..3], End::Complete(4));
    case(Err(Fault::Gap), "the middle is missing", "", 1, &[a.clone(), last.clone()], End::Cut);
    case(Err(Fault::Gap), "half of a transaction", "", 1, &[a.clone(), b.clone(), last.clone()], End::Cut);
    case(Err(Fault::Gap), "progress beyond", "", 1, &[a.clone(), Told::Progress(3)], End::Cut);
    case(Err(Fault::Told), "twice", "", 1, &[a.clone(), a.clone()], End::Cut);
    case(Err(Fault::Told), "again", "", 1, &[all.as_slice(), from_ref(&a)].concat(), End::Cut);
    case(Err(Fault::Told), "from before its beginning", "", 2, std::slice::from_ref(&a), End::Cut);
    case(Err(Fault::Told), "another's", "b", 1, std::slice::from_ref(&a), End::Cut);
    case(Err(Fault::Told), "back again", "", 1, &[a.clone(), Told::Progress(1)], End::Cut);
    case(Err(Fault::Lost), "another value", "", 1, &[change(2, "a", Some("9"))], End::Cut);
    case(Ok(()), "three changes behind", "", 1, &[], End::Compacted(4));
    case(Err(Fault::Compacted), "one behind", "", 3, &[], End::Compacted(4));
}
