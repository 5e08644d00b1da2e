//! A folder in place of the machine with the containers: their paths lead into it, and their names to free ports of this one.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::files::{Service, root};
use crate::support::{
    celery::venv,
    gate::{GATE, get_as},
    process::{self, Process, free_port, run},
    scratch::{RUN_MARK, Scratch},
};

/// Where the worker's user lives.
pub(super) const HOME: &str = "/home/celery";
/// What the Dockerfile bakes in.
const TEMPLATE: &str = "approval_policy = \"never\"\n";
/// What every worker's settings have.
const USER: &str = "run_as = \"celery\"\n";

/// The services, and where they are here.
pub(super) struct Place {
    pub(super) services: BTreeMap<String, Service>,
    /// What stands in compose's files, and what it is here.
    here: Vec<(String, String)>,
    ports: BTreeMap<String, u16>,
    dir: Scratch,
}

impl Place {
    /// `broker` is what stands behind the `@` of the broker's URL there, and here.
    pub(super) fn new(services: BTreeMap<String, Service>, broker: (&str, &str)) -> Self {
        let dir = Scratch::new("stack");
        let ports: BTreeMap<_, _> =
            ["worker-1", "worker-2", "prometheus"].into_iter().map(|name| (name.to_owned(), free_port())).collect();
        fs::write(dir.join("codex.toml"), TEMPLATE).unwrap();
        let mut here = vec![
            (broker.0.to_owned(), broker.1.to_owned()),
            ("/etc/codex/config.toml".to_owned(), dir.join("codex.toml").display().to_string()),
            ("/tmp/beat".to_owned(), dir.join("beat").display().to_string()),
            ("=/prometheus".to_owned(), format!("={}", dir.join("prometheus").display())),
        ];
        for (name, port) in &ports {
            here.push((format!("{name}:9464"), format!("127.0.0.1:{port}")));
        }
        Self { services, here, ports, dir }
    }

    /// The same words as they are here.
    pub(super) fn here(&self, text: &str) -> String {
        self.here.iter().fold(text.to_owned(), |text, (there, here)| text.replace(there, here))
    }

    pub(super) fn port(&self, name: &str) -> u16 {
        self.ports[name]
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The home that is in this volume.
    pub(super) fn home(&self, number: u32) -> PathBuf {
        let home = self.dir.join(&format!("home-{number}"));
        fs::create_dir_all(&home).unwrap();
        home
    }

    /// A file that the container has at this place, as it has to be here.
    #[track_caller]
    pub(super) fn translated(&self, service: &str, target: &str, changes: &[(&str, &str)]) -> PathBuf {
        let mut text = self.here(&fs::read_to_string(self.services[service].mounted(target)).unwrap());
        for (there, here) in changes {
            assert!(text.contains(there), "no {there} in:\n{text}");
            text = text.replace(there, here);
        }
        let file = self.dir.join(&format!("{service}-{}", Path::new(target).file_name().unwrap().to_str().unwrap()));
        // A gate would read its settings again.
        if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
            fs::write(&file, text).unwrap();
        }
        file
    }

    fn settings_file(&self, service: &str) -> PathBuf {
        self.dir.join(&format!("{service}-worker-gate.toml"))
    }

    /// The settings of a worker's gate: the container's own, but for the user, the port and the paths.
    #[track_caller]
    pub(super) fn settings(&self, service: &str, number: u32) -> PathBuf {
        let listen = format!("listen = \"127.0.0.1:{}\"", self.ports[&format!("worker-{number}")]);
        let user = format!("home = {:?}\npath_env = {:?}\n", self.home(number), path());
        let target = "/etc/worker-gate/worker-gate.toml";
        self.translated(service, target, &[("listen = \"0.0.0.0:9464\"", &listen), (USER, &user)])
    }

    /// A program in the surroundings of a service, in its home.
    pub(super) fn command(&self, service: &str, number: u32, program: &str) -> Command {
        let mut command = process::command(if program == "worker-gate" { GATE } else { program });
        self.surround(&mut command, service, number);
        command
    }

    fn surround(&self, command: &mut Command, service: &str, number: u32) {
        let home = self.home(number);
        command
            .env_clear()
            .env("PATH", path())
            .env("HOME", &home)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("WORKER_GATE__GATE__STATE_DIR", self.dir.join(&format!("state-{number}")))
            .envs(env::vars_os().filter(|(name, _)| name == RUN_MARK))
            .envs(self.services[service].environment().iter().map(|(name, value)| (name, self.here(value))))
            .current_dir(home);
    }

    /// Starts what compose would start for a service that has its own entry point.
    #[track_caller]
    pub(super) fn start(&self, service: &str, number: u32, more: &[&str]) -> Process {
        let of = &self.services[service];
        let words = [of.words("entrypoint"), of.words("command")].concat();
        let mut command = self.command(service, number, &words[0]);
        command.args(words[1..].iter().map(|word| self.here(word))).args(more);
        if of.mounts().iter().any(|(_, target)| target == "/app") {
            command.current_dir(of.mounted("/app"));
        }
        Process::start(command, &self.file(&format!("{service}.log")))
    }

    /// Runs a line in a worker's container, as `docker compose exec` does.
    #[track_caller]
    pub(super) fn exec(&self, number: u32, line: &str) -> String {
        let service = format!("worker-{number}");
        let line = match line.strip_prefix("worker-gate ") {
            Some(words) => format!("{GATE:?} {words} --config {:?}", self.settings_file(&service)),
            None => line.replace(HOME, self.home(number).to_str().unwrap()),
        };
        let mut command = self.command(&service, number, "sh");
        command.args(["-c", &line]);
        run(command)
    }

    /// What is at this address of a worker's gate.
    pub(super) fn get(&self, name: &str, path: &str) -> Option<(u16, String)> {
        get_as(&format!("http://127.0.0.1:{}{path}", self.port(name)), "*/*")
    }

    /// As the health check of the worker's image asks.
    pub(super) fn is_healthy(&self, name: &str) -> bool {
        self.get(name, "/readyz").is_some_and(|(status, _)| status == 200)
    }
}

/// Where the tools are that the image has, and Celery.
#[track_caller]
pub(super) fn path() -> String {
    let tools = root().join(".cache/bin");
    assert!(tools.join("codex").exists(), "no Codex CLI in {}: run scripts/setup", tools.display());
    let all = env::var_os("PATH").unwrap();
    let node = env::split_paths(&all).find(|folder| folder.join("node").is_file()).expect("no node: run scripts/setup");
    format!("{}:{}:{}:/usr/bin:/bin", tools.display(), venv().join("bin").display(), node.display())
}
