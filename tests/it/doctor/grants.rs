//! Real workers, a producer and the gate with exactly the rights that `doctor --grants` prints, applied as it prints them.

use std::{
    array,
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use lapin::{
    BasicProperties, Channel,
    options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions},
    types::{FieldTable, ShortString},
};
use serde_json::json;

use super::{codes, doctor_with};
use crate::support::{
    celery::{App, Worker},
    facts::Facts,
    field::{Field, INTAKE, Kind, ONE_AT_A_TIME, each_once, for_each_edge},
    gate::Host,
    process::run,
    redis::PASSWORD,
    runtime::on,
    vhost::{self, Vhost},
    wait::{LONG, eventually, until},
};

for_each_edge! {
    tasks_flow_and_wait_with_the_printed_rights_and_doctor_finds_nothing_in_them
    what_goes_round_the_gate_is_refused_with_the_printed_rights
    an_operator_looks_and_commands_with_the_printed_rights
    rights_that_are_wider_are_found
    the_rights_are_printed_without_a_broker_and_without_a_password
}

const SOON: Duration = Duration::from_secs(30);
/// [`Vhost::add_user`] and [`crate::support::redis`] agree on it.
const SECRET: &str = PASSWORD;

/// When kombu's bindings of queues that expire are dead.
const SWEPT: &str = "_kombu.binding_deadlines";

/// A field whose users have what is printed.
struct Granted {
    field: Field,
    settings: String,
}

impl Granted {
    fn new(kind: Kind) -> Self {
        let field = Field::new(kind);
        let settings = with_task_events(&field.settings_with(&url(&field, kind, "gate")));
        let granted = Self { field, settings };
        let output = granted.field.host(0).command(&granted.settings, &["doctor", "--grants"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        eprintln!("{printed}");
        match kind {
            Kind::Route | Kind::FeedRabbitmq => apply_rabbitmq(granted.field.vhost(), &printed),
            Kind::FeedRedis => apply_redis(granted.field.redis().port(), &printed),
        }
        granted
    }

    fn url(&self, user: &str) -> String {
        url(&self.field, self.field.kind(), user)
    }

    fn worker_url(&self, n: usize) -> String {
        self.url(&format!("worker-{}", self.field.lane(n)))
    }

    /// An application with this user's address, whose producers publish as the grants say that they have to.
    fn app(&self, url: &str) -> App {
        let destination = match self.field.kind() {
            Kind::Route => json!({ "exchange": INTAKE, "routing_key": self.field.lane(0) }),
            Kind::FeedRabbitmq => json!({ "exchange": "codex.feed.held", "routing_key": INTAKE }),
            Kind::FeedRedis => json!({ "queue": INTAKE }),
        };
        App::routed(url, json!({ "app.*": destination }))
    }
}

/// What takes the most rights.
fn with_task_events(settings: &str) -> String {
    settings.replace("\nedge = ", "\ntask_events = true\nedge = ")
}

fn url(field: &Field, kind: Kind, user: &str) -> String {
    match kind {
        Kind::Route | Kind::FeedRabbitmq => field.vhost().url_as(user, SECRET, field.port()),
        Kind::FeedRedis => field.redis().url_as(user, SECRET, field.port()),
    }
}

/// Runs the printed lines, after adding the users, which the lines leave to people.
fn apply_rabbitmq(vhost: &Vhost, printed: &str) {
    for line in printed.lines().filter(|line| line.starts_with("rabbitmqctl ")) {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("rabbitmqctl() {{ printf '%s\\n' \"$@\"; }}; {line}"));
        let output = run(shell);
        let words: Vec<&str> = output.lines().collect();
        assert_eq!(words[..3], ["set_permissions", "-p", vhost.name()]);
        vhost.add_user(words[3], "^$", "^$", "^$");
        vhost.broker().ctl(&words);
    }
}

/// Runs the printed text as it is, but for the passwords.
fn apply_redis(port: u16, printed: &str) {
    let mut command = Command::new("redis-cli");
    command.args(["-p", &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut cli = command.spawn().unwrap();
    let commands: Vec<_> = printed.lines().filter(|line| line.starts_with("ACL ")).collect();
    let text = commands.join("\n").replace("PASSWORD", SECRET);
    cli.stdin.take().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
    let output = cli.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>(), vec!["OK"; commands.len()]);
}

fn tasks_flow_and_wait_with_the_printed_rights_and_doctor_finds_nothing_in_them(kind: Kind) {
    let granted = Granted::new(kind);
    let field = &granted.field;
    let gate = field.host(0).start(&granted.settings);
    field.wait_until_both_are(&gate, "admitted");
    let apps: [App; 2] = array::from_fn(|n| granted.app(&granted.worker_url(n)));
    if kind == Kind::FeedRedis {
        // Left by one of Celery's inspectors: every worker sweeps it.
        let _: u32 = field.redis().ask(&["ZADD", SWEPT, "1", "reply.celery.pidbox"]);
    }
    let mut workers: [_; 2] = array::from_fn(|n| apps[n].start_worker(&field.lane(n), &field.name(n), &ONE_AT_A_TIME));
    workers.iter_mut().for_each(Worker::wait_until_ready);
    let producer = granted.app(&granted.url("producer"));
    let runs = || {
        let mut runs = apps[0].runs();
        for (id, times) in apps[1].runs() {
            *runs.entry(id).or_default() += times;
        }
        runs
    };
    let wait_for =
        |what: &str, tasks: usize| eventually(LONG, what, || Some(runs()).filter(|runs| runs.len() >= tasks));
    field.send(&producer, "app.mark", "flow", 6, &[]);
    each_once(&wait_for("tasks flow", 6), 6);
    // The retry is published by the worker, to where its message came from.
    field.send(&producer, "app.retry_once", "again", 2, &[]);
    until(LONG, "the retries have run", || {
        let runs = runs();
        (0..2).all(|n| runs.get(&format!("again{n}")) == Some(&2))
    });

    if kind != Kind::FeedRedis {
        until(LONG, "task events are kept", || {
            (0..2).all(|n| field.vhost().count(&format!("worker-gate.tasks.{}", field.name(n))).is_some())
        });
    }
    let facts: Facts = field.facts();
    for host in field.hosts() {
        host.set_tool("speckit", "echo 'not installed'; exit 1\n");
    }
    field.wait_until_both_are(&gate, "quarantined");
    for n in 0..2 {
        let fact = facts.nth(SOON, "worker-quarantined", &field.name(n), 0);
        assert!(fact.body["exposed"]["tasks"].is_array(), "the worker has answered: {}", fact.body);
        let unknown = fact.body["exposed"]["ended_unknown"].as_str().unwrap_or_default();
        assert!(unknown.contains("-E"), "it was not started with -E, and nothing else is in the way: {unknown}");
    }
    let before = runs().len();
    field.send(&producer, "app.mark", "held", 4, &[]);
    field.wait_for_waiting(4);
    assert_eq!(runs().len(), before);
    field.hosts().iter().for_each(Host::mend_tools);
    field.wait_until_both_are(&gate, "admitted");
    wait_for("what waited has run", before + 4);

    let (worker, producer) = (granted.worker_url(0), granted.url("producer"));
    let env = [("WORKER_GATE_WORKER_URL", worker.as_str()), ("WORKER_GATE_PRODUCER_URL", producer.as_str())];
    let (findings, output) = doctor_with(field, &granted.settings, &[], &env);
    assert!(output.status.success() && findings.is_empty(), "{findings:?}");
    assert!(gate.stop().success());
    if kind == Kind::FeedRedis {
        let left = || field.redis().ask::<Vec<String>>(&["ZRANGE", SWEPT, "0", "-1"]);
        until(LONG, "dead bindings are swept", || left() == ["celery.pidbox"]);
    }
    // None of them has met a refusal: Celery would say so, and most often end.
    for worker in &workers {
        let log = worker.log();
        assert!(!log.contains("ACCESS_REFUSED") && !log.contains("NOPERM") && !log.contains("Traceback"), "{log}");
    }
}

fn an_operator_looks_and_commands_with_the_printed_rights(kind: Kind) {
    let granted = Granted::new(kind);
    let field = &granted.field;
    let gate = field.host(0).start(&granted.settings);
    field.wait_until_both_are(&gate, "admitted");
    let app = granted.app(&granted.worker_url(0));
    let mut worker = app.start_worker(&field.lane(0), &field.name(0), &ONE_AT_A_TIME);
    worker.wait_until_ready();
    let operator = field.settings_with(&granted.url("operator"));
    let run = |args: &[&str]| {
        let output = field.host(0).command(&operator, args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    // One that is slow to answer is not waited for.
    until(SOON, "the worker is seen", || {
        let (code, out, err) = run(&["status", "--json", "--worker", &field.name(0)]);
        assert!(code == 0 && err.is_empty(), "{out}{err}");
        out.contains("\"worker_seen\":true")
    });
    let (code, out, err) = run(&["hold", &field.name(0), "--reason", "by an operator"]);
    assert_eq!(code, 0, "{out}{err}");
    gate.wait_for_edge(SOON, &field.name(0), "shut");
    let (code, out, err) = run(&["release", &field.name(0)]);
    assert_eq!(code, 0, "{out}{err}");
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let mut events = field.host(0).start_command(&operator, &["events", "--json"]);
    events.wait_for_output(SOON, "gate-heartbeat");
    gate.kill();
    until(LONG, "the gate that was killed is shown as silent, and its ways as shut", || {
        let (code, out, _) = run(&["status", "--json"]);
        code == 1 && out.contains("gate_silent") && out.contains("\"edge\":\"shut\"")
    });
}

fn what_goes_round_the_gate_is_refused_with_the_printed_rights(kind: Kind) {
    let granted = Granted::new(kind);
    let field = &granted.field;
    let gate = field.host(0).start(&granted.settings);
    field.wait_until_both_are(&gate, "admitted");
    let (worker, producer) = (granted.worker_url(0), granted.url("producer"));
    let (own, other) = (field.lane(0), field.lane(1));
    match kind {
        Kind::Route => {
            assert!(bind(&worker, &own, INTAKE) && consume(&worker, &format!("{own}.held")));
            for user in [&worker, &producer] {
                assert!(
                    consume(user, &other) && publish(user, "", &other) && publish(user, &format!("{other}.lane"), "")
                );
            }
            assert!(consume(&producer, &own) && publish(&producer, "", &own) && publish(&producer, &own, &own));
            assert!(!publish(&producer, INTAKE, &own) && !publish(&worker, INTAKE, &own) && !consume(&worker, &own));
        }
        Kind::FeedRabbitmq => {
            assert!(consume(&worker, INTAKE) && bind(&worker, &own, "codex.feed") && consume(&producer, INTAKE));
            for user in [&worker, &producer] {
                assert!(
                    consume(user, &other) && publish(user, "", &other) && publish(user, &format!("{other}.lane"), "")
                );
            }
            assert!(!publish(&producer, "codex.feed.held", INTAKE) && !publish(&worker, "codex.feed", &own));
        }
        Kind::FeedRedis => {
            assert!(noperm(&worker, &["BRPOP", INTAKE, "1"]) && noperm(&worker, &["LRANGE", INTAKE, "0", "-1"]));
            assert!(noperm(&worker, &["LPUSH", &other, "x"]) && noperm(&producer, &["LPUSH", &own, "x"]));
            assert!(noperm(&worker, &["SET", &format!("worker-gate.owner.{}", field.name(0)), "x"]));
            assert!(noperm(&producer, &["RPOP", INTAKE]) && noperm(&worker, &["BRPOP", &other, "1"]));
            assert!(!noperm(&producer, &["LLEN", INTAKE]) && !noperm(&worker, &["LLEN", INTAKE]));
            assert!(!noperm(&worker, &["LLEN", &own]));
        }
    }
    assert!(gate.stop().success());
}

fn rights_that_are_wider_are_found(kind: Kind) {
    let granted = Granted::new(kind);
    let field = &granted.field;
    let gate = field.host(0).start(&granted.settings);
    field.wait_until_both_are(&gate, "admitted");
    // Whoever may do everything.
    let wide = field.url();
    for variable in ["WORKER_GATE_WORKER_URL", "WORKER_GATE_PRODUCER_URL"] {
        let (findings, output) = doctor_with(field, &granted.settings, &[], &[(variable, &wide)]);
        assert_eq!(output.status.code(), Some(1), "{findings:?}");
        assert_eq!(codes(&findings), ["not-refused"]);
        let all = json!(findings).to_string();
        let expected: &[&str] = match kind {
            Kind::Route => &["bind codex-0 to codex", "codex-0.held", "anonymous exchange", "declare and delete codex"],
            Kind::FeedRabbitmq => &["read codex", "bind codex-0.lane to codex.feed", "anonymous exchange"],
            Kind::FeedRedis => &["take from the intake codex", "own the worker", "an administrator's", "facts"],
        };
        assert!(expected.iter().all(|part| all.contains(part)), "{expected:?} in {findings:#?}");
    }
    // Harmless: no message was taken or made, and nothing is bound.
    assert_eq!(field.waiting() + field.in_lane(0) + field.in_lane(1), 0);
    if kind != Kind::FeedRedis {
        let ways = field.vhost().list("bindings");
        assert!(!json!(ways).to_string().contains("worker-gate.doctor"), "{ways:?}");
    }
    field.wait_until_both_are(&gate, "admitted");
    assert!(gate.stop().success());
}

fn the_rights_are_printed_without_a_broker_and_without_a_password(kind: Kind) {
    let field = Field::new(kind);
    let nowhere = match kind {
        Kind::Route | Kind::FeedRabbitmq => "amqp://me:hunter2@127.0.0.1:9/v",
        Kind::FeedRedis => "redis://me:hunter2@127.0.0.1:9/0",
    };
    let output = field.host(0).command(&field.settings_with(nowhere), &["doctor", "--grants"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !printed.contains("hunter2"), "{printed}");
    assert_eq!(printed.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count(), 5, "{printed}");
}

/// Whether RabbitMQ refuses it with 403; any other answer is none.
fn refused<F>(url: &str, work: impl FnOnce(Channel) -> F + Send + 'static) -> bool
where
    F: Future<Output = lapin::Result<()>> + Send + 'static,
{
    let connection = vhost::connect(url.to_owned());
    let channel = vhost::channel(&connection);
    match on(async move { work(channel).await }) {
        Ok(()) => false,
        Err(e) if matches!(e.kind(), lapin::ErrorKind::ProtocolError(e) if e.get_id() == 403) => true,
        Err(e) => panic!("{e}"),
    }
}

fn consume(url: &str, queue: &str) -> bool {
    let (queue, options) = (ShortString::from(queue), BasicConsumeOptions::default());
    refused(url, async move |channel: Channel| {
        channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.map(drop)
    })
}

fn bind(url: &str, queue: &str, exchange: &str) -> bool {
    let (queue, exchange) = (ShortString::from(queue), ShortString::from(exchange));
    refused(url, async move |channel: Channel| {
        channel.queue_bind(queue, exchange, "k".into(), QueueBindOptions::default(), FieldTable::default()).await
    })
}

fn publish(url: &str, exchange: &str, key: &str) -> bool {
    let (exchange, key) = (ShortString::from(exchange), ShortString::from(key));
    refused(url, async move |channel: Channel| {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange, key, options, b"x", BasicProperties::default()).await?.await.map(drop)
    })
}

/// Whether Redis refuses it for want of a right.
fn noperm(url: &str, words: &[&str]) -> bool {
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    match redis::Cmd::new().arg(words).query::<redis::Value>(&mut connection) {
        Ok(_) => false,
        Err(e) if e.code() == Some("NOPERM") => true,
        Err(e) => panic!("{words:?}: {e}"),
    }
}
