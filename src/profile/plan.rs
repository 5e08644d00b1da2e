//! From a text and the enforced keys to the edits between. Pure: text in, edits out.
//!
//! Edits are spans of the text, so every byte outside them stays: comments, order, spacing, CRLF, a BOM, a missing
//! last newline. The result is parsed again and compared with what was wanted; a plan that would change anything else
//! is an error and never leaves this module.

use std::ops::Range;

use super::{
    policy::{self, SyntaxError},
    value,
};
use crate::settings::Enforced;

mod pieces;
mod place;

use pieces::Pieces;
use place::Obstacle;

/// What has to be done to a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// In the order of the text, none touching the next; empty when every enforced key is as wanted.
    pub edits: Vec<Edit>,
    /// The text after the edits.
    pub text: String,
}

impl Plan {
    /// The dotted names of the keys that are set anew, in the order of the text.
    pub fn changed(&self) -> Vec<String> {
        self.edits.iter().flat_map(|edit| &edit.changes).map(|change| change.key.clone()).collect()
    }
}

/// One span of the text and what takes its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// Bytes of the text before the edits; empty for an insertion.
    pub range: Range<usize>,
    /// What stands there afterwards.
    pub replacement: String,
    /// What that means; never empty. Insertions at one place are one edit.
    pub changes: Vec<Change>,
}

/// One key that is set.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Dotted name.
    pub key: String,
    /// `None`: it was not set.
    pub was: Option<toml::Value>,
    /// What it is afterwards.
    pub now: toml::Value,
}

/// Why the enforced keys cannot be merged into a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The text is not TOML.
    #[error("read it as TOML: {0}")]
    Syntax(#[source] SyntaxError),
    /// Setting the key would remove other keys.
    #[error("set {key}: line {line} makes {place} {found}, and replacing that would lose other settings")]
    Conflict {
        /// Dotted name of the key that is wanted.
        key: String,
        /// Dotted name of what is in the way.
        place: String,
        /// What it is, with its article.
        found: &'static str,
        /// From 1.
        line: usize,
    },
    /// The edits would change more than they should; a bug, caught before anything was written.
    #[error("plan edits that change the enforced keys and nothing else")]
    Unfaithful,
}

impl PlanError {
    /// What to do about it, as the middle of a sentence.
    pub fn remedy(&self) -> String {
        match self {
            Self::Syntax(at) => format!("mend line {}", at.line),
            Self::Conflict { line, place, .. } => format!("remove or rename {place} in line {line}"),
            Self::Unfaithful => "set the keys by hand, and report this file's shape as a bug".to_owned(),
        }
    }
}

/// Plans the edits that give every enforced key its value, here and in the profile that the text selects.
///
/// The text may begin with a BOM. When nothing needs to change, `edits` is empty and `text` is the same.
pub fn plan(text: &str, enforce: &[Enforced]) -> Result<Plan, PlanError> {
    let before = value::of_table(policy::parse(text).map_err(PlanError::Syntax)?.as_table());
    let mut work = Work { original: text, pieces: Pieces::new(text), wanted: before.clone(), before };
    for key in enforce {
        work.set(&key.key, &key.value)?;
    }
    // The selection may itself be an enforced key, so it is looked up after the edits above.
    let selected = work.wanted.get("profile").and_then(toml::Value::as_str).map(str::to_owned);
    for key in enforce {
        let shadow = selected.as_deref().and_then(|name| policy::shadow_of(&key.key, name, enforce));
        if let Some(shadow) = shadow.filter(|place| policy::lookup(&work.wanted, place).is_some()) {
            work.set(&shadow, &key.value)?;
        }
    }
    work.finish(enforce)
}

struct Work<'t> {
    original: &'t str,
    before: toml::Table,
    /// What the text must mean in the end.
    wanted: toml::Table,
    pieces: Pieces,
}

impl Work<'_> {
    /// One edit on the text as the edits before it left it: so two keys that go into the same new line, table or pair
    /// of braces need no rule of their own.
    fn set(&mut self, path: &[String], wanted: &toml::Value) -> Result<(), PlanError> {
        let text = self.pieces.text();
        let document = policy::parse(&text).map_err(|_| PlanError::Unfaithful)?;
        let edit = place::edit(&text, &document, path, wanted).map_err(|obstacle| match obstacle {
            Obstacle::Conflict { at, depth, found } => PlanError::Conflict {
                key: value::dotted(path),
                place: value::dotted(&path[..depth]),
                found,
                line: policy::position(self.original, self.pieces.original_byte(at)).0,
            },
            Obstacle::NoSpan => PlanError::Unfaithful,
        })?;
        let Some((range, replacement)) = edit else { return Ok(()) };
        assign(&mut self.wanted, path, wanted).ok_or(PlanError::Unfaithful)?;
        let was = policy::lookup(&self.before, path).cloned();
        self.pieces.splice(range, replacement, Change { key: value::dotted(path), was, now: wanted.clone() });
        Ok(())
    }

    fn finish(self, enforce: &[Enforced]) -> Result<Plan, PlanError> {
        let text = self.pieces.text();
        let document = policy::parse(&text).map_err(|_| PlanError::Unfaithful)?;
        let after = value::of_table(document.as_table());
        let as_wanted = policy::effective(&after, enforce).iter().all(policy::Effective::is_as_wanted);
        if !as_wanted || !value::same(&toml::Value::Table(after), &toml::Value::Table(self.wanted)) {
            return Err(PlanError::Unfaithful);
        }
        Ok(Plan { edits: self.pieces.into_edits(), text })
    }
}

/// Sets a value in a parsed table; `None` if something that is no table is in the way.
fn assign(root: &mut toml::Table, path: &[String], value: &toml::Value) -> Option<()> {
    let (last, tables) = path.split_last()?;
    let mut table = root;
    for part in tables {
        table = table.entry(part.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new())).as_table_mut()?;
    }
    table.insert(last.clone(), value.clone());
    Some(())
}

#[cfg(test)]
pub(in crate::profile) mod tests;
