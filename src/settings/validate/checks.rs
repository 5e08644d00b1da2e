//! `[checks.NAME]` and `[evidence]`.

use std::{collections::BTreeMap, time::Duration};

use semver::VersionReq;

use super::Look;
use crate::settings::{Check, Version, duration, path::Path, problem::quote, raw};

/// A check that ran more often would do little else.
const LEAST_EVERY: Duration = Duration::from_secs(1);

/// Checks all checks; `None` if one cannot be built.
pub(super) fn checks(
    raw: BTreeMap<String, raw::Check>,
    max_age: Duration,
    look: &mut Look<'_>,
) -> Option<BTreeMap<String, Check>> {
    let root = Path::of(["checks"]);
    if raw.is_empty() {
        look.wrong(
            [&root],
            "there is no check",
            "add one, such as [checks.codex_cli] with run = [[\"codex\", \"--version\"]]",
        );
    } else if !raw.values().any(|check| check.required) {
        look.wrong(
            [&root],
            "no check is required, so that nothing would vouch for a worker",
            "set required = true in one",
        );
    }
    let count = raw.len();
    let checks: BTreeMap<_, _> =
        raw.into_iter().filter_map(|(name, raw)| Some((name.clone(), check(&name, raw, max_age, look)?))).collect();
    (checks.len() == count).then_some(checks)
}

fn check(name: &str, raw: raw::Check, max_age: Duration, look: &mut Look<'_>) -> Option<Check> {
    let path = Path::of(["checks"]).key(name);
    let run = path.key("run");
    if raw.run.is_empty() {
        look.wrong([&run], "there is no command", "write a list of commands, such as [[\"codex\", \"--version\"]]");
    }
    for (at, command) in raw.run.iter().enumerate() {
        if command.first().is_none_or(String::is_empty) {
            let remedy = "write the program and its arguments, such as [\"codex\", \"--version\"]";
            look.wrong([&run.at(at)], "the command has no program", remedy);
        }
    }
    if raw.every < LEAST_EVERY {
        let what = format!("{} is too often", duration::text(raw.every));
        look.wrong([&path.key("every")], what, "write at least \"1s\"");
    }
    let version = match raw.version {
        Some(version) => Some(self::version(&path, version, raw.run.len(), look)?),
        None => None,
    };
    let check = Check {
        run: raw.run,
        version,
        required: raw.required,
        every: raw.every,
        timeout: raw.timeout,
        fail_after: raw.fail_after,
        pass_after: raw.pass_after,
    };
    if check.required && !check.run.is_empty() {
        outlives(&path, &check, max_age, look);
    }
    Some(check)
}

/// Evidence that ages faster than it is renewed would quarantine a worker that is fit.
fn outlives(path: &Path, check: &Check, max_age: Duration, look: &mut Look<'_>) {
    let (longest, commands) = (check.longest(), check.run.len());
    if max_age <= longest {
        let what = format!(
            "{} is not longer than {}, which {path} may take from one result to the next (every + timeout for each of {commands} commands)",
            duration::text(max_age),
            duration::text(longest),
        );
        let blamed = Path::of(["evidence", "max_age"]);
        let others = [&blamed, &path.key("every"), &path.key("timeout"), &path.key("run")];
        look.wrong(others, what, format!("write more than \"{}\", or check more often", duration::text(longest)));
    }
}

fn version(check: &Path, raw: raw::Version, commands: usize, look: &mut Look<'_>) -> Option<Version> {
    let path = check.key("version");
    let (command, require) = (path.key("command"), path.key("require"));
    if raw.command >= commands {
        let what = format!("there is no command {} in run", raw.command);
        look.wrong([&command, &check.key("run")], what, format!("count from 0; run has {commands}"));
    }
    let Some(text) = raw.require else {
        look.wrong([&require], "it is missing", "write which versions are allowed, such as \">=0.1\"");
        return None;
    };
    let example = "write comparators joined by commas, such as \">=0.1, <2\"";
    let required = match VersionReq::parse(&text) {
        Ok(required) => required,
        Err(error) => {
            look.wrong([&require], format!("{} is no version rule: {error}", quote(&text)), example);
            return None;
        }
    };
    if let Some(bare) = text.split(',').map(str::trim).find(|part| is_bare(part)) {
        // Cargo reads it as ^, npm as =: whoever wrote it may mean either.
        let remedy = format!("write \"={bare}\" for exactly this one, or \"^{bare}\" for this and compatible ones");
        look.wrong([&require], format!("{} does not say how it is to be compared", quote(bare)), remedy);
    }
    Some(Version { command: raw.command, require: required })
}

fn is_bare(comparator: &str) -> bool {
    comparator.starts_with(|c: char| c.is_ascii_digit()) && !comparator.contains(['*', 'x', 'X'])
}
