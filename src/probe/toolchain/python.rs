//! The distribution that a Python script belongs to, and the virtual environment that it runs in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::small_text;

/// Hands out the manifest of the distribution that installed a script into a `bin` folder, and the module that the script
/// starts. RECORD has the hash of every file of the distribution, so another version always shows there.
pub(super) fn manifests(script: &Path, found: &mut dyn FnMut(PathBuf)) {
    let (Some(name), Some(prefix)) = (script.file_name(), script.parent().and_then(Path::parent)) else { return };
    let Some(name) = name.to_str() else { return };
    for site in site_folders(prefix) {
        for folder in listed(&site, |name| name.ends_with(".dist-info")) {
            let Some(module) = small_text(&folder.join("entry_points.txt")).and_then(|text| entry_point(&text, name))
            else {
                continue;
            };
            // The last says where an editable installation has its files.
            for manifest in ["METADATA", "RECORD", "entry_points.txt", "direct_url.json"] {
                found(folder.join(manifest));
            }
            let module = site.join(module.replace('.', "/"));
            found(if module.is_dir() { module.join("__init__.py") } else { module.with_extension("py") });
        }
    }
}

/// Hands out the pyvenv.cfg that makes an interpreter run in a virtual environment: beside it or one folder up, by the path
/// as it is called and not behind its symlink.
pub(super) fn environment(interpreter: &Path, found: &mut dyn FnMut(PathBuf)) {
    let is_python =
        interpreter.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("python"));
    if is_python {
        interpreter.ancestors().skip(1).take(2).for_each(|folder| found(folder.join("pyvenv.cfg")));
    }
}

/// Where pip and Debian put distributions below a prefix.
fn site_folders(prefix: &Path) -> Vec<PathBuf> {
    let versions = listed(&prefix.join("lib"), |name| name.starts_with("python"));
    let sites = versions.iter().flat_map(|lib| ["site-packages", "dist-packages"].map(|site| lib.join(site)));
    sites.filter(|site| site.is_dir()).collect()
}

/// The module that an entry point names, for `module:function [extras]`.
fn entry_point(text: &str, script: &str) -> Option<String> {
    let target = text.lines().find_map(|line| {
        let (name, target) = line.split_once('=')?;
        (name.trim() == script).then_some(target)
    })?;
    let module = target.split([':', '[']).next()?.trim();
    let is_module = !module.is_empty() && module.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
    (is_module && !module.starts_with('.') && !module.contains("..")).then(|| module.to_owned())
}

fn listed(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted)).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_point_names_its_module() {
        let text = "[console_scripts]\nspecify = specify_cli:main\nother=a.b.c:run [extra]\nbad = ../x:main\n";
        assert_eq!(entry_point(text, "specify").as_deref(), Some("specify_cli"));
        assert_eq!(entry_point(text, "other").as_deref(), Some("a.b.c"));
        assert_eq!(entry_point(text, "bad"), None);
        assert_eq!(entry_point(text, "none"), None);
    }
}
