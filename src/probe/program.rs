//! Finds the file that a command's first word means, as the user that will run it would.

use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::identity::Identity;

/// Where a program is, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Located {
    /// A regular file. The user may still be refused: permissions beyond the mode bits show only at the start.
    At(PathBuf),
    /// Nothing of that name.
    Nowhere,
}

/// Looks the program up: a name with a slash is a path from the home, any other is sought on the identity's PATH.
///
/// The first file that the user may run wins; if there are only files that it may not run, the first of them, so that
/// the start reports why. The gate may be root and see more than the user: every folder on the way is looked at too.
pub(crate) fn locate(name: &str, identity: &Identity) -> Located {
    if name.contains('/') {
        let path = identity.home.join(name);
        return if path.metadata().is_ok() { Located::At(path) } else { Located::Nowhere };
    }
    let who = identity.who();
    let mut refused = None;
    // Relative and empty entries mean "wherever you are", which is no place to take a program from.
    for folder in std::env::split_paths(&identity.path).filter(|folder| folder.is_absolute()) {
        let path = folder.join(name);
        if path.metadata().is_ok_and(|found| found.is_file()) {
            if who.may_run(&path) {
                return Located::At(path);
            }
            refused.get_or_insert(path);
        }
    }
    refused.map_or(Located::Nowhere, Located::At)
}

/// Whether the mode bits let the identity run the file, or enter the folder.
pub(crate) fn may_run(identity: &Identity, path: &Path) -> bool {
    identity.who().may_run(path)
}

/// Whether the identity may enter its home; checks start there.
pub(crate) fn may_enter_home(identity: &Identity) -> bool {
    identity.home.metadata().is_ok_and(|home| home.is_dir()) && may_run(identity, &identity.home)
}

/// What a script names in its first line; `None` if it is no script, or cannot be read.
pub(crate) fn interpreter(script: &Path) -> Option<PathBuf> {
    let line = first_line(script)?;
    let name = line.trim_ascii().split(u8::is_ascii_whitespace).next().filter(|name| !name.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(name)))
}

/// A script's first line after `#!`; `None` if it is no script, or cannot be read.
pub(crate) fn first_line(script: &Path) -> Option<Vec<u8>> {
    // Nobody has to write to a pipe that lies where a program should: opening it could wait for ever.
    if !script.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    // The kernel looks at no more than this.
    File::open(script).ok()?.take(256).read_to_end(&mut head).ok()?;
    head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next().map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_is_the_first_word_of_a_scripts_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        for (text, expected) in [
            ("#!/bin/sh\nrest", Some("/bin/sh")),
            ("#! /usr/bin/env node\n", Some("/usr/bin/env")),
            ("#!/bin/sh", Some("/bin/sh")),
            ("#!\n/bin/sh", None),
            ("\u{7f}ELF", None),
            ("", None),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(interpreter(&path).as_deref(), expected.map(Path::new), "{text}");
        }
        assert_eq!(interpreter(folder.path()), None);
    }
}
