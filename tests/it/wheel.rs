//! The wheel: pip puts the program, its man pages and its completions into an environment, and takes them out again.

use std::{
    env,
    ffi::OsString,
    fs, iter,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    pages::SHARE,
    support::{celery::venv, gate::GATE, process::run, scratch::Scratch},
};

/// A wheel to be tested in place of one that is built, such as that of scripts/wheel.
const GIVEN: &str = "WORKER_GATE_TEST_WHEEL";

/// maturin's way of building a program is `cargo rustc`. Without the features that only tests need, that would compile most
/// dependencies once more, and would put another program in the place of the one that all other tests are running. This has
/// the very same cargo name what it has built for the tests: the program, but not the tests, which maturin would take for
/// another program; and a copy of it, because maturin takes it away from its place while it packs. The copy is without what
/// is for debugging, which is most of it.
const CARGO: &str = r#"#!/bin/sh
case $1 in
rustc)
    strip -o "$COPY" "$GATE"
    cargo test --no-run --locked --test it --message-format json-render-diagnostics |
        sed "/\"kind\":\[\"test\"\]/d; s|$GATE|$COPY|g"
    ;;
*) exec cargo "$@" ;;
esac
"#;

/// A folder with the wheel in it, as the one of its kind.
pub(crate) struct Wheel(Scratch);

impl Wheel {
    #[track_caller]
    pub(crate) fn build() -> Self {
        let dir = Scratch::new("wheel");
        if let Some(given) = env::var_os(GIVEN).map(PathBuf::from) {
            fs::copy(&given, dir.path().join(given.file_name().unwrap())).unwrap();
            return Self(dir);
        }
        let cargo = dir.join("cargo");
        fs::write(&cargo, CARGO).unwrap();
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
        let mut maturin = Command::new(venv().join("bin/maturin"));
        // Packed without compressing, in a tenth of the time.
        maturin.args(["build", "--compression-method", "stored", "--out"]).arg(dir.path());
        maturin.arg("--target-dir").arg(dir.join("target")).current_dir(env!("CARGO_MANIFEST_DIR"));
        maturin.env("CARGO", &cargo).env("GATE", GATE).env("COPY", dir.join("worker-gate"));
        run(maturin);
        Self(dir)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join(&self.name())
    }

    /// A new Python environment, and pip's settings in the environment: it knows of this wheel and of nothing else.
    #[track_caller]
    pub(crate) fn environment(&self) -> Environment {
        let dir = Scratch::new("environment");
        let mut python = Command::new(venv().join("bin/python"));
        python.args(["-m", "venv"]).arg(dir.path());
        run(python);
        let pip = [
            ("PIP_CONFIG_FILE", "/dev/null".to_owned()),
            ("PIP_NO_INDEX", "1".to_owned()),
            ("PIP_FIND_LINKS", self.0.path().display().to_string()),
            ("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_owned()),
        ];
        Environment { dir, pip }
    }

    pub(crate) fn name(&self) -> String {
        let names = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let wheels: Vec<_> = names.filter(|name| Path::new(name).extension().is_some_and(|end| end == "whl")).collect();
        let [wheel] = wheels.as_slice() else { panic!("not one wheel but {wheels:?}") };
        wheel.clone()
    }
}

/// A Python environment into which pip can install the wheel.
pub(crate) struct Environment {
    dir: Scratch,
    pip: [(&'static str, String); 4],
}

impl Environment {
    /// Where its programs are.
    fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// PATH of somebody who has activated it.
    pub(crate) fn path(&self) -> OsString {
        let path = env::var_os("PATH").unwrap();
        env::join_paths(iter::once(self.bin()).chain(env::split_paths(&path))).unwrap()
    }

    /// Runs one of its programs to its end, with no environment but what pip has to know.
    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(self.bin().join(program));
        command.args(args).env_clear().envs(self.pip.clone()).env("HOME", "/nowhere");
        run(command)
    }
}

#[test]
fn pip_puts_the_program_with_its_man_pages_and_completions_into_an_environment_and_takes_all_of_it_out() {
    let version = env!("CARGO_PKG_VERSION");
    let wheel = Wheel::build();
    let name = wheel.name();
    let platform =
        name.strip_prefix(&format!("worker_gate-{version}-py3-none-manylinux_2_")).unwrap_or_else(|| panic!("{name}"));
    let (libc, machine) = platform.strip_suffix(".whl").unwrap().split_once('_').unwrap();
    assert!(libc.parse::<u32>().is_ok() && machine == env::consts::ARCH, "{name}");

    let environment = wheel.environment();
    environment.run("pip", &["install", "worker-gate"]);
    assert_eq!(environment.run("worker-gate", &["--version"]), format!("worker-gate {version}\n"));
    let bash = environment.run("worker-gate", &["completions", "bash"]);
    let share = environment.dir.join("share");
    assert_eq!(fs::read_to_string(share.join("bash-completion/completions/worker-gate")).unwrap(), bash);
    let mut diff = Command::new("diff");
    diff.args(["-r", SHARE]).arg(&share);
    assert_eq!(run(diff), "");
    // It finds its pages by PATH.
    let mut man = Command::new("man");
    man.args(["-E", "UTF-8", "worker-gate-status"]).env_remove("MANPATH").env("PATH", environment.path());
    assert!(run(man).contains("--quarantined"));

    let about = "from importlib.metadata import metadata\n\
         about = metadata('worker-gate')\n\
         for key in ('Version', 'Summary', 'License-Expression', 'Description'): print(about[key].strip().splitlines()[0])";
    let about = environment.run("python", &["-c", about]);
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let expected = [version, env!("CARGO_PKG_DESCRIPTION"), env!("CARGO_PKG_LICENSE"), readme.lines().next().unwrap()];
    assert_eq!(about.lines().collect::<Vec<_>>(), expected);
    let files = environment.run("pip", &["show", "-f", "worker-gate"]);
    for file in ["licenses/LICENSE", "sboms/worker-gate.cyclonedx.json", "bin/worker-gate"] {
        assert!(files.contains(file), "{files}");
    }

    environment.run("pip", &["uninstall", "--yes", "worker-gate"]);
    let mut left = Command::new("find");
    left.arg(environment.dir.path()).args(["-name", "*worker[-_]gate*"]);
    assert_eq!(run(left), "");
}
