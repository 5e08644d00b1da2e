//! How long `/readyz` takes to answer, beside what people ask a Celery worker without a gate.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    support::{
        celery::{App, venv},
        gate::{Gate, Host},
        process::run,
        vhost::vhost,
    },
    table::{Sample, Table},
};

const PER_SECOND: u32 = 100;
const WINDOW: Duration = Duration::from_secs(30);
/// For the 99th percentile, in milliseconds.
const MOST: f64 = 1.0;
const COMMANDS: usize = 10;
const QUESTIONS: usize = 50;
const SOON: Duration = Duration::from_secs(60);
const LANE: &str = "codex-0";
const NAME: &str = "codex-0@readyz";

pub(crate) fn measure() -> Vec<Table> {
    let (vhost, host) = (vhost(), Host::new("readyz"));
    let mut settings = host.settings_without_workers(&vhost.url());
    let intake = format!(r#"exchange = "codex", type = "direct", keys = ["{LANE}"]"#);
    host.add_routed_worker(&mut settings, NAME, LANE, &intake);
    let gate = host.start(&settings);
    gate.wait_until(SOON, NAME, "admitted");
    let app = App::new(&vhost.url(), "codex", LANE);
    let _worker = app.worker(LANE, NAME, &["-c", "1"]);

    let mut kept = connect(&gate);
    let kept = requests(|| ask(&mut kept));
    let fresh = requests(|| ask(&mut connect(&gate)));
    let (command, question) = (commands(&app), questions(&app));
    assert!(gate.stop().success());

    let title = format!("readyz: {PER_SECOND} requests a second for {} s, checks every second", WINDOW.as_secs());
    let mut table = Table::new(title);
    for (what, sample) in [("GET /readyz, one connection", &kept), ("GET /readyz, a connection each", &fresh)] {
        table.row(what, "ms", sample).against("Celery's answer alone", &question);
        table.row("  its 99th percentile", "ms", &Sample::one(sample.p99())).at_most(MOST);
    }
    table.row("celery inspect ping, the whole command", "ms", &command);
    table.row("  its answer alone, in a process that is there", "ms", &question);
    table.note("the worker that answers is idle; one that is busy with a solo pool answers when it is done");
    vec![table]
}

/// Asks at an even pace, whatever the last answer took.
fn requests(mut ask: impl FnMut()) -> Sample {
    let (begin, pace) = (Instant::now(), Duration::from_secs(1) / PER_SECOND);
    let mut sample = Sample::default();
    for n in 0..PER_SECOND * u32::try_from(WINDOW.as_secs()).unwrap() {
        thread::sleep((begin + pace * n).saturating_duration_since(Instant::now()));
        let asked = Instant::now();
        ask();
        sample.push_time(asked.elapsed());
    }
    sample
}

fn connect(gate: &Gate) -> TcpStream {
    let socket = TcpStream::connect(gate.address()).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// One request and the whole of its answer.
fn ask(socket: &mut TcpStream) {
    socket.write_all(format!("GET /readyz?worker={NAME} HTTP/1.1\r\nHost: gate\r\n\r\n").as_bytes()).unwrap();
    let (mut answer, mut bytes) = (String::new(), [0; 4096]);
    while !answer.ends_with('}') {
        let length = socket.read(&mut bytes).unwrap();
        assert!(length > 0, "it ended after {answer:?}");
        answer += std::str::from_utf8(&bytes[..length]).unwrap();
    }
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"ready":true}"#), "{answer}");
}

/// As a container's health check asks.
fn commands(app: &App) -> Sample {
    let mut sample = Sample::default();
    for _ in 0..COMMANDS {
        let mut command = app.python(Command::new(venv().join("bin/celery")));
        command.args(["-A", "app", "inspect", "ping", "-d", NAME, "--timeout", "10"]);
        let asked = Instant::now();
        let said = run(command);
        sample.push_time(asked.elapsed());
        assert!(said.contains("pong"), "{said}");
    }
    sample
}

/// Without the start of a process.
fn questions(app: &App) -> Sample {
    let text = format!(
        "import time\n\
         from app import app\n\
         inspect = app.control.inspect(destination=[{NAME:?}], timeout=10)\n\
         for _ in range({QUESTIONS}):\n    \
             asked = time.perf_counter()\n    \
             assert inspect.ping()\n    \
             print((time.perf_counter() - asked) * 1e3)\n"
    );
    let mut command = app.python(Command::new(venv().join("bin/python")));
    command.args(["-c", &text]);
    let mut sample = Sample::default();
    run(command).lines().for_each(|line| sample.push(line.parse().unwrap()));
    sample
}
