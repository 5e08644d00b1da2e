//! Files that decide, and that everybody may write: the settings, what they name, and the tools that are checked, with every
//! folder on the way.

use std::{
    collections::BTreeMap,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Finding, Scope};
use crate::{probe::toolchain, settings::Settings};

/// Write permission for everybody.
const EVERYBODY: u32 = 0o002;
/// In such a folder everybody may make files, and only their owners may replace them.
const STICKY: u32 = 0o1000;

/// One finding for each file or folder, with one thing that depends on it.
pub(super) fn look(settings: &Settings, scope: &Scope<'_>) -> Vec<Finding> {
    let mut open = BTreeMap::new();
    let named = [
        (scope.file, "the gate's settings"),
        (settings.profile.as_ref().and_then(|profile| profile.template.as_deref()), "profile.template"),
        (Some(settings.image.manifest.as_path()), "image.manifest"),
    ];
    for (path, what) in named {
        if let Some(path) = path {
            writable(path, what, &mut open);
        }
    }
    for identity in scope.identities {
        for command in settings.checks.values().flat_map(|check| &check.run) {
            let Some(tool) = command.first() else { continue };
            for path in toolchain::chain(identity, tool) {
                writable(&path, &format!("the tool {tool}"), &mut open);
            }
        }
    }
    let finding = |(path, what): (PathBuf, String)| {
        Finding::serious(
            "world-writable",
            format!("everybody may write {}, and so decide what {what} is", path.display()),
            format!("run: chmod o-w {}", path.display()),
        )
    };
    open.into_iter().map(finding).collect()
}

/// Adds what everybody may write of this file and of the folders on its way, as written and without symlinks.
fn writable(path: &Path, what: &str, open: &mut BTreeMap<PathBuf, String>) {
    let Ok(path) = std::path::absolute(path) else { return };
    let is_there = path.symlink_metadata().is_ok();
    let physical = path.canonicalize().ok().filter(|physical| *physical != path);
    for path in [Some(path.as_path()), physical.as_deref()].into_iter().flatten() {
        for (depth, part) in path.ancestors().enumerate() {
            // A symlink's own mode means nothing; where it leads is the other path.
            let Ok(found) = part.symlink_metadata() else { continue };
            // Where the file is not, whoever may make it decides.
            let sticky_helps = is_there || depth > 1;
            if !found.is_symlink() && is_open(&found, sticky_helps) {
                open.entry(part.to_owned()).or_insert_with(|| what.to_owned());
            }
        }
    }
}

fn is_open(found: &Metadata, sticky_helps: bool) -> bool {
    let is_sticky = found.is_dir() && found.mode() & STICKY != 0;
    found.mode() & EVERYBODY != 0 && !(is_sticky && sticky_helps) && (found.is_dir() || found.is_file())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// Below a folder of its own: what is open there, without the folder.
    fn open(folder: &Path, path: &str) -> Vec<String> {
        let mut open = BTreeMap::new();
        writable(&folder.join(path), "it", &mut open);
        open.keys().filter_map(|path| Some(path.strip_prefix(folder).ok()?.display().to_string())).collect()
    }

    #[test]
    fn a_file_and_every_folder_on_its_way_count() {
        let scene = tempfile::tempdir().unwrap();
        let folder = scene.path().canonicalize().unwrap();
        let mode = |path: &str, mode| fs::set_permissions(folder.join(path), fs::Permissions::from_mode(mode)).unwrap();
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/f"), "").unwrap();
        std::os::unix::fs::symlink("a/b/f", folder.join("link")).unwrap();
        mode("a", 0o755);
        mode("a/b", 0o755);
        mode("a/b/f", 0o644);
        assert_eq!(open(&folder, "a/b/f"), [""; 0]);
        assert_eq!(open(&folder, "link"), [""; 0]);
        mode("a/b/f", 0o646);
        assert_eq!(open(&folder, "a/b/f"), ["a/b/f"]);
        mode("a", 0o777);
        assert_eq!(open(&folder, "link"), ["a", "a/b/f"]);
        mode("a", 0o1777);
        assert_eq!(open(&folder, "link"), ["a/b/f"], "in a sticky folder only the owner replaces a file");
    }

    #[test]
    fn where_a_file_is_not_whoever_may_make_it_counts() {
        let scene = tempfile::tempdir().unwrap();
        let folder = scene.path().canonicalize().unwrap();
        fs::create_dir(folder.join("a")).unwrap();
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(open(&folder, "a/none"), ["a"]);
    }
}
