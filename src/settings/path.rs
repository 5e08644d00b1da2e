//! Where in the settings a value stands: `checks.codex_cli.every`, `workers[0].lane`.

use std::{borrow::Borrow, fmt, sync::Arc};

/// One step down.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Into a table.
    Key(Arc<str>),
    /// Into a list, from 0.
    Index(usize),
}

/// The steps from the root to a value; written as TOML writes keys, with indexes in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Path(Vec<Step>);

impl Path {
    /// The path of these keys.
    pub(super) fn of<const N: usize>(keys: [&str; N]) -> Self {
        Self(keys.into_iter().map(|key| Step::Key(Arc::from(key))).collect())
    }

    /// How many steps it has.
    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }

    /// The path of a key in this table.
    pub(super) fn key(&self, key: &str) -> Self {
        self.with(Step::Key(Arc::from(key)))
    }

    /// The path of an element of this list.
    pub(super) fn at(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// This path and every path above it, itself first; as steps, which maps and sets of paths can be asked for.
    pub(super) fn upwards(&self) -> impl Iterator<Item = &[Step]> {
        (0..=self.0.len()).rev().filter_map(|length| self.0.get(..length))
    }

    /// Whether `other` is this path or below it.
    pub(super) fn holds(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }
}

impl Borrow<[Step]> for Path {
    fn borrow(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) => {
                    let dot = if index == 0 { "" } else { "." };
                    write!(f, "{dot}{}", Key(key))?;
                }
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// One key, quoted where TOML wants quotes.
struct Key<'a>(&'a str);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !self.0.is_empty() && self.0.chars().all(bare) { f.write_str(self.0) } else { write!(f, "{:?}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_toml_writes_keys() {
        let path = Path::of(["workers"]).at(0).key("env").key("A B");
        assert_eq!(path.to_string(), r#"workers[0].env."A B""#);
        assert_eq!(path.upwards().map(<[Step]>::len).collect::<Vec<_>>(), [4, 3, 2, 1, 0]);
        assert!(Path::of(["workers"]).holds(&path));
        assert!(!path.holds(&Path::of(["workers"])));
    }
}
