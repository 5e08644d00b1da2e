//! Whether a version was ever published: the registry's own list of versions, or a list that was brought along where there is no
//! registry.

use std::{collections::BTreeMap, path::Path, time::Duration};

use crate::{
    identity::Identity,
    model::{Failure, Outcome},
    probe::{Runner, version},
    settings::Package,
};

/// A registry answers in a second or two; one that does not within this time is taken not to be there.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The command that lists a package's versions.
fn command(package: &Package) -> Vec<String> {
    let words: &[&str] = match package {
        Package::Npm(name) => &["npm", "view", name, "versions", "--json"],
        Package::Pypi(name) => &["python3", "-m", "pip", "index", "versions", name],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The versions in what that command has printed.
fn versions(package: &Package, printed: &str) -> Vec<String> {
    match package {
        // One alone is no list.
        Package::Npm(_) => match serde_json::from_str(printed) {
            Ok(serde_json::Value::Array(versions)) => {
                versions.iter().filter_map(|version| version.as_str().map(str::to_owned)).collect()
            }
            Ok(serde_json::Value::String(version)) => vec![version],
            Ok(_) | Err(_) => Vec::new(),
        },
        Package::Pypi(_) => {
            let lists = printed.lines().filter_map(|line| line.strip_prefix("Available versions:"));
            lists.flat_map(|list| list.split(',')).map(|version| version.trim().to_owned()).collect()
        }
    }
}

/// Versions by package, from a file: a package and its versions on each line, `#` before what is to be skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    file: String,
    versions: BTreeMap<String, Vec<String>>,
}

impl List {
    /// Reads the file.
    ///
    /// # Errors
    /// The system's.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        Ok(Self::parse(&path.display().to_string(), &std::fs::read_to_string(path)?))
    }

    fn parse(file: &str, text: &str) -> Self {
        let mut versions = BTreeMap::<String, Vec<String>>::new();
        for line in text.lines().map(|line| line.split('#').next().unwrap_or_default()) {
            let mut words = line.split_whitespace().map(str::to_owned);
            if let Some(package) = words.next() {
                versions.entry(package).or_default().extend(words);
            }
        }
        Self { file: file.to_owned(), versions }
    }
}

/// Looks a version up. Hands back where it was found.
///
/// # Errors
/// That it was never published, or that nobody could say so.
pub(super) async fn look_up(
    package: &Package,
    wanted: &str,
    list: Option<&List>,
    identity: &Identity,
    runner: &Runner,
) -> Result<String, Failure> {
    let (from, versions) = if let Some(list) = list {
        let versions = list.versions.get(&package.to_string()).cloned().unwrap_or_default();
        (format!("the list {}", list.file), versions)
    } else {
        let command = command(package);
        let ended = runner.run(identity, &command, TIMEOUT).await;
        let typed = command.join(" ");
        if ended.outcome != Outcome::ExitCode(0) {
            return Err(Failure {
                detail: runner.redactor().redact(&format!("`{typed}` {}", ended.detail)),
                remedy: "see that the registry can be reached, or bring its versions along: --offline LIST".to_owned(),
            });
        }
        (format!("`{typed}`"), versions(package, &ended.stdout.text()))
    };
    if versions.iter().any(|version| is_same(version, wanted)) {
        return Ok(from);
    }
    Err(Failure {
        detail: format!("{package} {wanted} is not among the {} versions that {from} has", versions.len()),
        remedy: format!("install a version of {package} that was published, and record the image again"),
    })
}

/// Whether both mean one version, however they write it. What cannot be understood is the same only as itself.
fn is_same(version: &str, wanted: &str) -> bool {
    let understood = version::find(wanted);
    !wanted.is_empty() && (version == wanted || understood.is_some() && version::find(version) == understood)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_npm_and_pip_print_them() {
        let npm = Package::Npm("x".into());
        assert_eq!(versions(&npm, "[\n \"0.1.0\",\n \"0.2.0-rc.1\"\n]"), ["0.1.0", "0.2.0-rc.1"]);
        assert_eq!(versions(&npm, "\"0.1.0\"\n"), ["0.1.0"]);
        assert!(versions(&npm, "{\"error\": {}}").is_empty() && versions(&npm, "npm ERR!").is_empty());
        let pypi = Package::Pypi("x".into());
        let printed = "specify-cli (1.2.3)\nAvailable versions: 1.2.3, 1.2.2,1.0.0\n  INSTALLED: 1.2.3\n";
        assert_eq!(versions(&pypi, printed), ["1.2.3", "1.2.2", "1.0.0"]);
        assert!(versions(&pypi, "ERROR: No matching distribution found").is_empty());
    }

    #[test]
    fn a_version_that_cannot_be_understood_is_not_the_same_as_any_other() {
        assert!(is_same("5.3.0rc1", "5.3.0-rc1") && is_same("2024-1", "2024-1"));
        assert!(!is_same("1.2.3-02", "1.2.3-01") && !is_same("", "") && !is_same("0.2.0.dev5", "0.2.0"));
    }

    #[test]
    fn a_list_has_a_package_and_its_versions_on_each_line() {
        let list = List::parse("l", "# mine\nnpm:@openai/codex 0.169.0 0.168.0\n\nnpm:@openai/codex 0.1.0 # old\n");
        assert_eq!(list.versions["npm:@openai/codex"], ["0.169.0", "0.168.0", "0.1.0"]);
        assert_eq!(list.versions.len(), 1);
    }
}
