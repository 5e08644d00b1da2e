//! The manifest of the npm package that a file belongs to, and the packages that it takes its binary from.

use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::small_text;

/// Programs of one platform package. Codex has five.
const MAX_PROGRAMS: usize = 64;
/// Codex' lie in vendor/<target>/bin.
const MAX_DEPTH: usize = 6;

/// Hands out the nearest package.json files up to the one that has a version. For a package with a binary for each
/// platform, as `@openai/codex`, these are optional dependencies: of each that is installed, the manifest and all programs.
pub(super) fn manifests(file: &Path, found: &mut dyn FnMut(PathBuf)) {
    for folder in file.ancestors().skip(1) {
        let path = folder.join("package.json");
        let Some(text) = small_text(&path) else { continue };
        found(path);
        let Ok(serde_json::Value::Object(manifest)) = serde_json::from_str(&text) else { return };
        if !manifest.contains_key("version") {
            // Only tells node how to read the files below it.
            continue;
        }
        let optional = manifest.get("optionalDependencies").and_then(serde_json::Value::as_object);
        for name in optional.into_iter().flat_map(serde_json::Map::keys) {
            if let Some(package) = installed(name, folder) {
                found(package.join("package.json"));
                programs(&package, found);
            }
        }
        return;
    }
}

/// Where node finds a package: in the nearest folder node_modules that has it.
fn installed(name: &str, from: &Path) -> Option<PathBuf> {
    // A name that leads elsewhere is none that npm installs.
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return None;
    }
    let candidates = from.ancestors().filter(|folder| !folder.ends_with("node_modules"));
    candidates
        .map(|folder| folder.join("node_modules").join(name))
        .find(|package| package.join("package.json").is_file())
}

/// All executable files of a package that are no shared libraries, the shallow ones first.
fn programs(package: &Path, found: &mut dyn FnMut(PathBuf)) {
    let Ok(package) = package.canonicalize() else { return };
    let mut left = MAX_PROGRAMS;
    // The shallow ones first: if there are too many, they are the likelier ones to be what the tool starts.
    let mut todo = VecDeque::from([(package, 0)]);
    while let Some((folder, depth)) = todo.pop_front() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let Ok(entry) = path.symlink_metadata() else { continue };
            if entry.is_dir() && depth < MAX_DEPTH && !path.ends_with("node_modules") {
                todo.push_back((path, depth + 1));
            } else if entry.is_file() && entry.permissions().mode() & 0o111 != 0 && !is_library(&path) && left > 0 {
                left -= 1;
                found(path);
            }
        }
    }
}

/// `libz.so.1` and the like, which many packages mark as executable.
fn is_library(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.split('.').skip(1).any(|part| part == "so"))
}
