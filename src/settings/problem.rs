//! What is wrong with settings: where it is said, which key, what was found, and what to write instead.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use super::path::Path;

/// Which layer gave a value, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The embedded defaults.
    Default,
    /// The host's name, where the setting is empty.
    HostName,
    /// A settings file; line and column count from 1, the column in characters.
    File {
        /// As it was named.
        path: PathBuf,
        /// 0 if the whole file is meant.
        line: usize,
        /// 0 if the whole file is meant.
        column: usize,
    },
    /// The variable of this name.
    Environment(String),
    /// `--set`
    Flag,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::HostName => f.write_str("host name"),
            Self::File { path, line: 0, .. } => write!(f, "{}", path.display()),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// One thing that is wrong. No secret is ever in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is said; `None` if no layer says it.
    pub place: Option<Place>,
    /// The key, as in `checks.codex_cli.every`; empty if a whole file or variable is meant.
    pub key: String,
    /// What was found, or is missing.
    pub what: String,
    /// What to write or do instead.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// Everything that is wrong; never empty. `Display` writes one problem a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// In the order of the layers, and within a file of its lines.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let line = if index == 0 { "" } else { "\n" };
            write!(f, "{line}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Who says what: the place of every value, and whether it is a table (which later layers merge into).
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<Path, Mark>);

#[derive(Debug)]
struct Mark {
    place: Place,
    table: bool,
}

impl Places {
    /// Notes where a value stands.
    pub(super) fn note(&mut self, path: Path, place: Place, table: bool) {
        self.0.insert(path, Mark { place, table });
    }

    /// Lays a later layer on top. What it replaces is forgotten with all that was below it.
    pub(super) fn overlay(&mut self, later: Self) {
        self.0.retain(|old, _| !old.upwards().any(|path| later.0.get(path).is_some_and(|mark| !mark.table)));
        self.0.extend(later.0);
    }

    /// Says that everything stands at this place.
    pub(super) fn all_at(&mut self, place: &Place) {
        for mark in self.0.values_mut() {
            mark.place = place.clone();
        }
    }

    /// The place of the value, or of the nearest table or list above it that somebody has written: a default is
    /// nowhere that a person could look.
    pub(super) fn to_blame(&self, path: &Path) -> Option<&Place> {
        let mut marks = path.upwards().filter_map(|path| self.0.get(path)).map(|mark| &mark.place);
        marks.find(|place| **place != Place::Default).or_else(|| self.of(path))
    }

    /// The place of the value, or of the nearest table or list above it.
    pub(super) fn of(&self, path: &Path) -> Option<&Place> {
        path.upwards().find_map(|path| self.0.get(path)).map(|mark| &mark.place)
    }
}

/// Problems as they are found, with the paths that they spoil for later checks.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<Problem>,
    spoilt: BTreeSet<Path>,
    /// How many more there are than are kept.
    more: usize,
}

/// More problems than anybody reads; a file that is no settings file at all has one a line.
const MOST: usize = 1000;

impl Findings {
    /// A value that cannot be used at all. Checks that would look at it are not made.
    pub(super) fn unusable(
        &mut self,
        place: Option<Place>,
        path: &Path,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        // The root stands for a file, a variable or a flag as a whole; what the other layers say can still be judged.
        if *path != Path::default() {
            self.spoilt.insert(path.clone());
        }
        self.push(Problem { place, key: path.to_string(), what: what.into(), remedy: remedy.into() });
    }

    /// A value that is wrong together with others; `paths` are all that the check looked at, the one to blame first.
    pub(super) fn wrong<const N: usize>(
        &mut self,
        places: &Places,
        paths: [&Path; N],
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        // Paths below one follow it in their order, so that the next one tells.
        let below = |path: &Path| self.spoilt.range::<Path, _>(path..).next().is_some_and(|next| path.holds(next));
        let spoilt = |path: &&Path| path.upwards().any(|above| self.spoilt.contains(above)) || below(path);
        let Some(blamed) = paths.first() else { return };
        if paths.iter().any(spoilt) {
            return;
        }
        let place = places.to_blame(blamed).cloned();
        self.push(Problem { place, key: blamed.to_string(), what: what.into(), remedy: remedy.into() });
    }

    fn push(&mut self, problem: Problem) {
        if self.problems.len() < MOST { self.problems.push(problem) } else { self.more += 1 }
    }

    /// Whether nothing has been found.
    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The sorted list, or nothing if there is none.
    pub(super) fn into_problems(mut self) -> Option<Problems> {
        self.problems.sort();
        self.problems.dedup();
        if self.more > 0 {
            let what = format!("{} more problems are not listed", self.more);
            let remedy = "mend these first".to_owned();
            self.problems.push(Problem { place: None, key: String::new(), what, remedy });
        }
        (!self.problems.is_empty()).then_some(Problems(self.problems))
    }
}

/// Text from settings as a message shows it: quoted, without control characters, and not endless. A URL that stands
/// in the wrong place is still not shown with its password.
pub(super) fn quote(text: &str) -> String {
    const LONGEST: usize = 80;
    if let Some((scheme, rest)) = text.split_once("://")
        && let Some((_, host)) = rest.rsplit_once('@')
    {
        return quote(&format!("{scheme}:***@{host}"));
    }
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", text.split_at(end).0),
        None => format!("{text:?}"),
    }
}
