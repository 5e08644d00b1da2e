//! What `docker compose up` shows, told by the same command lines outside containers.

use std::{fs, process::Command, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{
    files::{BROKERS, PASSWORD, services, text},
    place::Place,
};
use crate::support::{
    gate::get_as,
    process::{self, Process, free_port, run, tail},
    scratch::Scratch,
    vhost::{Vhost, vhost},
    wait::{LONG, until},
};

const WORKERS: [(u32, &str); 2] = [(1, "codex-0@worker-1"), (2, "codex-1@worker-2")];
/// As README has them, behind `docker compose exec`.
const EDIT: &str = "sed -i 's/\"never\"/\"on-request\"/' /home/celery/.codex/config.toml";
const MEND: &str = "worker-gate profile apply";
const STATUS: &str = "worker-gate status";

/// A container of a worker: what `worker-gate-entrypoint` starts.
struct Container<'a> {
    place: &'a Place,
    number: u32,
    gate: Process,
    worker: Process,
}

impl<'a> Container<'a> {
    /// The config is made or mended, the gate starts, and the worker by the container's command.
    #[track_caller]
    fn start(place: &'a Place, number: u32) -> Self {
        let service = format!("worker-{number}");
        let settings = place.settings(&service, number);
        let gate = |words: &[&str]| {
            let mut command = place.command(&service, number, "worker-gate");
            command.args(words).arg("--config").arg(&settings);
            command
        };
        run(gate(&["profile", "apply"]));
        let gate = Process::start(gate(&["run"]), &place.file(&format!("{service}-gate.log")));
        let worker = place.start(&service, number, &[]);
        Self { place, number, gate, worker }
    }

    fn name(&self) -> String {
        format!("worker-{}", self.number)
    }

    fn is_healthy(&self) -> bool {
        self.place.is_healthy(&self.name())
    }

    #[track_caller]
    fn wait_until_healthy(&mut self) {
        let start = std::time::Instant::now();
        while !self.is_healthy() {
            let logs = || format!("{}\n{}", tail(&self.gate.output()), tail(&self.worker.output()));
            assert!(start.elapsed() < LONG, "{} is not healthy within {LONG:?}:\n{}", self.name(), logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many tasks it has done, each with Codex' own answer. Its log goes on when it starts anew.
    fn done(&self) -> usize {
        self.worker.output().lines().filter(|line| line.contains("succeeded in") && line.contains("codex-cli")).count()
    }

    /// How many it has in its hands: come, and not done.
    fn has(&self) -> usize {
        let output = self.worker.output();
        let of =
            |word: &str| output.lines().filter(|line| line.contains("Task app.work[") && line.contains(word)).count();
        of(" received") - of(" succeeded in")
    }

    /// A stop of the container: the worker goes warmly, and then the gate.
    #[track_caller]
    fn stop(&mut self) {
        for process in [&mut self.worker, &mut self.gate] {
            let status = process.stop(LONG).unwrap_or_else(|| panic!("it does not stop:\n{}", tail(&process.output())));
            assert!(status.success(), "{status}\n{}", tail(&process.output()));
        }
    }
}

/// A test that fails shows what its gates have said.
impl Drop for Container<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the gate of {}:\n{}", self.name(), tail(&self.gate.output()));
        }
    }
}

#[test]
fn on_rabbitmq_an_edited_config_shuts_out_one_worker_and_its_tasks_wait_until_it_is_mended() {
    let vhost = vhost();
    let services = services(BROKERS[0]);
    let environment = services["rabbitmq"].environment();
    let (user, password) = (&environment["RABBITMQ_DEFAULT_USER"], &environment["RABBITMQ_DEFAULT_PASS"]);
    assert_eq!(password, PASSWORD, "the password comes from BROKER_PASSWORD");
    vhost.add_user(user, ".*", ".*", ".*");
    let health = services["rabbitmq"].0["healthcheck"]["test"].clone();
    let url = vhost.url_as(user, password, vhost.broker().port());
    let place = Place::new(services, ("rabbitmq:5672//", url.split_once('@').unwrap().1));
    // Quiet it is by itself.
    let health: Vec<_> =
        health.as_array().unwrap().iter().filter_map(Value::as_str).filter(|word| *word != "-q").collect();
    assert_eq!(health[0], "CMD");
    vhost.broker().tool(health[1], &health[2..]);
    tell(&place, Some(&vhost));
}

#[test]
fn on_redis_the_other_worker_takes_what_an_edited_config_keeps_one_from() {
    let services = services(BROKERS[1]);
    let (port, dir) = (free_port(), Scratch::new("redis"));
    let words = services["redis"].words("command");
    let mut command = process::command(&words[0]);
    command.args(&words[1..]).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]).current_dir(dir.path());
    let redis = Process::start(command, &dir.join("log"));
    let health = super::files::strings(&services["redis"].0["healthcheck"]["test"]);
    assert_eq!(health[0], "CMD");
    let environment = services["redis"].environment();
    until(LONG, "Redis is healthy", || {
        let mut command = Command::new(&health[1]);
        command.args(["-p", &port.to_string()]).args(&health[2..]).envs(&environment);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim() == "PONG"
    });
    let place = Place::new(services, ("redis:6379/", &format!("127.0.0.1:{port}/")));
    tell(&place, None);
    drop(redis);
}

/// `vhost` is where tasks are routed and wait for one worker; on Redis all wait in one queue for either.
fn tell(place: &Place, vhost: Option<&Vhost>) {
    let readme = text("README.md");
    for line in
        [format!("exec -u celery worker-1 {EDIT}"), format!("exec worker-1 {MEND}"), format!("exec worker-1 {STATUS}")]
    {
        assert!(readme.contains(&format!("docker compose {line}")), "README has no {line}");
    }
    let alerts = place.start("alerts", 3, &[]);
    for (number, _) in WORKERS {
        let mut login = place.start(&format!("login-{number}"), number, &[]);
        assert!(login.wait(LONG).success(), "{}", login.output());
    }
    let mut workers = WORKERS.map(|(number, _)| Container::start(place, number));
    workers.iter_mut().for_each(Container::wait_until_healthy);
    let mut producer = place.start("producer", 4, &[]);
    until(LONG, "both have done two tasks", || workers.iter().all(|worker| worker.done() >= 2));
    let prometheus = vhost.map(|_| Prometheus::start(place));
    if let Some(prometheus) = &prometheus {
        prometheus.wait_for(r#"up{job="worker-gate"}"#, &["1", "1"]);
        prometheus.wait_for(r#"worker_gate_worker_admission{worker="codex-0@worker-1",admission="admitted"}"#, &["1"]);
    }

    place.exec(1, EDIT);
    until(LONG, "worker-1 is not ready", || !workers[0].is_healthy());
    until(LONG, "who listens is told", || {
        alerts.output().lines().any(|line| line.contains("codex-0@worker-1") && line.contains("approval_policy"))
    });
    if let Some(prometheus) = &prometheus {
        prometheus.wait_for(r#"worker_gate_worker_admission{worker="codex-0@worker-1",admission="admitted"}"#, &["0"]);
        prometheus.wait_for(r#"worker_gate_worker_reason{worker="codex-0@worker-1",code="profile_drifted"}"#, &["1"]);
    }
    let before = workers[1].done();
    until(LONG, "the other one goes on", || workers[1].done() >= before + 2);
    until(LONG, "what it had in its hands is done", || workers[0].has() == 0);
    let (shut_out, before) = (workers[0].done(), workers[1].done());
    until(LONG, "the other one still goes on", || workers[1].done() >= before + 4);
    assert_eq!(workers[0].done(), shut_out, "it has done something while it was shut out");
    if let Some(vhost) = vhost {
        assert!(vhost.waiting("codex-0.held") >= 3, "its tasks wait");
    }

    place.exec(1, MEND);
    until(LONG, "worker-1 is ready again", || workers[0].is_healthy());
    until(LONG, "it does tasks again", || workers[0].done() > shut_out + 2);
    assert!(place.exec(1, STATUS).lines().filter(|line| line.contains(" admitted ")).count() == 2);

    // The other one is recycled: it ends by itself, and its container with it, which mends the config when it starts anew.
    place.exec(2, EDIT);
    assert!(workers[1].worker.wait(LONG).success(), "{}", tail(&workers[1].worker.output()));
    workers[1].stop();
    let before = workers[1].done();
    workers[1] = Container::start(place, 2);
    workers[1].wait_until_healthy();
    until(LONG, "it does tasks again", || workers[1].done() > before + 1);

    // Nothing was lost meanwhile.
    assert!(producer.stop(LONG).is_some_and(|status| status.success()), "{}", tail(&producer.output()));
    let sent = producer.output().matches("Sending due task work-").count();
    assert!(sent > 10, "{sent}");
    let done = || workers.iter().map(Container::done).sum::<usize>();
    until(LONG, "all that was sent is done", || done() >= sent);
    println!("{sent} sent, {} done by {:?}", done(), workers.each_ref().map(Container::done));
    assert_eq!(done(), sent);
    workers.iter_mut().for_each(Container::stop);
}

/// Prometheus, with the stack's own configuration.
struct Prometheus {
    port: u16,
    process: Process,
}

impl Prometheus {
    #[track_caller]
    fn start(place: &Place) -> Self {
        let rules = place.services["prometheus"].mounted("/etc/prometheus/worker-gate.rules.yml");
        let rules_there = "/etc/prometheus/worker-gate.rules.yml";
        let file =
            place.translated("prometheus", "/etc/prometheus/prometheus.yml", &[(rules_there, rules.to_str().unwrap())]);
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "config"]).arg(&file);
        assert!(run(promtool).contains("1 rule files found"), "{}", fs::read_to_string(&file).unwrap());
        let port = place.port("prometheus");
        let words = place.services["prometheus"].words("command");
        let mut command = place.command("prometheus", 5, "prometheus");
        let words =
            words.iter().map(|word| place.here(word).replace("/etc/prometheus/prometheus.yml", file.to_str().unwrap()));
        command.args(words).arg(format!("--web.listen-address=127.0.0.1:{port}"));
        Self { port, process: Process::start(command, &place.file("prometheus.log")) }
    }

    /// Waits until a query gives these values.
    #[track_caller]
    fn wait_for(&self, query: &str, values: &[&str]) {
        let url = format!(
            "http://127.0.0.1:{}/api/v1/query?query={}",
            self.port,
            utf8_percent_encode(query, NON_ALPHANUMERIC)
        );
        let what = format!("{query} is {values:?}; {}", tail(&self.process.output()));
        until(LONG, &what, || {
            let Some((200, text)) = get_as(&url, "*/*") else { return false };
            let answer: Value = serde_json::from_str(&text).unwrap();
            let found = answer["data"]["result"].as_array().unwrap();
            found.iter().map(|sample| sample["value"][1].as_str().unwrap()).eq(values.iter().copied())
        });
    }
}
