use super::*;
use crate::settings::{Source, load};

fn printed(broker: &str, workers: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("s.toml");
    std::fs::write(&file, format!("[broker]\n{broker}\n[checks.codex_cli]\nrun = [[\"true\"]]\n{workers}")).unwrap();
    grants(&load(&Source { file: Some(file), hostname: "host-1".into(), ..Source::default() }).unwrap().settings)
}

const ROUTE: &str = r#"
[[workers]]
name = "codex-0@host-1"
edge = "route"
lane = "codex.0"
intake = { exchange = "codex", type = "direct", keys = ["codex.0"] }
"#;
const FEED: &str = r#"
[[workers]]
name = "codex-0@host-1"
edge = "feed"
lane = "codex-0.lane"
intake = { queue = "codex" }
"#;

/// The commands without the comments.
fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect()
}

/// The three patterns of a `set_permissions` line, as configure, write and read.
fn patterns(line: &str) -> [regex::Regex; 3] {
    let words: Vec<&str> = line.split('\'').collect();
    [5, 7, 9].map(|word| regex::Regex::new(words[word]).unwrap())
}

#[test]
fn a_routes_worker_may_publish_to_the_intake_and_neither_read_nor_bind_it() {
    let text = printed("url = \"amqp://gate:hunter2@h/v\"", ROUTE);
    let worker = lines(&text)[0];
    assert!(worker.starts_with("rabbitmqctl set_permissions -p 'v' 'worker-codex.0' "), "{worker}");
    let [configure, write, read] = patterns(worker);
    assert!(write.is_match("codex") && !read.is_match("codex") && !configure.is_match("codex"));
    for own in ["codex.0", "codex-0@host-1.celery.pidbox"] {
        assert!(configure.is_match(own) && write.is_match(own) && read.is_match(own), "{own}");
    }
    for not in ["codexx0", "codex.0.held", "codex.0.lane", "codex.held", "amq.default", "worker-gate.health", "x"] {
        assert!(!configure.is_match(not) && !write.is_match(not) && !read.is_match(not), "{not}");
    }
    assert!(!write.is_match("celery.pidbox"), "commands to other workers");
}

#[test]
fn a_producer_may_publish_to_the_intake_and_nothing_else() {
    let text = printed("url = \"amqp://gate:hunter2@h/v\"", ROUTE);
    assert_eq!(lines(&text)[1], "rabbitmqctl set_permissions -p 'v' 'producer' '^$' '^(codex)$' '^$'");
    let text = printed("url = \"amqp://gate:hunter2@h/v\"", FEED);
    assert_eq!(lines(&text)[1], r"rabbitmqctl set_permissions -p 'v' 'producer' '^$' '^(codex\.feed\.held)$' '^$'");
}

#[test]
fn the_gate_has_all_that_is_its_own() {
    let text = printed("url = \"amqp://gate:hunter2@h/v\"", ROUTE);
    let gate = lines(&text)[2];
    assert!(gate.contains(" 'gate' "), "{gate}");
    let [configure, write, read] = patterns(gate);
    for own in [
        "codex",
        "codex.held",
        "codex.unrouted",
        "codex.0",
        "codex.0.lane",
        "codex.0.held",
        "worker-gate.edge.codex-0@host-1",
        "worker-gate.owner.codex-0@host-1",
        "worker-gate.health",
        "worker-gate.control",
        "worker-gate.roll-call",
        "worker-gate.roll",
        "worker-gate.gate.host-1",
        "worker-gate.beat.host-1",
        "reply.celery.pidbox",
        "amq.gen-JzTY20BRgKO-HjmUJj0wLg",
    ] {
        assert!(configure.is_match(own) && write.is_match(own) && read.is_match(own), "{own}");
    }
    assert!(write.is_match("amq.default") && !write.is_match("worker-gate.edge.codex-1@host-1"));
}

#[test]
fn an_operator_asks_gates_and_reaches_no_message_of_anybodys() {
    let text = printed("url = \"amqp://gate:hunter2@h/v\"", ROUTE);
    let operator = lines(&text)[3];
    assert!(operator.contains(" 'operator' "), "{operator}");
    let [configure, write, read] = patterns(operator);
    assert!(write.is_match("worker-gate.control") && write.is_match("worker-gate.roll-call"));
    assert!(read.is_match("worker-gate.beat.host-7") && read.is_match("worker-gate.health"));
    for other in ["codex", "codex.0", "codex.0.held", "worker-gate.edge.codex-0@host-1", "amq.default"] {
        assert!(!configure.is_match(other) && !write.is_match(other) && !read.is_match(other), "{other}");
    }
    let text = printed("url = \"redis://gate:hunter2@h/5\"", FEED);
    let operator: Vec<&str> = lines(&text)[3].split(' ').collect();
    assert!(operator.contains(&"&/5.worker-gate.control") && !operator.contains(&"+evalsha"), "{operator:?}");
    assert!(operator.contains(&"%R~worker-gate.owner.*"), "who owns a worker is read and never written: {operator:?}");
}

#[test]
fn a_gate_may_write_to_celerys_events_only_where_it_is_to() {
    let mirrored = "\n[events]\nmirror_celeryev = true";
    let gate = |broker: &str, workers| lines(&printed(broker, workers))[2].to_owned();
    let amqp = "url = \"amqp://gate:hunter2@h/v\"";
    for (broker, may) in [(amqp.to_owned(), false), (format!("{amqp}{mirrored}"), true)] {
        let gate = gate(&broker, ROUTE);
        let [configure, write, read] = patterns(&gate);
        assert!(gate.contains(" 'gate' ") && read.is_match("celeryev"), "{gate}");
        assert_eq!((configure.is_match("celeryev"), write.is_match("celeryev")), (may, may), "{gate}");
    }
    let redis = "url = \"redis://gate:hunter2@h/5\"";
    assert!(!gate(redis, FEED).contains("&/5.celeryev/* "), "{}", gate(redis, FEED));
    assert!(gate(&format!("{redis}{mirrored}"), FEED).contains("&/5.celeryev/* "));
}

#[test]
fn no_password_is_printed_and_the_guest_is_not_asked_to_be_the_gate() {
    for (broker, workers) in [
        ("url = \"amqp://gate:hunter2@h/v\"", ROUTE),
        ("url = \"amqp://gate:hunter2@h/v\"", FEED),
        ("url = \"redis://gate:hunter2@h/0\"", FEED),
    ] {
        let text = printed(broker, workers);
        assert!(!text.contains("hunter2") && lines(&text).len() == 4, "{text}");
    }
    assert!(printed("url = \"amqp://h//\"", ROUTE).contains("'gate'"));
}

#[test]
fn a_worker_on_redis_takes_from_its_lane_alone() {
    let text = printed("url = \"redis://gate:hunter2@h/5\"\nglobal_keyprefix = \"p:\"", FEED);
    let worker: Vec<&str> = lines(&text)[0].split(' ').collect();
    assert_eq!(worker[..6], ["ACL", "SETUSER", "worker-codex-0.lane", "reset", "on", ">PASSWORD"]);
    for rule in [
        "~p:codex-0.lane",
        r#""~p:codex-0.lane\x06\x169""#,
        "%W~p:codex",
        r#""%W~p:codex\x06\x163""#,
        "%W~p:worker-gate.answers.*",
        "&p:/5.celery.pidbox",
        "&p:/5.celeryev/*",
        "+brpop",
    ] {
        assert!(worker.contains(&rule), "{rule} is missing in {worker:?}");
    }
    assert!(
        !worker.iter().any(|rule| rule.contains("owner") || *rule == "~p:codex" || rule.starts_with("+@")),
        "{worker:?}"
    );
    let producer: Vec<&str> = lines(&text)[1].split(' ').collect();
    assert!(
        producer.contains(&"%W~p:codex") && !producer.contains(&"+brpop") && !text.contains("+@all"),
        "{producer:?}"
    );
    let gate = lines(&text)[2];
    assert!(
        gate.starts_with("ACL SETUSER gate reset") && gate.contains("~p:worker-gate.owner.codex-0@host-1 "),
        "{gate}"
    );
}
