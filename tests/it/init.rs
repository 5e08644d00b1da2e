//! `worker-gate init`: the file that it writes holds as it is, and a gate with it admits the workers that it was written for.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    celery::{App, Worker},
    field::{Field, INTAKE, Kind, ONE_AT_A_TIME, each_once, for_each_feed},
    gate::{GATE, Gate, Host},
    process,
    redis::{PASSWORD, Redis},
    vhost::vhost,
    wait::{LONG, eventually},
};

/// Codex stores any key and asks nobody about it; this one opens nothing.
const KEY: &str = "sk-made-up-for-a-test";

/// A host with the real CLIs, and what the workers on it have for an environment.
struct Stage<'a> {
    host: &'a Host,
    url: String,
    path: String,
}

/// How a run of `init` ended.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl<'a> Stage<'a> {
    #[track_caller]
    fn new(host: &'a Host, url: &str) -> Self {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/bin");
        assert!(tools.join("codex").exists(), "no Codex CLI in {}: run scripts/setup", tools.display());
        let path = format!("{}:{}", tools.display(), env::var("PATH").unwrap());
        let mut login = Command::new(tools.join("codex"));
        login.args(["login", "--with-api-key"]).env_clear().env("HOME", host.home()).env("PATH", &path);
        login.current_dir(host.home()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut login = login.spawn().unwrap();
        login.stdin.take().unwrap().write_all(KEY.as_bytes()).unwrap();
        let login = login.wait_with_output().unwrap();
        assert!(login.status.success(), "{login:?}");
        Self { host, url: url.to_owned(), path }
    }

    /// An application whose workers have this host's home.
    fn app(&self, routes: Value) -> App {
        let home = self.host.home().display().to_string();
        App::routed(&self.url, routes).with_env("HOME", &home).with_env("PATH", &self.path)
    }

    fn file(&self) -> PathBuf {
        self.host.state_dir().with_file_name("written.toml")
    }

    /// Runs `init`, so that a gate of this test has a name, a folder and a port of its own.
    #[track_caller]
    fn init(&self, words: &[&str]) -> Said {
        let own: toml::Table = self.host.settings_without_workers(&self.url).parse().unwrap();
        let mut set = Vec::new();
        for key in ["name", "state_dir", "listen"] {
            set.extend(["--set".to_owned(), format!("gate.{key}={}", own["gate"][key].as_str().unwrap())]);
        }
        let output = self.file().display().to_string();
        let to = if words.contains(&"--output") { Vec::new() } else { vec!["--output", output.as_str()] };
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let words = [&["init"], words, &to, &set].concat();
        let output = self.host.command_in("", &words, &[("CELERY_BROKER_URL", self.url.as_str())]);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The same, which has to succeed: what is left to do, and the file, which is right as it is.
    #[track_caller]
    fn written(&self, words: &[&str]) -> (String, String) {
        let said = self.init(words);
        assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
        let text = fs::read_to_string(self.file()).unwrap();
        println!("{}{text}", said.stdout);
        let check = self.host.command(&text, &["config", "check"]);
        assert!(check.status.success(), "{}\n{text}", String::from_utf8_lossy(&check.stderr));
        (said.stdout, text)
    }

    /// Starts a gate with this file. Only the broker's URL is not in it.
    #[track_caller]
    fn gate(&self, text: &str) -> Gate {
        let mut command = process::command(GATE);
        command.args(["--set", &format!("broker.url={}", self.url)]);
        self.host.start_by(command, text)
    }
}

/// A worker's settings.
fn worker<'a>(settings: &'a toml::Table, name: &str) -> &'a toml::Table {
    let workers = settings["workers"].as_array().unwrap();
    workers.iter().find(|worker| worker["name"].as_str() == Some(name)).unwrap().as_table().unwrap()
}

#[test]
fn a_worker_with_a_queue_of_its_own_is_routed_to() {
    let (vhost, host) = (vhost(), Host::new("host-1"));
    let stage = Stage::new(&host, &vhost.url());
    let app = stage.app(json!({ "app.*": { "exchange": "codex-0.intake", "routing_key": "codex-0" } }));
    let _worker = app.worker("codex-0", "codex-0@host-1", &ONE_AT_A_TIME);
    let (steps, text) = stage.written(&[]);
    assert!(!text.contains("guest:guest") && text.contains("# url = \"amqp://guest:***@"), "{text}");
    let settings: toml::Table = text.parse().unwrap();
    let written = worker(&settings, "codex-0@host-1");
    assert_eq!((written["edge"].as_str(), written["lane"].as_str()), (Some("route"), Some("codex-0")));
    assert_eq!(written["home"].as_str(), host.home().to_str());
    assert!(settings["checks"].as_table().unwrap().keys().eq(["codex_cli", "spec_kit"]), "{text}");
    assert!(steps.contains(r#"{"exchange": "codex-0.intake", "routing_key": "codex-0"}"#), "{steps}");

    let gate = stage.gate(&text);
    gate.wait_until(LONG, "codex-0@host-1", "admitted");
    gate.wait_for_edge(LONG, "codex-0@host-1", "open");
    app.send("app.mark", "m-", 3, &[]);
    each_once(&app.wait_for_runs(LONG, 3), 3);
    host.set_profile("approval_policy = \"on-request\"\n");
    gate.wait_for_edge(LONG, "codex-0@host-1", "shut");
    assert!(gate.stop().success());
}

#[test]
fn a_worker_whose_queue_is_bound_to_a_named_exchange_is_routed_to_from_there() {
    let (vhost, host) = (vhost(), Host::new("host-1"));
    let stage = Stage::new(&host, &vhost.url());
    let queues = json!({ "codex-0": { "exchange": "codex", "exchange_type": "direct", "routing_key": "low" } });
    let app = stage.app(json!({ "app.*": { "exchange": "codex", "routing_key": "low" } }));
    let app = app.with(json!({ "task_queues": queues }));
    let _worker = app.worker("codex-0", "codex-0@host-1", &ONE_AT_A_TIME);
    let (steps, text) = stage.written(&[]);
    let settings: toml::Table = text.parse().unwrap();
    let intake = &worker(&settings, "codex-0@host-1")["intake"];
    assert_eq!((intake["exchange"].as_str(), intake["type"].as_str()), (Some("codex"), Some("direct")));
    assert_eq!(intake["keys"][0].as_str(), Some("low"));
    // Whoever declared the exchange gave it no place for what cannot be routed.
    assert!(steps.contains("rabbitmqctl set_policy") && steps.contains("Queue(\"codex-0\")"), "{steps}");
    vhost.set_policy("held", "^codex$", "exchanges", &json!({ "alternate-exchange": "codex.held" }));
    let gate = stage.gate(&text);
    gate.wait_until(LONG, "codex-0@host-1", "admitted");
    gate.wait_for_edge(LONG, "codex-0@host-1", "open");
    app.send("app.mark", "m-", 3, &[]);
    each_once(&app.wait_for_runs(LONG, 3), 3);
    assert!(gate.stop().success());
}

for_each_feed! {
    workers_that_share_a_queue_are_fed_once_they_are_started_as_the_file_says
}

fn workers_that_share_a_queue_are_fed_once_they_are_started_as_the_file_says(kind: Kind) {
    let field = Field::new(kind);
    let stage = Stage::new(field.host(0), &field.url());
    let app = stage.app(json!({ "app.*": { "queue": INTAKE } }));
    let names = [field.name(0), field.name(1)];
    let mut workers = names.each_ref().map(|name| app.start_worker(INTAKE, name, &ONE_AT_A_TIME));
    workers.iter_mut().for_each(Worker::wait_until_ready);
    let (steps, text) = stage.written(&[]);
    let settings: toml::Table = text.parse().unwrap();
    // There is no password in the Redis' address.
    assert_eq!(settings["broker"].get("url").is_some(), kind == Kind::FeedRedis);
    let lanes = names.each_ref().map(|name| {
        let written = worker(&settings, name);
        assert_eq!((written["edge"].as_str(), written["intake"]["queue"].as_str()), (Some("feed"), Some(INTAKE)));
        let step = steps.lines().find(|step| step.starts_with(&format!("-> restart {name} with -Q "))).unwrap();
        let lane = step.split_whitespace().skip_while(|word| *word != "-Q").nth(1).unwrap();
        assert_eq!(written["lane"].as_str(), Some(lane));
        lane
    });
    let gate = stage.gate(&text);
    for name in &names {
        gate.wait_until(LONG, name, "admitted");
    }
    drop(workers);
    let mut workers = [0, 1].map(|n| app.start_worker(lanes[n], &names[n], &ONE_AT_A_TIME));
    workers.iter_mut().for_each(Worker::wait_until_ready);
    app.send("app.mark", "m-", 6, &[]);
    each_once(&app.wait_for_runs(LONG, 6), 6);
    let url = format!("broker.url={}", stage.url);
    eventually(LONG, "nobody goes past the gate", || {
        let doctor = field.host(0).command(&text, &["doctor", "--set", &url]);
        let said = String::from_utf8(doctor.stdout).unwrap();
        (doctor.status.success() && !said.contains("bypass")).then_some(())
    });
    assert!(gate.stop().success());
}

#[test]
fn who_is_not_there_is_said_and_who_is_on_another_host_is_named() {
    let (redis, host) = (Redis::start(), Host::new("host-1"));
    let stage = Stage::new(&host, &redis.url());
    let said = stage.init(&[]);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(
        said.stderr.contains("none answers") && said.stderr.contains("worker_enable_remote_control"),
        "{}",
        said.stderr
    );
    assert!(!stage.file().exists());

    // %d is the host's domain, and so the command line does not have the name.
    let _worker = stage.app(json!({})).worker(INTAKE, "codex-0@elsewhere%d", &ONE_AT_A_TIME);
    let said = stage.init(&[]);
    assert_eq!((said.code, stage.file().exists()), (Some(1), false), "{}", said.stdout);
    assert!(said.stderr.contains("there are codex-0@elsewhere") && said.stderr.contains("--worker"), "{}", said.stderr);
    let said = stage.init(&["--worker", "other-*"]);
    assert!(said.code == Some(1) && said.stderr.contains("named other-*"), "{}", said.stderr);
    let (_, text) = stage.written(&["--worker", "codex-?@else*"]);
    assert!(text.contains("# run_as = ") && text.contains("is another worker's"), "{text}");
}

#[test]
fn a_file_that_is_there_is_kept_and_what_is_wrong_with_the_broker_is_said_as_ever() {
    let (redis, host) = (Redis::guarded(), Host::new("host-1"));
    let stage = Stage::new(&host, &redis.url());
    let _worker = stage.app(json!({})).worker(INTAKE, "codex-0@host-1", &ONE_AT_A_TIME);
    fs::write(stage.file(), "mine").unwrap();
    let said = stage.init(&[]);
    assert_eq!(said.code, Some(64), "{}", said.stdout);
    assert!(said.stderr.contains("--force"), "{}", said.stderr);
    assert_eq!(fs::read_to_string(stage.file()).unwrap(), "mine");
    let (_, text) = stage.written(&["--force"]);
    assert!(text.contains("codex-0@host-1") && !text.contains(PASSWORD), "{text}");

    let said = stage.init(&["--output", "-"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(said.stdout, text);
    assert!(said.stderr.contains("worker-gate run") && !said.stderr.contains(PASSWORD), "{}", said.stderr);

    fs::remove_file(stage.file()).unwrap();
    for (url, code) in [
        ("redis://127.0.0.1:1/0".to_owned(), 69),
        (redis.url_as("", "wrong", redis.port()), 77),
        ("not a url".to_owned(), 78),
    ] {
        let said = stage.init(&["--broker", &url]);
        assert_eq!((said.code, stage.file().exists()), (Some(code), false), "{url}: {}", said.stderr);
    }
}
