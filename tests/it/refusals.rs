//! What a gate refuses to start with, what it says then, and what it comes back from by itself.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{
    facts::{EXCHANGE, Facts},
    gate::{Host, mirrored},
    process::{free_port, run, tail},
    proxy::{Mode, Proxy},
    rabbitmq::Broker,
    vhost::{Vhost, vhost},
    wait::{eventually, until},
};

const SOON: Duration = Duration::from_secs(30);
/// For an end that needs no waiting: two handshakes, a few commands and an orderly stop, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(20);
const LANE: &str = "codex-0";
const HELD: &str = "codex-0.held";
/// What [`Vhost::add_user`] sets; guest's password is its name, which tells nothing.
const PASSWORD: &str = "secret";

/// How a gate ended that would not start.
#[derive(Debug)]
struct Refusal {
    code: Option<i32>,
    /// The one line for people.
    line: String,
    log: String,
    took: Duration,
}

impl Refusal {
    #[track_caller]
    fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.line.contains(part), "{part:?} is missing in:\n{}", self.line);
        }
    }
}

/// Starts a gate that cannot work, and waits for its end.
#[track_caller]
fn refusal(host: &Host, settings: &str, code: i32, bound: Duration) -> Refusal {
    let begin = Instant::now();
    let (ended, log) = host.start(settings).end(bound);
    // The log goes on over all starts on one host.
    let log = log[log.rfind("daemon: worker-gate ").unwrap_or_default()..].to_owned();
    let lines: Vec<_> = log.lines().filter(|line| line.starts_with("worker-gate: ")).collect();
    assert_eq!(lines.len(), 1, "one line says why:\n{}", tail(&log));
    assert_eq!(log.lines().last(), lines.first().copied(), "and it is the last:\n{}", tail(&log));
    assert!(!log.contains("panicked"), "{}", tail(&log));
    let line = lines[0].to_owned();
    let refusal = Refusal { code: ended, line, took: begin.elapsed(), log };
    assert_eq!(refusal.code, Some(code), "{refusal:#?}");
    refusal
}

/// Splits a command as a person's shell would.
#[track_caller]
fn words(command: &str) -> Vec<String> {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!("printf '%s\\n' {command}"));
    run(shell).lines().map(str::to_owned).collect()
}

/// The words after `rabbitmqctl` of the command that a refusal tells people to run.
#[track_caller]
fn command_in(line: &str) -> Vec<String> {
    let (_, command) = line.split_once("run: rabbitmqctl ").unwrap_or_else(|| panic!("no command in: {line}"));
    words(command.split(';').next().unwrap().split(" (").next().unwrap())
}

#[track_caller]
fn rabbitmqctl(vhost: &Vhost, args: &[String]) {
    vhost.broker().ctl(&args.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_wrong_password_is_said_once_and_never_shown() {
    let (vhost, host) = (vhost(), Host::new("password"));
    let user = format!("gate.{}", vhost.name());
    vhost.add_user(&user, ".*", ".*", ".*");
    let settings = host.settings(&vhost.url_as(&user, "hunter2-wrong", vhost.broker().port()), LANE);
    let refusal = refusal(&host, &settings, 77, AT_ONCE);
    refusal.says(&[&user, "password", "broker.url", "rabbitmqctl authenticate_user"]);
    assert!(!refusal.log.contains("hunter2"), "{}", refusal.log);
}

#[test]
fn a_missing_virtual_host_is_named_with_the_command_that_adds_it() {
    let (vhost, host) = (vhost(), Host::new("no-vhost"));
    let url = format!("amqp://guest:guest@127.0.0.1:{}/nowhere", vhost.broker().port());
    let refusal = refusal(&host, &host.settings(&url, LANE), 78, AT_ONCE);
    refusal.says(&["virtual host nowhere", "broker.url", "rabbitmqctl add_vhost nowhere"]);
}

#[test]
fn a_user_without_any_permission_is_named_with_the_command_that_gives_it() {
    let (vhost, other, host) = (vhost(), self::vhost(), Host::new("stranger"));
    let user = format!("gate.{}", other.name());
    other.add_user(&user, ".*", ".*", ".*");
    let settings = host.settings(&vhost.url_as(&user, PASSWORD, vhost.broker().port()), LANE);
    let refusal = refusal(&host, &settings, 77, AT_ONCE);
    refusal.says(&[&user, "no permission", "rabbitmqctl set_permissions"]);
    assert!(!refusal.log.contains(PASSWORD), "{}", refusal.log);
    rabbitmqctl(&vhost, &command_in(&refusal.line));
    host.start(&settings).wait_until(SOON, LANE, "admitted");
}

#[test]
fn permissions_that_do_not_cover_what_an_edge_needs_are_refused_with_the_command_that_widens_them() {
    let (vhost, host) = (vhost(), Host::new("narrow"));
    // Each of them is met by another command of the gate's.
    let narrow = [
        ("nothing to configure", "^$", ".*", ".*"),
        ("nothing to write", ".*", "^$", ".*"),
        ("nothing to read", ".*", ".*", "^$"),
        ("not the events", "^(codex|amq\\.gen|worker-gate\\.(edge|owner)|celery)", ".*", ".*"),
        ("not the edge and its owner", "^(codex|amq\\.gen|worker-gate\\.health|celery)", ".*", ".*"),
        ("not the holding queues", "^(codex|codex-0)$|^(worker-gate|amq\\.gen|celery)", ".*", ".*"),
        ("no queue with a name of the broker's", "^(codex|worker-gate|celery)", ".*", ".*"),
        ("not to the intake", ".*", "^(codex-0|codex\\.|worker-gate|amq)", ".*"),
        ("not to the events", ".*", "^(codex|amq|worker-gate\\.(edge|owner))", ".*"),
        ("not from the lane", ".*", ".*", "^(codex|codex\\..*|codex-0\\..*|amq.*|worker-gate.*)$"),
    ];
    for (index, (what, configure, write, read)) in narrow.into_iter().enumerate() {
        eprintln!("-- {what}");
        let user = format!("gate-{index}.{}", vhost.name());
        vhost.add_user(&user, configure, write, read);
        let settings = host.settings(&vhost.url_as(&user, PASSWORD, vhost.broker().port()), LANE);
        let refusal = refusal(&host, &settings, 77, AT_ONCE);
        eprintln!("{:?} {}", refusal.took, refusal.line);
        refusal.says(&["permission", &user, "run: rabbitmqctl set_permissions"]);
        assert!(!refusal.log.contains(PASSWORD), "{}", refusal.log);
    }
}

#[test]
fn permissions_that_cover_what_the_refusals_name_are_enough() {
    let (vhost, host) = (vhost(), Host::new("enough"));
    let user = format!("gate.{}", vhost.name());
    let declares = "^(codex|worker-gate\\.|amq\\.gen-)";
    vhost.add_user(&user, declares, "^(codex|worker-gate\\.|amq\\.(gen-|default$))", declares);
    let gate = host.start(&host.settings(&vhost.url_as(&user, PASSWORD, vhost.broker().port()), LANE));
    gate.wait_for_edge(SOON, LANE, "open");
    vhost.publish("codex", "codex-0", ["intake"]);
    vhost.wait_for_messages(SOON, LANE, 1);
    let mut facts = Facts::of(&vhost);
    host.set_tool("speckit", "echo 'not installed'; exit 1\n");
    gate.wait_for_edge(SOON, LANE, "shut");
    vhost.publish("", LANE, ["past the edge"]);
    vhost.wait_for_messages(SOON, HELD, 2);
    host.mend_tools();
    vhost.wait_for_messages(SOON, LANE, 2);
    // Leave to ask Celery's workers is another matter: without it the gate says what it does not know.
    let exposed = &facts.next(SOON, "worker-quarantined", LANE).body["exposed"];
    assert!(exposed.to_string().contains("celery.pidbox"), "{exposed}");
}

#[test]
fn an_intake_of_another_type_is_refused() {
    let (vhost, host) = (vhost(), Host::new("type"));
    vhost.declare_exchange("codex", "topic", Some("codex.held"));
    let refusal = refusal(&host, &host.settings(&vhost.url(), LANE), 78, AT_ONCE);
    refusal.says(&["exchange codex", "'topic'", "'direct'", "workers.intake.type"]);
}

#[test]
fn an_events_exchange_of_another_type_is_refused() {
    let (vhost, host) = (vhost(), Host::new("events-type"));
    vhost.declare_exchange(EXCHANGE, "topic", None);
    let refusal = refusal(&host, &host.settings(&vhost.url(), LANE), 78, AT_ONCE);
    refusal.says(&[EXCHANGE, "events.exchange", "fanout", "delete it or change events.exchange"]);
}

#[test]
fn celerys_event_exchange_of_another_type_is_refused_where_events_are_to_go_there() {
    let (vhost, host) = (vhost(), Host::new("mirror-type"));
    vhost.declare_exchange("celeryev", "fanout", None);
    let refusal = refusal(&host, &mirrored(&host.settings(&vhost.url(), LANE)), 78, AT_ONCE);
    refusal.says(&["celeryev", "events.mirror_celeryev", "topic"]);
}

#[test]
fn a_hash_intake_that_cannot_hold_is_refused() {
    let (vhost, host) = (vhost(), Host::new("hash"));
    vhost.declare_exchange("codex", "x-consistent-hash", None);
    let mut settings = host.settings_without_workers(&vhost.url());
    host.add_worker(&mut settings, LANE, r#"exchange = "codex", type = "x-consistent-hash", keys = ["1"]"#);
    let refusal = refusal(&host, &settings, 78, AT_ONCE);
    refusal.says(&["exchange codex", "alternate-exchange", "codex.held", "delete the exchange"]);
}

#[test]
fn an_intake_that_cannot_hold_is_refused_with_the_policy_that_mends_it_and_then_it_holds_and_gives_back() {
    let (vhost, host) = (vhost(), Host::new("policy"));
    vhost.declare_exchange("codex.in", "direct", None);
    let mut settings = host.settings_without_workers(&vhost.url());
    host.add_worker(&mut settings, LANE, r#"exchange = "codex.in", type = "direct", keys = ["codex-0"]"#);
    let refusal = refusal(&host, &settings, 78, AT_ONCE);
    refusal.says(&["codex-0", "intake codex.in", "alternate exchange", "rabbitmqctl set_policy"]);
    rabbitmqctl(&vhost, &command_in(&refusal.line));

    host.set_tool("speckit", "echo 'not installed'; exit 1\n");
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "quarantined");
    until(SOON, "the lane is watched", || vhost.is_intercepted(LANE));
    vhost.publish("codex.in", "codex-0", ["one"]);
    // The probe message may be there as well.
    until(SOON, "it is held", || vhost.waiting(HELD) > 0);
    host.mend_tools();
    vhost.wait_for_messages(SOON, LANE, 1);
    let messages = vhost.drain(LANE);
    assert_eq!((messages[0].text(), messages[0].exchange.as_str()), ("one", "codex.in"));
}

#[test]
fn an_intake_that_holds_by_a_policy_is_used_as_it_is() {
    let (vhost, host) = (vhost(), Host::new("policy-first"));
    vhost.declare_exchange("codex", "direct", None);
    vhost.set_policy("mine", "^codex$", "exchanges", &json!({"alternate-exchange": "codex.held"}));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_for_edge(SOON, LANE, "open");
    vhost.publish("codex", "codex-0", ["open"]);
    vhost.wait_for_messages(SOON, LANE, 1);
    assert!(gate.stop().success());
    until(SOON, "the edge goes with the gate", || !vhost.is_open(LANE));
    vhost.publish("codex", "codex-0", ["held"]);
    // The other one was still in the lane when the edge was shut.
    vhost.wait_for_messages(SOON, HELD, 2);
}

#[test]
fn a_queue_that_would_take_a_workers_messages_while_its_edge_is_shut_is_refused() {
    let (vhost, host) = (vhost(), Host::new("audited"));
    let settings = host.settings(&vhost.url(), LANE);
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    assert!(gate.stop().success());
    vhost.declare_queue("audit");
    vhost.bind("audit", "codex", "codex-0");
    let refusal = refusal(&host, &settings, 78, AT_ONCE);
    refusal.says(&["codex-0", "another queue is bound", "rabbitmqctl list_bindings"]);
}

#[test]
fn a_gate_that_finds_nobody_looks_again_for_half_a_minute_and_no_longer() {
    let host = Host::new("nobody");
    let url = format!("amqp://gate:{PASSWORD}@127.0.0.1:{}//", free_port());
    let refusal = refusal(&host, &host.settings(&url, LANE), 69, Duration::from_secs(60));
    refusal.says(&["reach RabbitMQ at 127.0.0.1:", "refused"]);
    assert!(refusal.took >= Duration::from_secs(25), "{:?}", refusal.took);
    let tries = refusal.log.lines().filter(|line| line.contains("again_in_ms")).count();
    assert!((5..30).contains(&tries), "{tries} tries:\n{}", tail(&refusal.log));
    assert!(!refusal.log.contains(PASSWORD), "{}", refusal.log);
}

#[test]
fn a_gate_that_is_started_before_its_broker_waits_for_it() {
    let (vhost, host) = (vhost(), Host::new("early"));
    let proxy = Proxy::to(vhost.broker().port());
    proxy.set(Mode::Refuse);
    let mut gate = host.start(&host.settings(&vhost.url_as("guest", "guest", proxy.port()), LANE));
    gate.wait_for_log(SOON, "again_in_ms");
    proxy.set(Mode::Forward);
    gate.wait_until(SOON, LANE, "admitted");
    assert!(gate.stop().success());
}

/// Listens, keeps what it hears, and answers every connection with the same bytes.
struct Ear {
    port: u16,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Ear {
    fn new(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let all = Arc::clone(&heard);
        // Both kinds of threads end with the test process.
        thread::spawn(move || {
            for socket in listener.incoming() {
                let (mut socket, all) = (socket.unwrap(), Arc::clone(&all));
                thread::spawn(move || {
                    let index = {
                        let mut all = all.lock().unwrap();
                        all.push(Vec::new());
                        all.len() - 1
                    };
                    let mut bytes = [0; 4096];
                    while let Ok(length @ 1..) = socket.read(&mut bytes) {
                        all.lock().unwrap()[index].extend_from_slice(&bytes[..length]);
                        let _ = socket.write_all(answer);
                    }
                });
            }
        });
        Self { port, heard }
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().unwrap().clone()
    }
}

#[test]
fn a_port_that_accepts_and_stays_silent_does_not_hang_the_gate() {
    let (ear, host) = (Ear::new(b""), Host::new("silent"));
    let url = format!("amqp://gate:{PASSWORD}@127.0.0.1:{}//", ear.port);
    let refusal = refusal(&host, &host.settings(&url, LANE), 69, Duration::from_secs(70));
    refusal.says(&["handshake", &ear.port.to_string(), "no answer"]);
    let heard = ear.heard();
    assert!(heard.len() > 1, "it tried {} times", heard.len());
    assert!(heard.iter().all(|bytes| bytes == b"AMQP\0\0\x09\x01"), "{heard:?}");
}

#[test]
fn a_password_meant_for_tls_never_leaves_in_clear() {
    // The header that a RabbitMQ gives who does not speak AMQP; and nothing, for as long as a handshake may take.
    for (answer, code) in [(b"AMQP\0\0\x09\x01".as_slice(), 78), (b"", 69)] {
        let (ear, host) = (Ear::new(answer), Host::new("tls"));
        let url = format!("amqps://gate:{PASSWORD}@127.0.0.1:{}//", ear.port);
        let refusal = refusal(&host, &host.settings(&url, LANE), code, Duration::from_secs(70));
        refusal.says(&[&ear.port.to_string()]);
        let heard = ear.heard();
        assert!(!heard.is_empty());
        for bytes in heard {
            // A TLS record with a handshake message.
            assert_eq!(bytes[..2], [0x16, 0x03], "{bytes:?}");
            for secret in [PASSWORD, "gate"] {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{bytes:?}");
            }
        }
    }
}

#[test]
fn amqps_to_a_plain_port_of_rabbitmq_is_refused() {
    let (vhost, host) = (vhost(), Host::new("amqps"));
    let url = vhost.url().replacen("amqp:", "amqps:", 1);
    let refusal = refusal(&host, &host.settings(&url, LANE), 78, AT_ONCE);
    refusal.says(&["agree on TLS", &vhost.broker().port().to_string(), "the port"]);
}

#[test]
fn a_state_dir_in_use_by_another_gate_is_refused() {
    let (vhost, host, second) = (vhost(), Host::new("first"), Host::new("second"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let own = format!("{:?}", second.state_dir());
    let settings = second.settings(&vhost.url(), "codex-1").replacen(&own, &format!("{:?}", host.state_dir()), 1);
    let refusal = refusal(&second, &settings, 78, AT_ONCE);
    refusal.says(&["gate.state_dir", host.state_dir().to_str().unwrap()]);
    gate.wait_until(SOON, LANE, "admitted");
}

#[test]
fn a_gate_whose_password_is_changed_stops_after_a_few_tries() {
    let (vhost, host) = (vhost(), Host::new("changed"));
    let user = format!("gate.{}", vhost.name());
    vhost.add_user(&user, ".*", ".*", ".*");
    let gate = host.start(&host.settings(&vhost.url_as(&user, PASSWORD, vhost.broker().port()), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let path = format!("/users/{user}");
    vhost.broker().api("PUT", &path, Some(&json!({"password": "another", "tags": ""})));
    // The management lists a connection some seconds after it was made.
    eventually(SOON, "the broker closes the gate's connections", || (vhost.close_connections() > 0).then_some(()));
    let (code, log) = gate.end(Duration::from_secs(60));
    assert_eq!(code, Some(77), "{}", tail(&log));
    let tries = log.lines().filter(|line| line.contains("again_in_ms")).count();
    assert!((3..10).contains(&tries), "{tries} tries:\n{}", tail(&log));
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("worker-gate: failed to log in") && last.contains(&user), "{last}");
    assert!(!log.contains(PASSWORD), "{log}");
    until(SOON, "the edge is shut", || !vhost.is_open(LANE));
}

#[test]
fn a_gate_comes_back_by_itself_when_its_broker_does_and_nothing_is_lost() {
    let (vhost, host) = (Vhost::on(Broker::fresh()), Host::new("restart"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_for_edge(SOON, LANE, "open");
    let bodies = |prefix: &str| (0..50).map(|n| format!("{prefix}-{n}")).collect::<Vec<_>>();
    vhost.publish("codex", "codex-0", bodies("before"));
    vhost.wait_for_messages(SOON, LANE, 50);

    vhost.broker().kill();
    gate.wait_for_edge(SOON, LANE, "shut");
    assert_eq!(gate.get("/readyz?worker=codex-0").unwrap().0, 503);
    vhost.broker().start();
    vhost.publish("codex", "codex-0", bodies("while"));
    gate.wait_for_edge(SOON, LANE, "open");
    vhost.publish("codex", "codex-0", bodies("after"));
    until(SOON, "everything has come through", || vhost.waiting(LANE) >= 150 && vhost.waiting(HELD) == 0);

    let mut seen: Vec<_> = vhost.drain(LANE).iter().map(|message| message.text().to_owned()).collect();
    let mut sent = [bodies("before"), bodies("while"), bodies("after")].concat();
    seen.sort_unstable();
    sent.sort_unstable();
    assert_eq!(seen, sent);
    assert_eq!(vhost.waiting(HELD), 0);
    assert!(gate.stop().success());
}
