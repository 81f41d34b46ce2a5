//! `src/openapi/descriptions.txt` is what the k8s-openapi crate, in the version that is built, says of each served type
//! and field. `LICHEN_WRITE_DESCRIPTIONS=1` writes it anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use lichen_api::schema::schema;
use serde_json::Value;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/openapi/descriptions.txt");

/// Where cargo keeps the sources of the types.
fn sources() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "k8s-openapi").unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("src/v1_36")
}

/// What each type's own source says: by its id, the type (`""`) and its fields as Rust has them.
fn told(folder: &Path, found: &mut BTreeMap<String, BTreeMap<String, String>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            told(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let Some(id) =
            text.lines().next().and_then(|line| line.strip_prefix("// Generated from definition "))
        else {
            continue;
        };
        let mut told = BTreeMap::new();
        let mut comment: Vec<&str> = Vec::new();
        let mut inside = false;
        for line in text.lines() {
            let trimmed = line.trim();
            if let Some(sentence) = trimmed.strip_prefix("///") {
                comment.push(sentence.strip_prefix(' ').unwrap_or(sentence));
            } else if line.starts_with("pub struct ") {
                told.insert(String::new(), std::mem::take(&mut comment).join("\\n"));
                inside = line.ends_with('{');
            } else if inside && let Some(field) = trimmed.strip_prefix("pub ") {
                let name = field.split(':').next().unwrap().replace('_', "");
                told.insert(name, std::mem::take(&mut comment).join("\\n"));
            } else if line == "}" && inside {
                break;
            }
        }
        found.insert(id.to_owned(), told);
    }
}

#[test]
fn every_description_is_that_of_the_types() {
    let mut found = BTreeMap::new();
    told(&sources(), &mut found);
    let mut expect = String::new();
    for (id, known) in schema().types() {
        let told = found.get(id).unwrap_or_else(|| panic!("{id} has no source"));
        expect.push_str(&format!("{id}\t{}\n", told[""]));
        for name in known.fields.keys() {
            // These two are constants of the type, not fields.
            if let Some(text) = told.get(&name.to_lowercase()) {
                expect.push_str(&format!("\t{name}\t{text}\n"));
            } else {
                assert!(matches!(*name, "apiVersion" | "kind"), "{id} {name} has no source");
            }
        }
    }
    if env::var_os("LICHEN_WRITE_DESCRIPTIONS").is_some() {
        fs::write(FILE, &expect).unwrap();
    }
    assert!(
        fs::read_to_string(FILE).unwrap() == expect,
        "set LICHEN_WRITE_DESCRIPTIONS=1 to write {FILE} anew"
    );
}
