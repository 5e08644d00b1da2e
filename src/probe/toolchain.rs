//! What a checked tool is made of: the files that decide what its name runs, and one fingerprint over them.
//!
//! The chain goes from the name on PATH over each symlink to the script or binary, from a script's `#!` line to its
//! interpreter, and to the manifest of the package that either belongs to. It also holds what is *not* there: the name in
//! every PATH folder before the one that wins, because a file that appears there wins from then on.
//!
//! Not seen: the shared libraries of a binary, what a script runs or imports beyond its own package, and what a version
//! manager's shim picks. They are what the check itself is for.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::program::{self, Located, locate};
use crate::{identity::Identity, regular};

mod fingerprint;
mod npm;
mod python;

pub use fingerprint::Hashes;
pub(crate) use fingerprint::LARGEST;

/// As many symlinks as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// Interpreters that are scripts themselves: the kernel follows five.
const MAX_INTERPRETERS: u32 = 5;

/// The files that decide what `argv0` runs for this identity, and the places where such files may appear. In the order in
/// which they are found, each once; all paths are absolute. Reads the file system, and may block.
pub fn chain(identity: &Identity, argv0: &str) -> Vec<PathBuf> {
    let mut chain = Chain { identity, paths: Vec::new(), known: HashSet::new(), followed: HashSet::new() };
    chain.name(OsStr::new(argv0), 0);
    chain.paths
}

struct Chain<'a> {
    identity: &'a Identity,
    paths: Vec<PathBuf>,
    known: HashSet<PathBuf>,
    /// Files that have been followed, after every symlink.
    followed: HashSet<PathBuf>,
}

impl Chain<'_> {
    fn push(&mut self, path: PathBuf) {
        if self.known.insert(path.clone()) {
            self.paths.push(path);
        }
    }

    /// A command's first word.
    fn name(&mut self, name: &OsStr, depth: u32) {
        let Some(text) = name.to_str() else { return };
        let located = locate(text, self.identity);
        if text.contains('/') {
            return self.program(&self.identity.home.join(text), depth);
        }
        for folder in std::env::split_paths(&self.identity.path).filter(|folder| folder.is_absolute()) {
            let path = folder.join(text);
            if located == Located::At(path.clone()) {
                return self.program(&path, depth);
            }
            self.push(path);
        }
    }

    /// A program at this path.
    fn program(&mut self, path: &Path, depth: u32) {
        self.links(path.to_owned());
        let Ok(file) = path.canonicalize() else { return };
        // Two names of one file, such as python and python3, share all that follows.
        if !self.followed.insert(file.clone()) {
            return;
        }
        self.push(file.clone());
        let line = program::first_line(&file);
        // A binary that merely lies somewhere below somebody's package.json has nothing to do with it.
        if line.is_some() || file.iter().any(|part| part == "node_modules") {
            npm::manifests(&file, &mut |path| self.push(path));
        }
        let Some(words) = line else { return };
        python::manifests(&file, &mut |path| self.push(path));
        let mut words = words.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).map(OsStr::from_bytes);
        let Some(interpreter) = words.next().map(Path::new) else { return };
        if depth == MAX_INTERPRETERS || !interpreter.is_absolute() {
            return;
        }
        python::environment(interpreter, &mut |path| self.push(path));
        self.program(interpreter, depth + 1);
        if interpreter.file_name() == Some(OsStr::new("env"))
            && let Some(name) = words.find(|word| is_command_of_env(word))
        {
            self.name(name, depth + 1);
        }
    }

    /// The path, and each symlink that its last part leads to.
    fn links(&mut self, mut path: PathBuf) {
        for _ in 0..MAX_LINKS {
            self.push(path.clone());
            let Ok(target) = path.read_link() else { return };
            path = lexical(&path.parent().unwrap_or(Path::new("/")).join(target));
        }
    }
}

/// Whether a word of env's command line is the program, and not an option or an assignment.
fn is_command_of_env(word: &OsStr) -> bool {
    !word.as_bytes().starts_with(b"-") && !word.as_bytes().contains(&b'=')
}

/// Without `.`, and without `..` where the name before it is no symlink.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if !plain.is_symlink() => {
                plain.pop();
            }
            Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    plain
}

/// A manifest's text; `None` if it is not there, is no file, or is larger than a manifest is.
fn small_text(path: &Path) -> Option<String> {
    const LARGEST: u64 = 4 * 1024 * 1024;
    String::from_utf8(regular::read(path, LARGEST).ok()?).ok()
}

#[cfg(test)]
mod tests;
