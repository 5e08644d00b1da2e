//! The manifests: Kubernetes' own schemas take them, and a pod does outside of one what it is for, without any rights.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use nix::unistd::{Uid, chown};
use serde_json::Value;

use super::files::{root, strings, text, yaml};
use crate::support::{
    celery::venv,
    gate::{GATE, Host, NOBODY, can_be_nobody, get_as},
    process::{self, Process, free_port, run, tail},
    scratch::{RUN_MARK, Scratch},
    vhost::vhost,
    wait::{LONG, until},
};

const FILES: [&str; 3] =
    ["config/kubernetes/secret.yaml", "config/kubernetes/settings.yaml", "config/kubernetes/workers.yaml"];
/// The first that has sidecars, and the latest whose schemas the validator has.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];
const SETTINGS: &str = "/etc/worker-gate/settings";
/// As README has it, behind `kubectl exec`.
const STATUS: &str = "worker-gate status --config /etc/worker-gate/settings/worker-gate.toml";

#[track_caller]
fn validate(version: &str, files: &[&str]) -> (bool, String) {
    let mut command = Command::new(venv().join("bin/kubernetes-validate"));
    let output = command.args(["--strict", "-k", version]).args(files).current_dir(root()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), said)
}

#[test]
fn kubernetes_takes_the_manifests_and_none_with_a_wrong_key() {
    for version in VERSIONS {
        let (takes, said) = validate(version, &FILES);
        assert!(takes && said.matches(" passed for resource ").count() == 4, "{said}");
    }
    let dir = Scratch::new("manifests");
    let file = dir.join("bad.yaml");
    for (right, wrong, what) in [
        ("      initContainers:", "      initContainer:", "initContainer"),
        ("readinessProbe:", "readynessProbe:", "readynessProbe"),
        ("replicas: 2", "replicas: two", "replicas"),
        ("  serviceName: codex\n", "", "serviceName"),
        ("httpGet: {path: /healthz, port: metrics}", "httpGet: {path: /healthz}", "port"),
    ] {
        let text = text("config/kubernetes/workers.yaml");
        assert!(text.contains(right), "no {right}");
        fs::write(&file, text.replacen(right, wrong, 1)).unwrap();
        let (takes, said) = validate(VERSIONS[0], &[file.to_str().unwrap()]);
        // A field that one release asks for may be left out in another.
        assert!(!takes && said.contains(what), "{wrong}: {said}");
    }
}

/// A pod of the set, with its containers.
struct Pod {
    containers: BTreeMap<String, Value>,
    home: PathBuf,
    settings: PathBuf,
    state: PathBuf,
    path: String,
    url: String,
    name: String,
    /// The settings as they have to be here.
    text: String,
}

impl Pod {
    /// The set's first pod, with volumes in `dir`, the host's tools, and a gate that answers on this port.
    #[track_caller]
    fn new(dir: &Scratch, host: &Host, url: String, port: u16) -> Self {
        let set = yaml(&text("config/kubernetes/workers.yaml")).remove(1);
        let pod = &set["spec"]["template"]["spec"];
        let all = ["initContainers", "containers"].into_iter().flat_map(|kind| pod[kind].as_array().unwrap());
        let settings = yaml(&text("config/kubernetes/settings.yaml")).remove(0)["data"]["worker-gate.toml"].clone();
        let mut text = settings.as_str().unwrap().to_owned();
        for (there, here) in [
            ("0.0.0.0:9464", format!("127.0.0.1:{port}")),
            ("/etc/codex/config.toml", dir.join("codex.toml").display().to_string()),
        ] {
            assert!(text.contains(there), "no {there} in {text}");
            text = text.replace(there, &here);
        }
        fs::write(dir.join("codex.toml"), "approval_policy = \"never\"\n").unwrap();
        let pod = Self {
            containers: all.map(|one| (one["name"].as_str().unwrap().to_owned(), one.clone())).collect(),
            home: dir.join("home"),
            settings: dir.join("settings"),
            state: dir.join("state"),
            path: format!(
                "{}:/usr/bin:/bin:{}",
                host.tool("codex").parent().unwrap().display(),
                Path::new(GATE).parent().unwrap().display()
            ),
            url,
            name: "codex-0".to_owned(),
            text,
        };
        // As fsGroup leaves the volumes: root's, and the group's.
        for folder in [&pod.home, &pod.state] {
            fs::create_dir(folder).unwrap();
            fs::set_permissions(folder, fs::Permissions::from_mode(0o2775)).unwrap();
            if Uid::effective().is_root() {
                chown(folder, None, Some(NOBODY.into())).unwrap();
            }
        }
        pod
    }

    /// The containers' variables, as Kubernetes makes them: each may stand in those after it.
    fn variables(&self, container: &str) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        for variable in self.containers[container]["env"].as_array().unwrap() {
            let value = match (variable["value"].as_str(), variable["valueFrom"]["secretKeyRef"]["key"].as_str()) {
                (Some("/home/celery"), _) => self.home.display().to_string(),
                (Some(value), _) => expanded(value, &variables),
                (None, Some("broker-url")) => self.url.clone(),
                (None, Some("codex-api-key")) => "sk-made-up-for-a-test".to_owned(),
                (None, _) => {
                    assert_eq!(variable["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name", "{variable}");
                    self.name.clone()
                }
            };
            variables.insert(variable["name"].as_str().unwrap().to_owned(), value);
        }
        variables
    }

    /// The container's own command, in its surroundings.
    fn command(&self, container: &str, options: &[&str]) -> Command {
        let of = &self.containers[container];
        self.running(container, &[strings(&of["command"]), strings(&of["args"])].concat(), options)
    }

    /// A line in the container, as `kubectl exec` runs it.
    fn exec(&self, container: &str, line: &str, options: &[&str]) -> Command {
        self.running(container, &line.split(' ').map(str::to_owned).collect::<Vec<_>>(), options)
    }

    fn running(&self, container: &str, words: &[String], options: &[&str]) -> Command {
        let variables = self.variables(container);
        let words =
            words.iter().map(|word| expanded(word, &variables).replace(SETTINGS, self.settings.to_str().unwrap()));
        let words: Vec<_> = words.collect();
        let program = if words[0] == "worker-gate" { GATE } else { &words[0] };
        let mut command = process::command_as(options, program);
        command.args(&words[1..]).env_clear().envs(variables);
        command.env("PATH", &self.path).envs(std::env::vars_os().filter(|(name, _)| name == RUN_MARK));
        command.env("WORKER_GATE__GATE__STATE_DIR", &self.state).env("PYTHONDONTWRITEBYTECODE", "1");
        command.current_dir(root().join("config/compose/app"));
        command
    }
}

/// `$(NAME)` is the value of a variable.
fn expanded(text: &str, variables: &BTreeMap<String, String>) -> String {
    variables.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

/// Lays a file out as the kubelet does: what stands in the folder leads by `..data` to a folder with the version of now.
fn project(folder: &Path, version: &str, text: &str) {
    fs::create_dir_all(folder.join(version)).unwrap();
    fs::write(folder.join(version).join("worker-gate.toml"), text).unwrap();
    symlink(version, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    let file = folder.join("worker-gate.toml");
    if !file.exists() {
        symlink("..data/worker-gate.toml", file).unwrap();
    }
}

#[test]
fn the_gate_beside_a_worker_needs_no_rights_where_it_is_the_workers_user_and_reads_new_settings() {
    let options: &[&str] = if Uid::effective().is_root() {
        if !can_be_nobody() {
            return;
        }
        &["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs", "--bounding-set", "-all"]
    } else {
        &["--no-new-privs"]
    };
    let (vhost, host, dir, port) = (vhost(), Host::new("pod"), Scratch::new("pod"), free_port());
    let pod = Pod::new(&dir, &host, vhost.url(), port);
    project(&pod.settings, "..1", &pod.text);

    // The settings are right with the worker that the pod's name makes, and are not without it.
    let worker = pod.variables("gate")["WORKER"].clone();
    let file = pod.settings.join("worker-gate.toml");
    let check = |more: &[&str]| {
        let mut command = Command::new(GATE);
        command.args(["config", "check", "--config"]).arg(&file).args(more).output().unwrap().status.code()
    };
    assert_eq!((check(&["--set", &worker]), check(&[])), (Some(0), Some(78)));

    let mut home = Process::start(pod.command("home", options), &dir.join("home.log"));
    assert!(home.wait(LONG).success(), "{}", home.output());
    let mut gate = Process::start(pod.command("gate", options), &dir.join("gate.log"));
    let get = |path: &str| get_as(&format!("http://127.0.0.1:{port}{path}"), "*/*").map(|(status, _)| status);
    let probe = |name: &str| {
        let probe = &pod.containers["gate"][name]["httpGet"];
        assert_eq!(probe["port"], "metrics");
        get(probe["path"].as_str().unwrap())
    };
    until(LONG, "the gate is up", || {
        let ended = gate.ended();
        assert!(ended.is_none(), "{ended:?}: {}", tail(&gate.output()));
        probe("startupProbe") == Some(200)
    });
    let mut command = pod.command("worker", &[]);
    command.env("PATH", format!("{}:{}", venv().join("bin").display(), pod.path));
    let mut worker = Process::start(command, &dir.join("worker.log"));
    until(LONG, "the pod is ready", || probe("readinessProbe") == Some(200));
    if Uid::effective().is_root() {
        let status = fs::read_to_string(format!("/proc/{}/status", gate.pid())).unwrap();
        for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Uid:\t65534\t65534\t65534\t65534"] {
            assert!(status.contains(line), "no {line} in {status}");
        }
    }

    // A producer that has never heard of gates.
    let send = || {
        let mut command = Command::new(venv().join("bin/celery"));
        command
            .args(["-A", "app", "call", "app.work", "--queue", "codex"])
            .current_dir(root().join("config/compose/app"));
        command.env("CELERY_BROKER_URL", &pod.url).env("PYTHONDONTWRITEBYTECODE", "1");
        run(command);
    };
    let done = |worker: &Process| worker.output().matches("succeeded in").count();
    send();
    until(LONG, "it runs", || done(&worker) == 1);
    assert!(text("README.md").contains(&format!("-c gate -- {STATUS}\n")), "README has no {STATUS}");
    let said = run(pod.exec("gate", STATUS, options));
    assert!(said.contains("codex@codex-0") && said.contains(" admitted "), "{said}");

    let profile = pod.home.join(".codex/config.toml");
    fs::write(&profile, "approval_policy = \"on-request\"\n").unwrap();
    until(LONG, "the pod is not ready", || probe("readinessProbe") == Some(503));
    assert_eq!(probe("livenessProbe"), Some(200), "an unfit worker is no reason to start its gate anew");
    send();
    until(LONG, "it waits", || vhost.waiting("codex") == 1);
    let mut mend = pod.command("home", options);
    mend.env("CODEX_API_KEY", "");
    assert!(Process::start(mend, &dir.join("home.log")).wait(LONG).success());
    until(LONG, "it runs, too", || done(&worker) == 2);

    // An edit of the ConfigMap comes as another folder behind the link.
    project(
        &pod.settings,
        "..2",
        &pod.text.replace("{ approval_policy = \"never\" }", "{ approval_policy = \"untrusted\" }"),
    );
    until(LONG, "the new settings hold", || probe("readinessProbe") == Some(503));
    project(&pod.settings, "..3", &pod.text);
    until(LONG, "the old settings hold again", || probe("readinessProbe") == Some(200));

    // The worker first, and the sidecar after it.
    for process in [&mut worker, &mut gate] {
        let status = process.stop(LONG).unwrap_or_else(|| panic!("it does not stop:\n{}", tail(&process.output())));
        assert!(status.success(), "{status}\n{}", tail(&process.output()));
    }
}
