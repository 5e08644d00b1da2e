//! `[profile]`

use std::path::{Component, Path as FilePath, PathBuf};

use toml::{Table, Value};

use super::{Look, written_out};
use crate::settings::{
    Enforced, OnDrift, Profile,
    path::Path,
    problem::quote,
    raw::{self, OnDrift as RawOnDrift},
};

/// Checks the profile; `None` if it is turned off.
pub(super) fn profile(raw: raw::Profile, look: &mut Look<'_>) -> Option<Profile> {
    if raw.path.is_empty() {
        return None;
    }
    let path = Path::of(["profile", "path"]);
    if let Err((what, remedy)) = location(&raw.path) {
        look.wrong([&path], format!("{} {what}", quote(&raw.path)), remedy);
    }
    written_out(&Path::of(["profile", "template"]), &raw.template, look);
    let root = Path::of(["profile", "enforce"]);
    let mut enforce = Vec::new();
    leaves(&mut Vec::new(), &root, raw.enforce, &mut enforce, look);
    if enforce.is_empty() {
        let remedy = "name a key with its value, such as { approval_policy = \"never\" }, or set profile.path to \"\"";
        look.wrong([&root, &path], "no key is enforced", remedy);
    }
    Some(Profile {
        path: raw.path,
        template: Some(raw.template).filter(|text| !text.is_empty()).map(PathBuf::from),
        enforce,
        on_drift: match raw.on_drift {
            RawOnDrift::Report => OnDrift::Report,
            RawOnDrift::Repair => OnDrift::Repair,
        },
    })
}

/// The gate writes there, so it must be plain where that is.
fn location(text: &str) -> Result<(), (&'static str, &'static str)> {
    let example = "write for example \"~/.codex/config.toml\"";
    let below_home = text.strip_prefix("~/");
    let relative = match below_home {
        Some(rest) => FilePath::new(rest),
        None if text.starts_with('/') => FilePath::new(text),
        None => return Err(("begins neither with ~/ nor with /", example)),
    };
    let components = || relative.components();
    if components().any(|part| part == Component::ParentDir) {
        return Err(("has a \"..\" in it", "write the path without it"));
    }
    if below_home.is_some() && relative.is_absolute() {
        return Err(("has an empty folder name in it", example));
    }
    let named = components().any(|part| matches!(part, Component::Normal(_)));
    if !named || text.ends_with('/') || text.ends_with("/.") {
        return Err(("names a folder", example));
    }
    Ok(())
}

/// Takes tables apart into their keys, so that each enforced key has one value to compare.
fn leaves(key: &mut Vec<String>, path: &Path, table: Table, enforce: &mut Vec<Enforced>, look: &mut Look<'_>) {
    if table.is_empty() && !key.is_empty() {
        look.wrong(
            [path],
            "the table is empty, so that nothing is enforced",
            "give it a key with a value, or remove it",
        );
    }
    for (name, value) in table {
        let path = path.key(&name);
        key.push(name);
        match value {
            Value::Table(inner) => leaves(key, &path, inner, enforce, look),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => enforce.push(Enforced { key: key.clone(), value }),
        }
        key.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_file_below_a_home_or_at_an_absolute_path() {
        for right in ["~/.codex/config.toml", "/home/celery/.codex/config.toml", "~/a..b"] {
            assert_eq!(location(right), Ok(()), "{right}");
        }
        for wrong in
            ["config.toml", "~", "~/", "~celery/x", "~/a/", "/", "~/../x", "/home/../x", "~//etc/passwd", "~/."]
        {
            assert!(location(wrong).is_err(), "{wrong} was accepted");
        }
    }
}
