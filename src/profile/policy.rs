//! What a profile's text says about the enforced keys. Pure: nothing here opens a file.

use std::collections::BTreeMap;

use serde_json::json;
use sha2::{Digest, Sha256};
use toml_edit::Document;

use super::value;
use crate::{hash, settings::Enforced};

/// The file's text is not TOML. It names the place and the rule, never the text itself, which may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct SyntaxError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What the parser says.
    pub message: String,
}

/// What one enforced key is, and where.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Effective {
    /// The dotted name of the enforced key.
    pub(super) key: String,
    /// The place that decides: the key itself, or the same key below the selected `profiles.x`.
    pub(super) decided_by: Vec<String>,
    /// `None`: not set.
    pub(super) value: Option<toml::Value>,
    /// What it must be.
    pub(super) wanted: toml::Value,
}

impl Effective {
    pub(super) fn is_as_wanted(&self) -> bool {
        self.value.as_ref().is_some_and(|value| value::same(value, &self.wanted))
    }

    /// One clause for people.
    pub(super) fn complaint(&self) -> String {
        let is = self.value.as_ref().map_or_else(|| "not set".to_owned(), value::shown);
        let place = value::dotted(&self.decided_by);
        let by = if place == self.key {
            String::new()
        } else {
            format!(" (by {}, which the file selects)", value::dotted_briefly(&self.decided_by, LONGEST_NAME))
        };
        format!("{} is {is}{by} and must be {}", self.key, value::literal(&self.wanted))
    }
}

/// Parses the text; a BOM is allowed.
pub(super) fn parse(text: &str) -> Result<Document<&str>, SyntaxError> {
    Document::parse(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        // Only the first line: some messages go on with the text that was found.
        let message = error.message().lines().next().unwrap_or("not TOML").to_owned();
        SyntaxError { line, column, message }
    })
}

/// Line and column of a byte, both from 1.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let line = before.split(|b| *b == b'\n').count();
    (line, String::from_utf8_lossy(&before[line_start..]).trim_start_matches('\u{feff}').chars().count() + 1)
}

/// The effective value of every enforced key, in the settings' order.
///
/// Codex releases before 0.169 let `profile = "x"` make `[profiles.x]` win over the top level, so a selected profile
/// that sets an enforced key decides it.
pub(super) fn effective(root: &toml::Table, enforce: &[Enforced]) -> Vec<Effective> {
    let selected = root.get("profile").and_then(toml::Value::as_str);
    enforce
        .iter()
        .map(|wanted| {
            let shadow = selected.and_then(|name| {
                let place = shadow_of(&wanted.key, name, enforce)?;
                Some((lookup(root, &place)?.clone(), place))
            });
            let (value, decided_by) = match shadow {
                Some((value, place)) => (Some(value), place),
                None => (lookup(root, &wanted.key).cloned(), wanted.key.clone()),
            };
            Effective { key: value::dotted(&wanted.key), decided_by, value, wanted: wanted.value.clone() }
        })
        .collect()
}

/// Where the selected profile would say otherwise. The selection itself and the profiles have no such place, nor has a
/// key for which the settings enforce that very place with a value of its own.
pub(super) fn shadow_of(key: &[String], selected: &str, enforce: &[Enforced]) -> Option<Vec<String>> {
    let outermost = key.first()?;
    if outermost == "profile" || outermost == "profiles" {
        return None;
    }
    let place: Vec<_> = ["profiles", selected].into_iter().map(str::to_owned).chain(key.iter().cloned()).collect();
    let enforced_itself = enforce.iter().any(|other| other.key == place);
    (!enforced_itself).then_some(place)
}

/// The value at a path of tables.
pub(super) fn lookup<'t>(root: &'t toml::Table, path: &[String]) -> Option<&'t toml::Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(root.get(first)?, |value, part| value.as_table()?.get(part))
}

/// sha256, in hex, over the UTF-8 bytes of this JSON without spaces: an array with one `[key, value]` for every
/// enforced key, sorted by key. `key` is the dotted name with TOML's quotes where it needs them; `value` is the
/// effective value in the form of [`value::canonical`], or null where the key is not set. For
/// `approval_policy = "never"` it is the hash of `[["approval_policy","never"]]`.
pub(super) fn policy_hash(effective: &[Effective]) -> String {
    let mut pairs: Vec<_> = effective.iter().collect();
    pairs.sort_by(|a, b| a.key.cmp(&b.key));
    let pairs: serde_json::Value =
        pairs.into_iter().map(|e| json!([e.key, e.value.as_ref().map(value::canonical)])).collect();
    hash::sha256(pairs.to_string().as_bytes())
}

/// A longer name of a key is cut off: it is told with every event, and the file's author chooses it.
const LONGEST_NAME: usize = 256;

/// So many other keys are named, with so many bytes in all. A config has some dozens of them.
const MOST_NAMES: usize = 1000;
const MOST_NAME_BYTES: usize = 64 * 1024;

/// Stands for all keys beyond that. No key has this name: it would have quotes.
const OTHERS: &str = "\u{2026} and others";

/// All keys that are not enforced, of everything that is not a table, and of empty tables: the dotted name of each, and the
/// sha256 of its place and value in hex. Keys inside an array of tables are named once, without an index. Keys whose names
/// are the same once they are cut off, and those for which there is no room, share one entry each. Takes time and memory
/// in proportion to the file.
pub(super) fn extra_settings(root: &toml::Table, enforce: &[Enforced]) -> BTreeMap<String, String> {
    let mut extras = Extras { enforce, path: Vec::new(), found: BTreeMap::new(), bytes: 0 };
    for (key, value) in root {
        extras.collect(key, value, &Sha256::new());
    }
    extras.found.into_iter().map(|(name, hash)| (name, hash::hex(&hash.finalize()))).collect()
}

struct Extras<'t> {
    enforce: &'t [Enforced],
    path: Vec<&'t str>,
    found: BTreeMap<String, Sha256>,
    /// How long the names in `found` are together.
    bytes: usize,
}

impl<'t> Extras<'t> {
    /// `above` has taken in the path to the table that holds the key, so that no key needs its whole name to be hashed.
    fn collect(&mut self, key: &'t str, value: &'t toml::Value, above: &Sha256) {
        self.path.push(key);
        let mut place = above.clone();
        take_in(&mut place, key);
        if !self.enforce.iter().any(|e| e.key == self.path) {
            let tables: Vec<&toml::Table> = match value {
                toml::Value::Table(table) => vec![table],
                toml::Value::Array(items) if items.iter().all(toml::Value::is_table) => {
                    items.iter().filter_map(toml::Value::as_table).collect()
                }
                toml::Value::Array(_)
                | toml::Value::String(_)
                | toml::Value::Integer(_)
                | toml::Value::Float(_)
                | toml::Value::Boolean(_)
                | toml::Value::Datetime(_) => Vec::new(),
            };
            if tables.iter().all(|table| table.is_empty()) {
                let hash = self.entry();
                hash.update(place.clone().finalize());
                take_in(hash, &value::canonical(value).to_string());
            }
            for (key, value) in tables.into_iter().flatten() {
                self.collect(key, value, &place);
            }
        }
        self.path.pop();
    }

    /// Where the value at the path is taken in.
    fn entry(&mut self) -> &mut Sha256 {
        let mut name = value::dotted_briefly(&self.path, LONGEST_NAME);
        if !self.found.contains_key(&name) {
            let has_room = self.found.len() < MOST_NAMES && self.bytes + name.len() <= MOST_NAME_BYTES;
            if has_room {
                self.bytes += name.len();
            } else {
                OTHERS.clone_into(&mut name);
            }
        }
        self.found.entry(name).or_default()
    }
}

/// With its length in front, no text can pass for two.
fn take_in(hash: &mut Sha256, text: &str) {
    hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
    hash.update(text);
}
