//! Who a container's process is: numbers out of an image's `user`, its `/etc/passwd` and `/etc/group`.

use std::io::Read;
use std::path::Path;

use crate::container::Process;
use crate::runtime::RuntimeError;

use super::unpack::open_in_root;

/// The largest account file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A user with all its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// The user of a container: what its specification says, else what its image says.
pub(super) fn find(process: &Process, wanted: Option<&str>, root: &Path) -> Result<User, RuntimeError> {
    // What can't be read knows nobody.
    let read = |path: &str| -> String {
        let mut text = Vec::new();
        let opened = open_in_root(root, path.as_ref());
        let read = opened.and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text));
        read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    };
    resolve(process, wanted.unwrap_or_default(), &read("etc/passwd"), &read("etc/group"))
}

fn resolve(process: &Process, wanted: &str, passwd: &str, group: &str) -> Result<User, RuntimeError> {
    let (name, group_name) = wanted.split_once(':').unwrap_or((wanted, ""));
    let unknown = |what: &str, name: &str| {
        RuntimeError::InvalidSpec(format!("the image's {what} {name:?} is not known in it: set a number"))
    };
    let uid = match (process.user, name) {
        (Some(uid), _) => uid,
        (None, "") => 0,
        (None, name) => match name.parse() {
            Ok(uid) => uid,
            Err(_) => number(passwd, 2, |fields| fields[0] == name).ok_or_else(|| unknown("user", name))?,
        },
    };
    // A group that was given goes with the user that was given beside it only.
    let given = if process.user.is_some() { "" } else { group_name };
    let gid = match (process.group, given) {
        (Some(gid), _) => gid,
        (None, "") => number(passwd, 3, |fields| fields[2] == uid.to_string()).unwrap_or(0),
        (None, name) => match name.parse() {
            Ok(gid) => gid,
            Err(_) => number(group, 2, |fields| fields[0] == name).ok_or_else(|| unknown("group", name))?,
        },
    };
    Ok(User { uid, gid, groups: process.groups.clone() })
}

/// A number out of the first line that fits.
fn number(file: &str, field: usize, fits: impl Fn(&[&str]) -> bool) -> Option<u32> {
    file.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.len() > 2 && fits(&fields) { fields.get(field)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names() {
        let passwd = "root:x:0:0::/root:/bin/sh\nnonsense\nweb:x:33:34::/:/bin/sh\n";
        let group = "root:x:0:\nweb:x:34:\nmail:x:8:web\n";
        let check = |user: Option<u32>, group_id: Option<u32>, wanted: &str, expect: Option<(u32, u32)>| {
            let process = Process { user, group: group_id, groups: vec![9], ..Process::default() };
            let found = resolve(&process, wanted, passwd, group).ok();
            let expect = expect.map(|(uid, gid)| User { uid, gid, groups: vec![9] });
            assert_eq!(found, expect, "{wanted} {user:?} {group_id:?}");
        };
        check(None, None, "", Some((0, 0)));
        check(None, None, "web", Some((33, 34)));
        check(None, None, "33", Some((33, 34)));
        check(None, None, "web:mail", Some((33, 8)));
        check(None, None, "5:6", Some((5, 6)));
        check(None, None, "77", Some((77, 0)));
        check(None, None, "nobody", None);
        check(None, None, "web:nogroup", None);
        check(Some(33), None, "root:root", Some((33, 34)));
        check(Some(1), Some(2), "web", Some((1, 2)));
        check(None, Some(7), "web", Some((33, 7)));
    }
}
