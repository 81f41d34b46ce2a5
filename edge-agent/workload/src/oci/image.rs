//! An image on this node: its layers unpacked over each other into one directory, and beside it what the image says of how
//! it is run. Containers share it and never write to it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record;
use super::unpack::{Budget, UnpackError, unpack};
use crate::runtime::RuntimeError;

/// The largest configuration that is taken.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

const ROOT: &str = "rootfs";
const CONFIG: &str = "image.json";

/// What an image says of how it is run: the `config` of its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageConfig {
    /// Variables, `NAME=VALUE`.
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(default, deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// Arguments that a container's own take the place of.
    #[serde(default, deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// Where the program starts.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// As whom: `user`, `user:group`, names or numbers.
    #[serde(default)]
    pub user: Option<String>,
    /// The signal that asks it to end, if not SIGTERM.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

/// Builders write an empty list as `null` too.
fn nullable<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Why an image was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its configuration is no configuration of an image.
    #[error("the image's configuration: {0}")]
    Config(String),
    /// It is made for other machines.
    #[error("the image is made for {image}, this node is {node}")]
    Platform {
        /// What the image is made for.
        image: String,
        /// What this node is.
        node: String,
    },
    /// A layer.
    #[error("layer {index} of {count}: {source}")]
    Layer {
        /// Which, from 1.
        index: usize,
        /// How many there are.
        count: usize,
        /// What is wrong.
        source: UnpackError,
    },
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// What was being written.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Reads an image's configuration, as the registry has it.
pub fn config(bytes: &[u8]) -> Result<ImageConfig, ImageError> {
    #[derive(Deserialize)]
    struct Whole {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
        config: Option<ImageConfig>,
    }
    if bytes.len() > CONFIG_BYTES_MAX {
        return Err(ImageError::Config("it is too long".to_owned()));
    }
    let whole: Whole =
        serde_json::from_slice(bytes).map_err(|error| ImageError::Config(error.to_string()))?;
    let (image, node) = (format!("{}/{}", whole.os, whole.architecture), platform());
    if image != node {
        return Err(ImageError::Platform { image, node });
    }
    Ok(whole.config.unwrap_or_default())
}

/// The platform that images for this node are made for, such as `linux/arm64`.
pub fn platform() -> String {
    format!("linux/{}", architecture())
}

/// This machine's architecture, by the name that images have for it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Unpacks an image into `dir`, which appears whole and durable or not at all. Blocks on the disk.
pub fn create(
    dir: &Path,
    config: &ImageConfig,
    layers: &[PathBuf],
    mut budget: Budget,
) -> Result<(), ImageError> {
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |source| ImageError::Io { path, source }
    };
    let draft = dir.with_extension("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(io(&draft))?;
    }
    let root = draft.join(ROOT);
    fs::create_dir_all(&root).map_err(io(&root))?;
    for (index, path) in layers.iter().enumerate() {
        let layer = File::open(path).map_err(io(path))?;
        unpack(layer, &root, &mut budget).map_err(|source| ImageError::Layer {
            index: index + 1,
            count: layers.len(),
            source,
        })?;
    }
    let path = draft.join(CONFIG);
    let bytes = serde_json::to_vec(config).map_err(|error| ImageError::Config(error.to_string()))?;
    record::write(&path, &bytes).map_err(io(&path))?;
    let opened = File::open(&draft).map_err(io(&draft))?;
    rustix::fs::syncfs(&opened).map_err(io::Error::from).map_err(io(&draft))?;
    fs::rename(&draft, dir).map_err(io(dir))?;
    match dir.parent() {
        Some(parent) => File::open(parent).and_then(|parent| parent.sync_all()).map_err(io(parent)),
        None => Ok(()),
    }
}

/// Whether an image was unpacked there.
pub fn exists(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

/// An image that was unpacked.
pub(super) struct Image {
    pub(super) root: PathBuf,
    pub(super) config: ImageConfig,
}

impl Image {
    pub(super) fn open(dir: &Path) -> Result<Self, RuntimeError> {
        let bad = |reason: String| RuntimeError::BadArtifact { path: dir.display().to_string(), reason };
        let bytes = fs::read(dir.join(CONFIG)).map_err(|error| bad(format!("{CONFIG}: {error}")))?;
        let config = serde_json::from_slice(&bytes).map_err(|error| bad(format!("{CONFIG}: {error}")))?;
        let root = dir.join(ROOT);
        if root.is_dir() {
            Ok(Self { root, config })
        } else {
            Err(bad("it has no root directory".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read_as_builders_write_them() {
        let arch = architecture();
        let read = |config: &str| {
            super::config(format!(r#"{{"os":"linux","architecture":"{arch}","config":{config}}}"#).as_bytes())
        };
        assert_eq!(read("null").unwrap(), ImageConfig::default());
        assert_eq!(read("{}").unwrap(), ImageConfig::default());
        let full = r#"{"Env":["A=b"],"Entrypoint":null,"Cmd":["sh"],"WorkingDir":"/w","User":"u","StopSignal":"SIGINT",
            "Labels":{"x":"y"},"ExposedPorts":{"80/tcp":{}}}"#;
        let expect = ImageConfig {
            env: vec!["A=b".into()],
            entrypoint: vec![],
            cmd: vec!["sh".into()],
            working_dir: Some("/w".into()),
            user: Some("u".into()),
            stop_signal: Some("SIGINT".into()),
        };
        assert_eq!(read(full).unwrap(), expect);
        assert!(matches!(super::config(b"{"), Err(ImageError::Config(_))));
        assert!(matches!(super::config(&vec![b' '; CONFIG_BYTES_MAX + 1]), Err(ImageError::Config(_))));
        let other = super::config(br#"{"os":"windows","architecture":"amd64"}"#).unwrap_err();
        assert!(other.to_string().starts_with("the image is made for windows/amd64, this node is linux/"));
    }

    #[test]
    fn an_image_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("image");
        let bad = folder.path().join("bad.tar");
        fs::write(&bad, [7; 512]).unwrap();
        let error = create(&dir, &ImageConfig::default(), &[bad], Budget::default()).unwrap_err();
        assert!(error.to_string().starts_with("layer 1 of 1: the layer is damaged"), "{error}");
        assert!(!exists(&dir));
        assert!(matches!(Image::open(&dir), Err(RuntimeError::BadArtifact { .. })));
        let empty = folder.path().join("empty.tar");
        fs::write(&empty, [0; 1024]).unwrap();
        let config = ImageConfig { cmd: vec!["x".into()], ..ImageConfig::default() };
        create(&dir, &config, &[empty], Budget::default()).unwrap();
        assert!(exists(&dir));
        assert_eq!(Image::open(&dir).unwrap().config, config);
    }
}
