//! Fifty gates with twenty workers each on one RabbitMQ: how long `status` takes, what their heartbeats cost the broker, and when
//! it is seen that ten of them were killed.

use std::{
    process::Output,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use serde_json::Value;

use crate::{
    idle::Usage,
    support::{
        facts::Facts,
        gate::{Gate, Host},
        rabbitmq::Broker,
        vhost::Vhost,
        wait::eventually,
    },
    table::{Sample, Table},
};

const GATES: usize = 50;
const WORKERS: usize = 20;
const KILLED: usize = 10;
const LOOKS: usize = 20;
/// Gates at once on the way to their first admission: the machine has a broker to run, too.
const TOGETHER: usize = 5;
const WINDOW: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(180);
/// `broker.heartbeat`.
const BROKER_TIME: Duration = Duration::from_secs(5);

pub(crate) fn measure() -> Vec<Table> {
    let broker = Broker::fresh();
    let vhost = Vhost::on(Arc::clone(&broker));
    let hosts: Vec<_> = (0..GATES).map(|n| Host::new(&format!("host-{n:02}"))).collect();
    let mut gates: Vec<Gate> = Vec::new();
    for some in hosts.chunks(TOGETHER) {
        let first = gates.len();
        gates.extend(some.iter().enumerate().map(|(n, host)| host.start(&settings(host, first + n, &vhost))));
        for (n, gate) in gates.iter().enumerate().skip(first) {
            for worker in 0..WORKERS {
                gate.wait_until(SOON, &name(n, worker), "admitted");
            }
        }
    }
    let operator = Operator { host: &hosts[0], settings: settings(&hosts[0], 0, &vhost) };
    let mut table = Table::new(format!("fleet: {GATES} gates with {WORKERS} workers each on one RabbitMQ"));
    let mut sample = Sample::default();
    (0..LOOKS).for_each(|_| sample.push_time(operator.look(GATES * WORKERS)));
    table.row("status --json, from its start to its end", "ms", &sample).at_most(1000.0);
    heartbeats(&mut table, &vhost, &broker);
    killed(&mut table, &operator, gates);
    vec![table]
}

fn settings(host: &Host, n: usize, vhost: &Vhost) -> String {
    let mut settings = crate::idle::settings(host, &vhost.url());
    // Checks that cost nothing: what is measured is the fleet.
    settings = settings.replace(r#"[["codex", "--version"], ["codex", "login", "status"]]"#, r#"[["true"]]"#);
    settings = settings.replace(r#"[["speckit", "--help"]]"#, r#"[["true"]]"#);
    settings = settings.replace("version = { command = 0, require = \">=0.1\" }\n", "");
    for worker in 0..WORKERS {
        let lane = format!("lane-{n}-{worker}");
        let intake = format!(r#"exchange = "codex", type = "direct", keys = ["{lane}"]"#);
        host.add_routed_worker(&mut settings, &name(n, worker), &lane, &intake);
    }
    settings
}

fn name(gate: usize, worker: usize) -> String {
    format!("codex-{worker:02}@host-{gate:02}")
}

struct Operator<'a> {
    host: &'a Host,
    settings: String,
}

impl Operator<'_> {
    fn status(&self) -> (Output, Vec<Value>) {
        let output = self.host.command(&self.settings, &["status", "--json"]);
        let records = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output, records)
    }

    /// How long it takes to see so many workers.
    fn look(&self, workers: usize) -> Duration {
        let begin = Instant::now();
        let (output, records) = self.status();
        let took = begin.elapsed();
        assert_eq!(records.len(), workers, "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0));
        took
    }
}

/// What the broker has to do for heartbeats: with no subscriber, and with one.
fn heartbeats(table: &mut Table, vhost: &Vhost, broker: &Broker) {
    let said = broker.ctl(&["eval", "os:getpid()."]);
    let digits: String = said.chars().filter(char::is_ascii_digit).collect();
    let pid = Pid::from_raw(digits.parse().unwrap());
    let window = || {
        let before = Usage::of(pid).cpu;
        thread::sleep(WINDOW);
        (Usage::of(pid).cpu - before) / WINDOW.as_secs_f64() * 100.0
    };
    let alone = window();
    let facts = Facts::of(vhost);
    let subscribed = window();
    let beats = facts.all().iter().filter(|fact| fact.kind() == "gate-heartbeat").count();
    let rate = f64::from(u32::try_from(beats).unwrap()) / WINDOW.as_secs_f64();
    table.row("heartbeats", "messages/s", &Sample::one(rate));
    table.row("CPU of the broker, all of it, nobody subscribed", "% of a core", &Sample::one(alone));
    table.row("the same with one subscriber to all events", "% of a core", &Sample::one(subscribed));
}

/// From the kill of ten gates to a status in which their two hundred workers are shut and they are silent.
fn killed(table: &mut Table, operator: &Operator<'_>, gates: Vec<Gate>) {
    let mut gates = gates;
    let dead = gates.split_off(GATES - KILLED);
    let begin = Instant::now();
    dead.into_iter().for_each(Gate::kill);
    let is_shut = |record: &&Value| record["reason"]["code"] == "gate_silent" && record["edge"] == "shut";
    let took = eventually(SOON, "the workers of gates that were killed are shut", || {
        let (_, records) = operator.status();
        assert_eq!(records.len(), GATES * WORKERS);
        (records.iter().filter(is_shut).count() == KILLED * WORKERS).then(|| begin.elapsed())
    });
    let sample = Sample::one(took.as_secs_f64() * 1e3);
    table
        .row(
            &format!("{KILLED} gates killed: status shows {} workers shut, and who is silent", KILLED * WORKERS),
            "ms",
            &sample,
        )
        .at_most(BROKER_TIME.as_secs_f64() * 1e3);
}
