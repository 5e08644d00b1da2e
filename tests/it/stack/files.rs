//! docker-compose.yml as a real compose reads it, and any other YAML.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::support::{
    celery::venv,
    process::{run, run_with},
};

/// The broker's password, which the tests' own brokers have as well.
pub(super) const PASSWORD: &str = "secret";
/// With these, all services are there.
pub(super) const PROFILES: [&str; 2] = ["redis", "observability"];
/// The two brokers, as options of compose.
pub(super) const BROKERS: [&[&str]; 2] = [&[], &["--env-file", "config/compose/redis.env"]];

/// The project's own folder.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project.
#[track_caller]
pub(super) fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Compose, as Debian has it: a program of its own, or a plugin of docker. Without variables that would decide what is in the file.
#[track_caller]
pub(super) fn compose(words: &[&str]) -> Command {
    let base = |program: &str, first: &[&str]| {
        let mut command = Command::new(program);
        command.args(first).env_clear().current_dir(root());
        command.envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "HOME"));
        command
    };
    let answers = |mut command: Command| command.arg("version").output().is_ok_and(|output| output.status.success());
    let (program, first): (_, &[&str]) =
        if answers(base("docker-compose", &[])) { ("docker-compose", &[]) } else { ("docker", &["compose"]) };
    assert!(answers(base(program, first)), "no docker-compose: run scripts/setup");
    let mut command = base(program, first);
    command.env("BROKER_PASSWORD", PASSWORD).args(words);
    command
}

/// The documents of a YAML text.
#[track_caller]
pub(super) fn yaml(text: &str) -> Vec<Value> {
    let mut command = Command::new(venv().join("bin/python"));
    command.arg(root().join("tests/it/read_yaml.py"));
    serde_json::from_str(&run_with(command, text)).unwrap()
}

/// All services with these options, by name: variables are replaced, paths are absolute.
#[track_caller]
pub(super) fn services(options: &[&str]) -> BTreeMap<String, Service> {
    let profiles = PROFILES.iter().flat_map(|profile| ["--profile", profile]);
    let words: Vec<_> = options.iter().copied().chain(profiles).chain(["config"]).collect();
    let documents = yaml(&run(compose(&words)));
    let services = documents[0]["services"].as_object().unwrap();
    services.iter().map(|(name, service)| (name.clone(), Service(service.clone()))).collect()
}

/// One service of the file.
#[derive(Debug, Clone)]
pub(super) struct Service(pub(super) Value);

impl Service {
    /// `command` or `entrypoint`; empty if it is the image's own.
    #[track_caller]
    pub(super) fn words(&self, key: &str) -> Vec<String> {
        strings(&self.0[key])
    }

    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        let variables = self.0["environment"].as_object().into_iter().flatten();
        variables.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
    }

    /// Where from, and where to: a file of the project, or a volume's name.
    #[track_caller]
    pub(super) fn mounts(&self) -> Vec<(String, String)> {
        let mounts = self.0["volumes"].as_array().into_iter().flatten();
        mounts
            .map(|mount| match mount.as_str() {
                Some(short) => {
                    let parts: Vec<_> = short.split(':').collect();
                    (parts[0].to_owned(), parts[1].to_owned())
                }
                // Compose 2 writes it out.
                None => (mount["source"].as_str().unwrap().to_owned(), mount["target"].as_str().unwrap().to_owned()),
            })
            .collect()
    }

    /// The file or folder of the project that the container has here.
    #[track_caller]
    pub(super) fn mounted(&self, target: &str) -> PathBuf {
        let found = self.mounts().into_iter().find(|(_, to)| to == target);
        PathBuf::from(found.unwrap_or_else(|| panic!("nothing is mounted on {target}: {self:?}")).0)
    }

    /// Addresses of this machine at which the service is to be had.
    #[track_caller]
    pub(super) fn ports(&self) -> Vec<String> {
        let ports = self.0["ports"].as_array().into_iter().flatten();
        ports
            .map(|port| match port.as_str() {
                Some(short) => short.rsplit_once(':').map_or(short, |(address, _)| address).to_owned(),
                None => format!("{}:{}", port["host_ip"].as_str().unwrap_or_default(), text_of(&port["published"])),
            })
            .collect()
    }
}

/// A list of words.
#[track_caller]
pub(super) fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// A number is one in one compose and text in another.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
