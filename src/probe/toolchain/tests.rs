use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
};

use nix::unistd::{Gid, Uid};

use super::*;
use crate::model::IdentityId;

/// A home in a folder of its own, with `a` and `b` on PATH.
struct Scene {
    folder: tempfile::TempDir,
    identity: Identity,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().canonicalize().unwrap();
        let identity = Identity {
            id: IdentityId(0),
            user: "me".into(),
            uid: Uid::effective(),
            gid: Gid::effective(),
            groups: vec![Gid::effective()],
            path: ["a", "b"].map(|name| home.join(name).display().to_string()).join(":"),
            home,
            env: BTreeMap::new(),
            workers: Vec::new(),
        };
        Self { folder, identity }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.identity.home.join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.write(name, text);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn link(&self, name: &str, to: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, &path).unwrap();
        path
    }

    /// Below the home, where all of it is.
    fn chain(&self, argv0: &str) -> Vec<String> {
        let names = chain(&self.identity, argv0).into_iter();
        names.map(|path| path.strip_prefix(&self.identity.home).unwrap().to_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn a_binary_is_its_place_on_path_and_every_place_before_it() {
    let scene = Scene::new();
    assert_eq!(scene.chain("tool"), ["a/tool", "b/tool"], "it may appear in any of them");
    scene.program("b/tool", "\u{7f}ELF");
    assert_eq!(scene.chain("tool"), ["a/tool", "b/tool"]);
    scene.write("a/tool", "not executable");
    assert_eq!(scene.chain("tool"), ["a/tool", "b/tool"]);
    scene.program("a/tool", "\u{7f}ELF");
    assert_eq!(scene.chain("tool"), ["a/tool"]);
    assert_eq!(scene.chain("b/tool"), ["b/tool"]);
}

#[test]
fn every_symlink_on_the_way_is_part_of_the_chain() {
    let scene = Scene::new();
    scene.program("opt/1/tool", "\u{7f}ELF");
    scene.link("opt/current", "1");
    scene.link("etc/tool", "../opt/current/tool");
    scene.link("a/tool", "../etc/tool");
    assert_eq!(scene.chain("tool"), ["a/tool", "etc/tool", "opt/current/tool", "opt/1/tool"]);
    scene.link("a/loop", "loop");
    assert_eq!(scene.chain("loop"), ["a/loop", "b/loop"]);
}

#[test]
fn a_script_brings_its_interpreter_also_by_way_of_env() {
    let scene = Scene::new();
    let node = scene.program("b/node", "\u{7f}ELF");
    let env = scene.program("x/env", "\u{7f}ELF");
    scene.program("a/direct", &format!("#!{} --flag\n", node.display()));
    assert_eq!(scene.chain("direct"), ["a/direct", "b/node"]);
    scene.program("a/by-env", &format!("#! {} node\n", env.display()));
    assert_eq!(scene.chain("by-env"), ["a/by-env", "x/env", "a/node", "b/node"]);
    scene.program("a/by-env-s", &format!("#!{} -S A=b node --flag\n", env.display()));
    assert_eq!(scene.chain("by-env-s"), ["a/by-env-s", "x/env", "a/node", "b/node"]);
    scene.program("a/self", &format!("#!{}\n", scene.path("a/self").display()));
    assert_eq!(scene.chain("self"), ["a/self"]);
}

#[test]
fn an_npm_tool_brings_its_manifest_and_its_platform_package() {
    let scene = Scene::new();
    let node = scene.program("x/node", "\u{7f}ELF");
    scene.program("lib/node_modules/@o/codex/bin/codex.js", &format!("#!{}\n", node.display()));
    scene.write("lib/node_modules/@o/codex/bin/package.json", r#"{"type": "module"}"#);
    let manifest = r#"{"version": "1.0.0", "optionalDependencies": {"@o/codex-mine": "1", "@o/codex-other": "1"}}"#;
    scene.write("lib/node_modules/@o/codex/package.json", manifest);
    scene.write("lib/node_modules/@o/codex-mine/package.json", "{}");
    scene.write("lib/node_modules/@o/codex-mine/README.md", "");
    scene.program("lib/node_modules/@o/codex-mine/vendor/libz.so.1", "\u{7f}ELF");
    scene.program("lib/node_modules/@o/codex-mine/vendor/target/bin/codex", "\u{7f}ELF");
    scene.write("package.json", r#"{"version": "not the tool's"}"#);
    scene.link("a/codex", "../lib/node_modules/@o/codex/bin/codex.js");
    let expected = [
        "a/codex",
        "lib/node_modules/@o/codex/bin/codex.js",
        "lib/node_modules/@o/codex/bin/package.json",
        "lib/node_modules/@o/codex/package.json",
        "lib/node_modules/@o/codex-mine/package.json",
        "lib/node_modules/@o/codex-mine/vendor/target/bin/codex",
        "x/node",
    ];
    assert_eq!(scene.chain("codex"), expected);
}

#[test]
fn a_python_tool_brings_its_distribution_its_module_and_its_environment() {
    let scene = Scene::new();
    scene.program("usr/bin/python3.11", "\u{7f}ELF");
    scene.link("venv/bin/python3", "../../usr/bin/python3.11");
    scene.program("venv/bin/specify", &format!("#!{}\n", scene.path("venv/bin/python3").display()));
    let site = "venv/lib/python3.11/site-packages";
    scene.write(
        &format!("{site}/specify_cli-1.dist-info/entry_points.txt"),
        "[console_scripts]\nspecify = specify_cli:main",
    );
    scene.write(&format!("{site}/other-1.dist-info/entry_points.txt"), "[console_scripts]\nother = other:main");
    scene.write(&format!("{site}/specify_cli/__init__.py"), "");
    scene.link("a/specify", "../venv/bin/specify");
    let info = |name: &str| format!("{site}/specify_cli-1.dist-info/{name}");
    let expected = [
        "a/specify".into(),
        "venv/bin/specify".into(),
        info("METADATA"),
        info("RECORD"),
        info("entry_points.txt"),
        info("direct_url.json"),
        format!("{site}/specify_cli/__init__.py"),
        "venv/bin/pyvenv.cfg".into(),
        "venv/pyvenv.cfg".into(),
        "venv/bin/python3".into(),
        "usr/bin/python3.11".into(),
    ];
    assert_eq!(scene.chain("specify"), expected);
}

#[test]
fn every_change_of_the_chain_gives_another_fingerprint_and_none_gives_the_same() {
    let scene = Scene::new();
    let hashes = Hashes::default();
    let tool = scene.program("opt/1/tool", "one");
    scene.link("opt/current", "1");
    scene.link("b/tool", "../opt/current/tool");
    let look = || hashes.fingerprint(&chain(&scene.identity, "tool"));
    let mut seen = vec![look()];
    assert_eq!(seen[0], look());
    assert_eq!(seen[0].len(), 64);
    let mut changed = |what: &str| {
        let now = look();
        assert!(!seen.contains(&now), "{what}");
        assert_eq!(
            now,
            Hashes::default().fingerprint(&chain(&scene.identity, "tool")),
            "{what}: kept hashes are right"
        );
        seen.push(now);
    };
    fs::write(&tool, "two").unwrap();
    changed("another content of the same size");
    let stamp = tool.metadata().unwrap().modified().unwrap();
    fs::write(&tool, "six").unwrap();
    fs::File::options().write(true).open(&tool).unwrap().set_modified(stamp).unwrap();
    changed("another content under the old time");
    fs::set_permissions(&tool, Permissions::from_mode(0o711)).unwrap();
    changed("another mode");
    scene.program("opt/2/tool", "six");
    fs::remove_file(scene.path("opt/current")).unwrap();
    scene.link("opt/current", "2");
    changed("a folder's symlink points elsewhere");
    scene.program("a/tool", "six");
    changed("another file wins on PATH");
    fs::remove_file(scene.path("a/tool")).unwrap();
    fs::remove_file(scene.path("b/tool")).unwrap();
    changed("gone");
    drop(scene.folder);
}

#[test]
fn a_file_that_lies_still_is_read_once() {
    let scene = Scene::new();
    let hashes = Hashes::default();
    // The shell has not changed within the last second.
    let shell = [Path::new("/bin/sh").canonicalize().unwrap()];
    hashes.fingerprint(&shell);
    assert_eq!(hashes.len(), 1);
    let fresh = [scene.write("fresh", "x")];
    hashes.fingerprint(&fresh);
    assert_eq!(hashes.len(), 1, "it may change within the tick of its stamp");
}

/// What it finds of the real tools, where they are installed: a line for each file.
#[test]
#[ignore = "for people: prints the chains of the programs named in TOOLS, with PATH as it is"]
fn show_real_chains() {
    let mut scene = Scene::new();
    scene.identity.path = std::env::var("PATH").unwrap();
    let hashes = Hashes::default();
    for tool in std::env::var("TOOLS").unwrap_or("sh".into()).split(' ') {
        let clock = std::time::Instant::now;
        let started = clock();
        let found = chain(&scene.identity, tool);
        println!("{tool}: chain in {:?}", started.elapsed());
        for _ in 0..2 {
            let started = clock();
            let fingerprint = hashes.fingerprint(&found);
            println!("  fingerprint in {:?}: {fingerprint}", started.elapsed());
        }
        for path in found {
            println!("  {}{}", path.display(), if path.exists() { "" } else { " (not there)" });
        }
    }
}
