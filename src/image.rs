//! The image manifest: what an image is made of, and whether that was verified (DATA_MODEL.md, `RuntimeImageToolchain`).
//!
//! [`record`] writes it when an image is built, with the state `built`; [`verify`] tries every rule, and only if all of them hold is
//! the state `verified` and the exit code 0, so that a pipeline may tag the image. The gate reads it at run time
//! ([`crate::probe::image`]).
//!
//! The last member of the file, `hash`, is the sha256 of all others, written as JSON without white space: who edits the file by
//! hand is found out. It is no signature: whoever may write the file can also compute the hash.

use std::{collections::BTreeMap, io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{durable, hash::sha256, model::ImageState, regular};

pub mod published;
pub mod record;
pub mod verify;

/// The version of the manifest's form.
pub const SCHEMA: u32 = 1;

/// A manifest has some kilobytes.
const LARGEST: u64 = 16 * 1024 * 1024;

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`]
    pub schema: u32,
    /// `built`, or `verified`.
    pub state: ImageState,
    /// The tag of the image below.
    pub base_image: String,
    /// Node.js, as `node --version` says.
    pub node_version: String,
    /// The version of the tool of the check named `codex_cli`.
    pub codex_cli_version: String,
    /// The version of the tool of the check named `spec_kit`.
    pub spec_kit_version: String,
    /// What a missing config is made from.
    pub codex_config_template_path: String,
    /// sha256 of the template in hex.
    pub codex_config_template_hash: String,
    /// Of each tool when, what `--version` printed, and the sha256 of all of that.
    pub install_logs: Vec<String>,
    /// Of each tool the files that decide what it runs, each with its sha256 in hex.
    pub tools: BTreeMap<String, BTreeMap<String, String>>,
    /// Which worker-gate has written this.
    pub gate_version: String,
    /// When.
    pub recorded_at: Timestamp,
    /// When the rules were tried and held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// That every rule held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verified {
    /// When.
    pub at: Timestamp,
    /// Which rules there were.
    pub rules: Vec<String>,
    /// Where each package's versions were looked up.
    pub published: BTreeMap<String, String>,
}

/// Why there is no manifest to go by.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error("read it")]
    Unreadable(#[from] io::Error),
    /// It is larger than any manifest.
    #[error("read it: it is larger than 16 MiB")]
    TooLarge,
    /// It is no manifest. The position only, not the text, which may be anything.
    #[error("understand it: it is no manifest, at line {line}, column {column}")]
    NotOne {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// Its members are not those of a manifest.
    #[error("understand it: a member is missing, is not known, or has another form")]
    OtherForm,
    /// Its hash is not its own.
    #[error("trust it: its hash is not that of what it says, so it was edited after it was written")]
    Edited,
}

impl Manifest {
    /// Reads a manifest and compares its hash.
    ///
    /// # Errors
    /// When it cannot be read, is none, or was edited.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        match regular::read(path, LARGEST) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(ManifestError::TooLarge),
            Err(error) => Err(error.into()),
        }
    }

    fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        let not_one = |error: &serde_json::Error| ManifestError::NotOne { line: error.line(), column: error.column() };
        let mut value: Value = serde_json::from_slice(text).map_err(|error| not_one(&error))?;
        let hash = value.as_object_mut().and_then(|members| members.remove("hash"));
        let manifest: Self = serde_json::from_value(value).map_err(|_| ManifestError::OtherForm)?;
        if hash.as_ref().and_then(Value::as_str) != Some(&manifest.hash()) {
            return Err(ManifestError::Edited);
        }
        Ok(manifest)
    }

    /// Writes it, with its hash, for everybody to read.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        durable::replace(path, self.text().as_bytes(), 0o644)
    }

    fn text(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(members) = value.as_object_mut() {
            members.insert("hash".to_owned(), self.hash().into());
        }
        format!("{value:#}\n")
    }

    /// sha256 in hex, over its members as JSON without white space.
    pub fn hash(&self) -> String {
        // What is derived for text, times and maps with text as keys cannot fail to be written.
        sha256(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    pub(crate) fn manifest() -> Manifest {
        Manifest {
            schema: SCHEMA,
            state: ImageState::Built,
            base_image: "python:3.11-slim".into(),
            node_version: "18.20.4".into(),
            codex_cli_version: "0.169.0".into(),
            spec_kit_version: "1.2.3".into(),
            codex_config_template_path: "/etc/codex/config.toml".into(),
            codex_config_template_hash: "00".into(),
            install_logs: vec!["2026-11-22T10:00:00Z codex --version: codex-cli 0.169.0 [sha256 00]".into()],
            tools: BTreeMap::new(),
            gate_version: "0.1.0".into(),
            recorded_at: "2026-11-22T10:00:00Z".parse().unwrap(),
            verified: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_any_edit_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.json");
        manifest().write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest());
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [("\"built\"", "\"verified\""), ("0.169.0\",", "0.170.0\","), ("\"hash\"", "\"hush\"")] {
            let edited = text.replacen(from, to, 1);
            assert_ne!(edited, text, "{from}");
            assert!(Manifest::parse(edited.as_bytes()).is_err(), "{from}");
        }
        let device = Manifest::read(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(device, ManifestError::Unreadable(_)), "{device}");
        // White space is nobody's edit.
        assert!(Manifest::parse(text.replace('\n', " ").as_bytes()).is_ok());
        for other in ["", "{", "[]", "{}", "null"] {
            assert!(Manifest::parse(other.as_bytes()).is_err(), "{other}");
        }
    }
}
