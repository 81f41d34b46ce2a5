//! A pod's volumes as directories: planned purely, then written so that a reader sees the old files or the new
//! ones and never a mixture.
//!
//! A volume of files has the shape that Kubernetes gives it: `..data` is a link to a directory of one version,
//! and each visible name is a link through `..data`. An update makes a new directory and replaces one link.
//!
//! Deliberately absent: volumes that need a driver, and service account tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use lichen_api::k8s::api::core::v1::{Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume};

use crate::facts::{self, Facts};
use crate::objects::Objects;

/// The link to the present version.
const DATA: &str = "..data";
/// The link that takes its place.
const DATA_NEW: &str = "..data_new";
/// What versions' directories begin with.
const VERSION_PREFIX: &str = "..v";
/// The mode of files of which nobody says another.
const MODE_DEFAULT: i32 = 0o644;

/// A volume that is to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) content: Content,
}

/// What a volume holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Whatever containers put there.
    Empty,
    /// These files, by relative path, with their modes.
    Files(BTreeMap<String, File>),
}

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
}

/// The pod's volumes; the error is the message of the event.
pub(crate) fn plan(pod: &Pod, objects: &Objects, facts: &Facts) -> Result<Vec<Planned>, String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .map(|volume| {
            let content = content(pod, volume, objects, facts);
            let content = content
                .map_err(|why| format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name))?;
            Ok(Planned { name: volume.name.clone(), content })
        })
        .collect()
}

/// Whether a pod's volumes can change while it runs.
pub(crate) fn can_change(pod: &Pod) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|v| {
        v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
    })
}

fn content(pod: &Pod, volume: &Volume, objects: &Objects, facts: &Facts) -> Result<Content, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut files = BTreeMap::new();
    if volume.empty_dir.is_some() {
        return Ok(Content::Empty);
    } else if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        let from = Source { kind: "configmap", name: &source.name, optional: source.optional == Some(true) };
        add(&mut files, &from, config_map(objects, namespace, &source.name), source.items.as_deref(), mode)?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let from = Source { kind: "secret", name, optional: source.optional == Some(true) };
        add(&mut files, &from, secret(objects, namespace, name), source.items.as_deref(), mode)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        downward(&mut files, pod, source.items.as_deref(), facts, mode)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(MODE_DEFAULT);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let optional = source.optional == Some(true);
                let from = Source { kind: "configmap", name: &source.name, optional };
                let data = config_map(objects, namespace, &source.name);
                add(&mut files, &from, data, source.items.as_deref(), mode)?;
            } else if let Some(source) = &source.secret {
                let from =
                    Source { kind: "secret", name: &source.name, optional: source.optional == Some(true) };
                let data = secret(objects, namespace, &source.name);
                add(&mut files, &from, data, source.items.as_deref(), mode)?;
            } else if let Some(source) = &source.downward_api {
                downward(&mut files, pod, source.items.as_deref(), facts, mode)?;
            } else {
                return Err("a projected source of this kind is not supported on this node".to_owned());
            }
        }
    } else {
        return Err("volumes of this kind are not supported on this node".to_owned());
    }
    Ok(Content::Files(files))
}

type Data = BTreeMap<String, Vec<u8>>;

fn config_map(objects: &Objects, namespace: &str, name: &str) -> Option<Data> {
    let map = objects.config_maps.get(&format!("{namespace}/{name}"))?;
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    Some(text.chain(binary).collect())
}

fn secret(objects: &Objects, namespace: &str, name: &str) -> Option<Data> {
    let secret = objects.secrets.get(&format!("{namespace}/{name}"))?;
    Some(secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect())
}

struct Source<'a> {
    kind: &'a str,
    name: &'a str,
    optional: bool,
}

/// Adds the keys of a ConfigMap or Secret: all of them, or those that are named.
fn add(
    files: &mut BTreeMap<String, File>,
    from: &Source<'_>,
    data: Option<Data>,
    items: Option<&[KeyToPath]>,
    mode: i32,
) -> Result<(), String> {
    let Some(data) = data else {
        if from.optional {
            return Ok(());
        }
        return Err(format!("{} {:?} not found", from.kind, from.name));
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in data {
            files.insert(relative(&key)?, File { bytes, mode: bits(mode) });
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => {
                let mode = bits(item.mode.unwrap_or(mode));
                files.insert(relative(&item.path)?, File { bytes: bytes.clone(), mode });
            }
            None if from.optional => {}
            None => {
                let kind = if from.kind == "secret" { "secret" } else { "config" };
                return Err(format!("{} references non-existent {kind} key: {}", from.kind, item.key));
            }
        }
    }
    Ok(())
}

fn downward(
    files: &mut BTreeMap<String, File>,
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    facts: &Facts,
    mode: i32,
) -> Result<(), String> {
    for item in items.into_iter().flatten() {
        let text = if let Some(field) = &item.field_ref {
            facts::field(pod, facts, &field.field_path)?
        } else if let Some(resource) = &item.resource_field_ref {
            facts::resource(pod, &Container::default(), facts, resource)?
        } else {
            return Err(format!("the downward API file {:?} has no source", item.path));
        };
        let file = File { bytes: text.into_bytes(), mode: bits(item.mode.unwrap_or(mode)) };
        files.insert(relative(&item.path)?, file);
    }
    Ok(())
}

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o777
}

/// A path that stays inside its volume.
fn relative(path: &str) -> Result<String, String> {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !inside || path.starts_with("..") {
        return Err(format!("the path {path:?} does not stay inside the volume"));
    }
    Ok(path.to_owned())
}

/// Makes a pod's volumes what they should be, below `root`. Blocks on the disk.
pub(crate) fn write(root: &Path, planned: &[Planned]) -> io::Result<()> {
    for volume in planned {
        let dir = root.join(&volume.name);
        fs::create_dir_all(&dir)?;
        if let Content::Files(files) = &volume.content {
            write_files(&dir, files)?;
        }
    }
    Ok(())
}

fn write_files(dir: &Path, files: &BTreeMap<String, File>) -> io::Result<()> {
    let old = fs::read_link(dir.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| holds(&dir.join(old), files)) {
        return Ok(());
    }
    let version = (0u32..)
        .map(|n| format!("{VERSION_PREFIX}{n}"))
        .find(|name| !dir.join(name).exists())
        .unwrap_or_else(|| VERSION_PREFIX.to_owned());
    let target = dir.join(&version);
    fs::create_dir(&target)?;
    for (path, file) in files {
        let path = target.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // The file is its owner's alone until it has its own mode.
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        io::Write::write_all(&mut options.write(true).create_new(true).open(&path)?, &file.bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    let new = dir.join(DATA_NEW);
    if new.symlink_metadata().is_ok() {
        fs::remove_file(&new)?;
    }
    symlink(&version, &new)?;
    fs::rename(&new, dir.join(DATA))?;
    let visible: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &visible {
        let link = dir.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(VERSION_PREFIX) && *name != *version {
            fs::remove_dir_all(entry.path())?;
        } else if !name.starts_with("..") && !visible.contains(&*name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a version's directory holds exactly these files.
fn holds(dir: &Path, files: &BTreeMap<String, File>) -> bool {
    let mut found = 0;
    let mut dirs = vec![PathBuf::new()];
    while let Some(below) = dirs.pop() {
        let Ok(entries) = fs::read_dir(dir.join(&below)) else { return false };
        for entry in entries {
            let Ok(entry) = entry else { return false };
            let path = below.join(entry.file_name());
            let Ok(meta) = entry.metadata() else { return false };
            if meta.is_dir() {
                dirs.push(path);
                continue;
            }
            let Some(file) = path.to_str().and_then(|path| files.get(path)) else { return false };
            if meta.permissions().mode() & 0o777 != file.mode || meta.len() != file.bytes.len() as u64 {
                return false;
            }
            match fs::read(dir.join(&path)) {
                Ok(bytes) if bytes == file.bytes => found += 1,
                _ => return false,
            }
        }
    }
    found == files.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn planned(volume: Value, data: Option<Value>) -> Result<Vec<Planned>, String> {
        let mut objects = Objects::default();
        if let Some(data) = data {
            let body = serde_cbor::to_vec(&json!({ "data": data })).expect("encodes");
            objects.put("ConfigMap", "ns/cm", &body).expect("reads");
            let body = serde_cbor::to_vec(&json!({ "data": { "k": "aGk=" } })).expect("encodes");
            objects.put("Secret", "ns/s", &body).expect("reads");
        }
        let mut volume = volume;
        volume["name"] = json!("v");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns", "labels": { "a": "b" } },
            "spec": { "containers": [], "volumes": [volume] },
        }))
        .expect("a pod");
        plan(&pod, &objects, &Facts::default())
    }

    fn show(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("reads")
            .map(|e| e.expect("reads").file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        let read = |name: &String| fs::read_to_string(dir.join(name)).unwrap_or_else(|_| "dir".into());
        names.iter().map(|name| format!("{name}={}", read(name))).collect()
    }

    #[test]
    fn files_follow_their_source() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("v");
        let source = || json!({ "configMap": { "name": "cm", "defaultMode": 0o440 } });
        let put = |data: Value| {
            write(root.path(), &planned(source(), Some(data)).expect("plans")).expect("writes");
        };
        put(json!({ "a": "1", "b": "2" }));
        assert_eq!(show(&dir), ["a=1", "b=2"]);
        let mode = fs::metadata(dir.join("a")).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o440);
        let version = fs::read_link(dir.join(DATA)).expect("a link");
        put(json!({ "a": "1", "b": "2" }));
        assert_eq!(fs::read_link(dir.join(DATA)).expect("a link"), version, "nothing changed");
        put(json!({ "b": "3", "c": "4" }));
        assert_eq!(show(&dir), ["b=3", "c=4"]);
        let versions = fs::read_dir(&dir).expect("reads").filter(|e| {
            e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with(VERSION_PREFIX))
        });
        assert_eq!(versions.count(), 1);
    }

    #[test]
    fn nested_paths_and_projections() {
        let root = tempfile::tempdir().expect("a directory");
        let volume = json!({ "projected": { "sources": [
            { "configMap": { "name": "cm", "items": [{ "key": "a", "path": "x/y" }] } },
            { "secret": { "name": "s", "items": [{ "key": "k", "path": "k", "mode": 0o400 }] } },
            { "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
        ] } });
        let planned = planned(volume, Some(json!({ "a": "1" }))).expect("plans");
        write(root.path(), &planned).expect("writes");
        let dir = root.path().join("v");
        assert_eq!(show(&dir), ["k=hi", "labels=a=\"b\"", "x=dir"]);
        assert_eq!(fs::read_to_string(dir.join("x/y")).expect("reads"), "1");
        write(root.path(), &planned).expect("writes again");
    }

    #[test]
    fn what_is_missing_is_named() {
        let check = |volume: Value, expect: &str| {
            let error = planned(volume, Some(json!({ "a": "1" }))).expect_err("is missing");
            assert_eq!(error, format!("MountVolume.SetUp failed for volume \"v\" : {expect}"));
        };
        check(json!({ "configMap": { "name": "no" } }), "configmap \"no\" not found");
        check(json!({ "secret": { "secretName": "no" } }), "secret \"no\" not found");
        check(
            json!({ "configMap": { "name": "cm", "items": [{ "key": "z", "path": "z" }] } }),
            "configmap references non-existent config key: z",
        );
        check(
            json!({ "configMap": { "name": "cm", "items": [{ "key": "a", "path": "../z" }] } }),
            "the path \"../z\" does not stay inside the volume",
        );
        check(json!({ "hostPath": { "path": "/" } }), "volumes of this kind are not supported on this node");
        let optional = json!({ "configMap": { "name": "no", "optional": true } });
        let empty = vec![Planned { name: "v".into(), content: Content::Files(BTreeMap::new()) }];
        assert_eq!(planned(optional, None), Ok(empty));
    }

    #[test]
    fn an_empty_dir_keeps_what_is_in_it() {
        let root = tempfile::tempdir().expect("a directory");
        let planned = planned(json!({ "emptyDir": {} }), None).expect("plans");
        write(root.path(), &planned).expect("writes");
        fs::write(root.path().join("v/kept"), "x").expect("writes");
        write(root.path(), &planned).expect("writes again");
        assert_eq!(show(&root.path().join("v")), ["kept=x"]);
    }
}
