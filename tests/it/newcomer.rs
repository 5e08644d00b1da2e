//! The way of a new user: the commands under "In five commands" in README.md, as they stand there, on an existing Celery app.

use std::{os::unix::fs::symlink, path::Path, process::Command, time::Instant};

use serde_json::json;
use worker_gate::settings::load::SEARCH;

use crate::{
    support::{
        celery::{App, venv},
        gate::Host,
        process::{self, Process, free_port, run},
        redis::Redis,
        scratch::{RUN_MARK, Scratch},
        vhost::vhost,
        wait::{LONG, eventually, until},
    },
    wheel::Wheel,
};

const README: &str = include_str!("../../README.md");
/// What the README says of the app that is there.
const WORKER: &str = "celery -A app worker -Q codex -n codex-0@host-1";

/// The commands of the first block under this heading, without their comments.
fn commands(heading: &str) -> Vec<&'static str> {
    let (_, chapter) = README.split_once(&format!("\n### {heading}\n")).expect("the heading is there");
    let (before, block) = chapter.split_once("```sh\n").expect("it has a block");
    assert!(!before.contains("\n#") && before.contains(&format!("`{WORKER}`")), "{before}");
    let (block, _) = block.split_once("```").unwrap();
    block.lines().map(|line| line.split(" #").next().unwrap().trim()).filter(|line| !line.is_empty()).collect()
}

/// A terminal of the user: a folder with the app and the wheel in it, and the environment in which everything runs.
struct Terminal<'a> {
    app: &'a App,
    dir: Scratch,
    env: Vec<(&'static str, String)>,
}

impl Terminal<'_> {
    /// The command as a shell runs it; it becomes the shell's only one, so that the process is the command itself.
    fn command(&self, line: &str) -> Command {
        let mut command = process::command("/bin/bash");
        command.arg("-c").arg(line);
        let run_mark = std::env::var_os(RUN_MARK);
        let mut command = self.app.python(command);
        let of_app: Vec<_> =
            command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
        command.env_clear().envs(of_app).envs(run_mark.map(|mark| (RUN_MARK, mark)));
        command.envs(self.env.clone()).current_dir(self.dir.path());
        command
    }

    fn start(&self, line: &str, log: &str) -> Process {
        Process::start(self.command(line), &self.dir.join(log))
    }

    /// Runs it again and again until its exit code and its output are these; gives the output.
    #[track_caller]
    fn wait_for(&self, line: &str, are: impl Fn(i32, &str) -> bool) -> String {
        eventually(LONG, line, || {
            let output = self.command(line).output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            are(output.status.code().unwrap(), &said).then_some(said)
        })
    }
}

#[test]
fn five_commands_lead_from_the_wheel_to_an_admitted_worker_on_rabbitmq() {
    let vhost = vhost();
    lead_to_an_admitted_worker(&vhost.url(), || vhost.waiting("codex"));
}

#[test]
fn five_commands_lead_from_the_wheel_to_an_admitted_worker_on_redis() {
    let redis = Redis::start();
    lead_to_an_admitted_worker(&redis.url(), || redis.waiting("codex"));
}

fn lead_to_an_admitted_worker(url: &str, waiting: impl Fn() -> u32) {
    let commands = commands("In five commands");
    assert!((1..=5).contains(&commands.len()), "{commands:#?}");
    assert!(!Path::new(SEARCH[0]).exists(), "{} is there: on such a machine nobody is new", SEARCH[0]);

    // The app, with a worker at work on a queue that others may share, and its tools.
    let (host, wheel) = (Host::new("newcomer"), Wheel::build());
    let environment = wheel.environment();
    let app = App::routed(url, json!({ "app.*": { "queue": "codex" } }));
    // Celery and the tools are in environments of their own.
    let path = environment.path().into_string().unwrap();
    let path = path.replacen(':', &format!(":{0}/bin:{0}/../bin:", venv().display()), 1);
    let env = vec![
        ("PATH", path),
        ("HOME", host.home().display().to_string()),
        ("CELERY_BROKER_URL", url.to_owned()),
        // A test machine's own folders and ports are none of a test's business.
        ("WORKER_GATE__GATE__STATE_DIR", host.state_dir().display().to_string()),
        ("WORKER_GATE__GATE__LISTEN", format!("127.0.0.1:{}", free_port())),
    ];
    let terminal = Terminal { app: &app, dir: Scratch::new("terminal"), env };
    symlink(wheel.file(), terminal.dir.join(&wheel.name())).unwrap();
    symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/app.py"), terminal.dir.join("app.py")).unwrap();
    run(terminal.command("echo sk-made-up-for-a-test | codex login --with-api-key"));
    let mut worker = terminal.start(WORKER, "worker-before.log");
    app.send("app.mark", "before-", 1, &[]);
    app.wait_for_runs(LONG, 1);

    let start = Instant::now();
    let mut running = Vec::new();
    for (nth, line) in commands.iter().enumerate() {
        let begun = Instant::now();
        if line.starts_with("celery ") {
            assert!(worker.stop(LONG).is_some(), "{}", worker.output());
        }
        if let Some(line) = line.strip_suffix('&') {
            running.push(terminal.start(line, &format!("command-{nth}.log")));
        } else if nth + 1 < commands.len() {
            println!("{}", run(terminal.command(line)));
        } else {
            // The last one asks, and a user asks again until the answer is yes.
            println!(
                "{}",
                terminal.wait_for(line, |code, said| code == 0 && said.contains("codex-0@host-1  admitted"))
            );
        }
        println!("{:5.1} s  {line}", begun.elapsed().as_secs_f64());
    }
    println!("{:5.1} s  all", start.elapsed().as_secs_f64());

    // Producers go on as before. Their tasks come by the lane alone: when its way is shut they wait.
    app.send("app.mark", "after-", 3, &[]);
    app.wait_for_runs(LONG, 4);
    assert!(app.marks().iter().all(|mark| mark.worker == "codex-0@host-1"), "{:?}", app.marks());
    host.set_profile("model = \"o5\"\n");
    terminal.wait_for("worker-gate status", |code, said| code == 1 && said.contains("codex-0@host-1  quarantined"));
    app.send("app.mark", "waits-", 1, &[]);
    until(LONG, "it waits", || waiting() == 1);
    for process in running.iter_mut().rev() {
        assert!(process.stop(LONG).is_some(), "{}", process.output());
    }
    assert_eq!(app.runs().len(), 4);
}
