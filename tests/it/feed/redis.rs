//! The feed on Redis: the order of what is put back, exchanges, and the ways to reach and to guard a server.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use serde_json::{Value, json};
use worker_gate::report::outbox::STREAM_LENGTH;

use super::{A_WHILE, DRIFTED, SOON, marks};
use crate::support::{
    celery::App,
    facts::{EXCHANGE, Facts},
    field::{Field, INTAKE, Kind, ONE_AT_A_TIME, each_once},
    gate::{Host, MANAGED},
    process::tail,
    redis::{PASSWORD, Redis, Sentinels},
    tasks::Task,
    wait::{LONG, throughout, until},
};

/// For an end that needs no waiting.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Settings with more lines in `[broker]`.
fn with_broker(settings: &str, lines: &str) -> String {
    let mark = "heartbeat = \"1s\"\n";
    assert!(settings.contains(mark));
    settings.replacen(mark, &format!("{mark}{lines}\n"), 1)
}

#[test]
fn what_is_put_back_stands_at_the_head_of_the_intake_in_its_order_and_is_the_same_byte_for_byte() {
    let field = Field::on_redis(Redis::start());
    let (app, redis, lane) = (field.app(), field.redis(), field.lane(0));
    let host = field.host(0);
    let gate = host.start(&field.settings_of(host, 0).replace("depth = 1", "depth = 6"));
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let mut worker = field.worker(&app, 0);
    // Frozen, it is there and takes nothing, but for the one that it waits for already.
    worker.freeze();
    let urgent = |n: usize| Task::mark(format!("urgent-{n}"));
    let lazy = |n: usize| Task::mark(format!("lazy-{n}")).with_priority(6);
    redis.publish(INTAKE, (0..3).map(urgent).chain((0..9).map(lazy)));
    let all = redis.texts(INTAKE).len() + redis.texts(&lane).len();
    assert!(all >= 11, "{all} are there");
    until(SOON, "the lane is full", || redis.waiting(&lane) == 6);
    let (fed, left) = (redis.texts(&lane), redis.texts(INTAKE));
    let ids = redis.ids(&lane);
    assert!(ids.iter().any(|id| id.starts_with("urgent")) && ids.iter().any(|id| id.starts_with("lazy")), "{ids:?}");

    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, &field.name(0), "shut");
    until(SOON, "the lane is put back", || redis.waiting(&lane) == 0);
    // Each of the lists of the intake begins with what came out of the same list.
    let back = redis.texts(INTAKE);
    assert_eq!(back.len(), fed.len() + left.len());
    let in_order: Vec<String> = redis.ids(INTAKE);
    let of = |prefix: &str| in_order.iter().filter(|id| id.starts_with(prefix)).cloned().collect::<Vec<_>>();
    let ascending = |ids: &[String]| {
        let numbers: Vec<usize> = ids.iter().map(|id| id.split_once('-').unwrap().1.parse().unwrap()).collect();
        numbers.windows(2).all(|pair| pair[0] < pair[1])
    };
    assert!(ascending(&of("urgent")) && ascending(&of("lazy")), "{in_order:?}");
    assert_eq!(
        back.iter().collect::<BTreeSet<_>>(),
        fed.iter().chain(&left).collect::<BTreeSet<_>>(),
        "no byte is another"
    );

    host.set_profile(MANAGED);
    gate.wait_for_edge(SOON, &field.name(0), "open");
    worker.thaw();
    each_once(&app.wait_for_runs(SOON, 12), 12);
}

/// Settings for one worker that is fed from an exchange of this type with these keys.
#[test]
fn of_the_events_on_the_stream_the_oldest_go() {
    const MANY: u32 = 15_000;
    let field = Field::new(Kind::FeedRedis);
    let fill = format!("for _ = 1, {MANY} do redis.call('XADD', KEYS[1], '*', 'event', '{{}}') end");
    let _: Option<u32> = field.redis().ask(&["EVAL", &fill, "1", EXCHANGE]);
    let count = || field.redis().ask::<u32>(&["XLEN", EXCHANGE]);
    assert_eq!(count(), MANY);
    let _gate = field.admit_both();
    // Redis takes away whole nodes of a hundred.
    until(SOON, "the stream is as short as it has to be", || count() <= STREAM_LENGTH + 100);
    assert!(count() >= STREAM_LENGTH, "no more than has to goes");
    let newest: Vec<Vec<redis::Value>> = field.redis().ask(&["XREVRANGE", EXCHANGE, "+", "-", "COUNT", "1"]);
    assert!(format!("{newest:?}").contains("worker_name"), "what is told last is there: {newest:?}");
}

fn settings_for_exchange(field: &Field, kind: &str, keys: &str) -> String {
    let host = field.host(0);
    let mut settings = host.settings_without_workers(&field.url());
    let intake = format!(r#"exchange = "codex", type = "{kind}", keys = [{keys}]"#);
    host.add_fed_worker(&mut settings, &field.name(0), &field.lane(0), &intake);
    settings
}

#[test]
fn a_direct_exchange_leads_its_keys_to_a_holding_queue_for_good_and_the_feed_goes_on_from_there() {
    let field = Field::on_redis(Redis::start());
    let (redis, host, lane) = (field.redis(), field.host(0), field.lane(0));
    let held = format!("{lane}.held");
    let app = App::new(&field.url(), "codex", "k");
    let gate = host.start(&settings_for_exchange(&field, "direct", r#""k", "k2""#));
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let bound = |key: &str| (key.to_owned(), String::new(), held.clone());
    assert_eq!(redis.bindings_from("codex"), [bound("k"), bound("k2")]);
    let _worker = field.worker(&app, 0);
    app.send("app.retry_once", "m-", 3, &[]);
    app.send_with(&json!([{ "routing_key": "k2" }]), "app.mark", "n-", 3, &[]);
    until(SOON, "all have run, and the retries too", || app.runs().values().sum::<u32>() == 9);

    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, &field.name(0), "shut");
    assert_eq!(redis.bindings_from("codex"), [bound("k"), bound("k2")]);
    app.send("app.mark", "held-", 5, &[]);
    redis.wait_for_messages(SOON, &held, 5);
    throughout(A_WHILE, "they wait", || redis.waiting(&held) == 5 && app.runs().len() == 6);
    // The bindings stay when the gate goes: what comes meanwhile is kept.
    assert!(gate.stop().success());
    app.send("app.mark", "alone-", 5, &[]);
    assert_eq!(redis.waiting(&held), 10);
    host.set_profile(MANAGED);
    let gate = host.start(&settings_for_exchange(&field, "direct", r#""k", "k2""#));
    assert_eq!(app.wait_for_runs(SOON, 16).len(), 16);
    assert!(gate.stop().success());
}

#[test]
fn a_topic_exchange_leads_what_its_patterns_match_to_the_holding_queue() {
    let field = Field::on_redis(Redis::start());
    let (redis, host) = (field.redis(), field.host(0));
    let app = App::new(&field.url(), "codex", "codex.eu.low");
    let gate = host.start(&settings_for_exchange(&field, "topic", r#""codex.*.low", "codex.us.#""#));
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let held = format!("{}.held", field.lane(0));
    // As kombu writes a pattern (kombu/transport/virtual/exchange.py, `key_to_pattern`).
    let bound = |key: &str, pattern: &str| (key.to_owned(), pattern.to_owned(), held.clone());
    assert_eq!(
        redis.bindings_from("codex"),
        [bound("codex.*.low", r"^codex\.[^\.]+\.low$"), bound("codex.us.#", r"^codex\.us\..*?$")]
    );
    let _worker = field.worker(&app, 0);
    let to = |key: &str| json!({ "exchange": "codex", "exchange_type": "topic", "routing_key": key });
    app.send_with(&json!([to("codex.eu.low"), to("codex.us.high.night")]), "app.mark", "m-", 6, &[]);
    each_once(&app.wait_for_runs(SOON, 6), 6);
    assert!(gate.stop().success());
}

#[test]
fn a_binding_past_the_gate_is_undone_and_reported() {
    let field = Field::on_redis(Redis::start());
    let (redis, host, lane) = (field.redis(), field.host(0), field.lane(0));
    let gate = host.start(&settings_for_exchange(&field, "direct", r#""k""#));
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let facts = field.facts();
    // What a worker does whose task_queues name the intake as its queue's exchange.
    let member = format!("k\u{6}\u{16}\u{6}\u{16}{lane}");
    for table in ["_kombu.binding.codex", "_kombu.binding_permanent.codex"] {
        let () = redis.ask(&["SADD", table, &member]);
    }
    until(SOON, "the binding is undone", || {
        redis.bindings_from("codex") == [("k".to_owned(), String::new(), format!("{lane}.held"))]
    });
    let fact = facts.nth(SOON, "worker-bypass", &field.name(0), 0);
    assert_eq!(fact.body["reason"]["code"], "bypass", "{}", fact.body);
    // And a binding of the gate's that somebody has removed is made again.
    let () = redis.ask(&["DEL", "_kombu.binding.codex"]);
    until(SOON, "the binding is made again", || redis.bindings_from("codex").len() == 1);
}

#[test]
fn every_key_has_the_global_prefix() {
    let field = Field::on_redis(Redis::start());
    let (redis, host, lane) = (field.redis(), field.host(0), field.lane(0));
    let conf = json!({ "broker_transport_options": { "global_keyprefix": "it:" } });
    let app = field.app().with(conf);
    let settings = with_broker(&field.settings_of(host, 0), "global_keyprefix = \"it:\"");
    let gate = host.start(&settings);
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let _worker = field.worker(&app, 0);
    app.send("app.mark", "m-", 5, &[]);
    each_once(&app.wait_for_runs(SOON, 5), 5);
    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, &field.name(0), "shut");
    app.send("app.mark", "n-", 5, &[]);
    assert_eq!((redis.waiting("it:codex"), redis.waiting(&format!("it:{lane}"))), (5, 0));
    let keys: Vec<String> = redis.ask(&["KEYS", "*"]);
    assert!(keys.iter().all(|key| key.starts_with("it:")), "{keys:?}");
    assert!(keys.contains(&format!("it:{EXCHANGE}")), "{keys:?}");
    host.set_profile(MANAGED);
    each_once(&app.wait_for_runs(SOON, 10), 10);
    assert!(gate.stop().success());
}

/// A gate with these settings feeds a worker that comes by the ordinary port.
#[track_caller]
fn feeds(field: &Field, settings: &str) {
    let app = field.app();
    let gate = field.host(0).start(settings);
    gate.wait_for_edge(SOON, &field.name(0), "open");
    let _worker = field.worker(&app, 0);
    field.publish(marks("m-", 5));
    each_once(&app.wait_for_runs(SOON, 5), 5);
    assert!(gate.stop().success());
}

#[test]
fn a_gate_comes_by_a_unix_socket() {
    let field = Field::on_redis(Redis::start());
    let settings = field.settings_of(field.host(0), 0);
    feeds(&field, &settings.replace(&field.url(), &field.redis().socket_url()));
}

#[test]
fn a_gate_comes_with_the_password_of_the_default_user() {
    let field = Field::on_redis(Redis::guarded());
    let settings = field.settings_of(field.host(0), 0);
    assert!(settings.contains(PASSWORD));
    feeds(&field, &settings);
}

#[test]
fn a_gate_comes_as_a_user_of_its_own() {
    let field = Field::on_redis(Redis::start());
    field.redis().add_user("gate", &["~*", "&*", "+@all", "-@admin"]);
    let url = field.redis().url_as("gate", PASSWORD, field.port());
    feeds(&field, &field.settings_of(field.host(0), 0).replace(&field.url(), &url));
}

#[test]
fn a_gate_comes_by_tls_with_a_certificate_and_is_refused_without() {
    let field = Field::on_redis(Redis::with_certificates());
    let files = field.redis().certificates();
    let settings = field.settings_of(field.host(0), 0).replace(&field.url(), &field.redis().tls_url());
    let mut lines = format!("ca_file = {:?}\n", files.ca);
    let anonymous = with_broker(&settings, &lines);
    write!(lines, "cert_file = {:?}\nkey_file = {:?}\n", files.certificate, files.key).unwrap();
    feeds(&field, &with_broker(&settings, &lines));

    // TLS 1.3 tells a client that its certificate is missing only after the handshake.
    refused(field.host(0), &anonymous, 78, &["CertificateRequired", "broker.cert_file"]);
    // An authority that the gate does not know.
    refused(field.host(0), &settings, 78, &["certificate", "broker.ca_file"]);
}

#[test]
fn a_server_that_dies_and_comes_back_has_everything_and_the_feed_goes_on() {
    let field = Field::on_redis(Redis::durable());
    let (app, redis) = (field.app(), field.redis());
    let mut gate = field.admit_both();
    let _workers = field.workers(&app);
    field.publish(marks("before-", 6));
    each_once(&app.wait_for_runs(SOON, 6), 6);
    field.hosts().iter().for_each(|host| host.set_profile(DRIFTED));
    field.wait_until_both_are(&gate, "quarantined");
    field.publish(marks("held-", 6));
    redis.kill();
    gate.wait_for_log(SOON, "lost the connection to Redis");
    redis.start_again();
    until(SOON, "it owns its workers again", || field.is_owned(0) && field.is_owned(1));
    assert_eq!(field.waiting(), 6);
    field.hosts().iter().for_each(|host| host.set_profile(MANAGED));
    // Celery waits longer and longer before it tries again.
    each_once(&app.wait_for_runs(LONG, 12), 12);
    assert!(gate.stop().success());
}

#[test]
fn a_gate_and_its_worker_follow_the_sentinels_to_the_new_master() {
    let sentinels = Sentinels::start();
    let host = Host::new("sentinel");
    let (name, lane) = ("codex-0@sentinel", "codex-0.lane");
    let conf = json!({ "broker_transport_options": { "master_name": Sentinels::MASTER } });
    let app = App::routed(&sentinels.url(), json!({ "app.*": { "queue": INTAKE } })).with(conf);
    let settings = host.settings_without_workers(&sentinels.url());
    let mut settings = with_broker(&settings, &format!("master_name = \"{}\"", Sentinels::MASTER));
    host.add_fed_worker(&mut settings, name, lane, &format!(r#"queue = "{INTAKE}""#));
    let gate = host.start(&settings);
    gate.wait_for_edge(SOON, name, "open");
    let _worker = app.worker(lane, name, &ONE_AT_A_TIME);
    app.send("app.mark", "first-", 5, &[]);
    each_once(&app.wait_for_runs(SOON, 5), 5);
    host.set_profile(DRIFTED);
    gate.wait_for_edge(SOON, name, "shut");
    app.send("app.mark", "held-", 5, &[]);
    assert_eq!(sentinels.first().waiting(INTAKE), 5);

    sentinels.fail_over();
    sentinels.second().publish(INTAKE, marks("second-", 5));
    throughout(A_WHILE, "what was held is held", || sentinels.second().waiting(INTAKE) == 10);
    host.set_profile(MANAGED);
    gate.wait_for_edge(LONG, name, "open");
    // Celery looks for the new master when it has noticed that the old one is gone.
    each_once(&app.wait_for_runs(LONG, 15), 15);
    assert!(gate.stop().success());
}

fn last_line(log: &str) -> &str {
    log.lines().last().unwrap_or_default()
}

/// A gate that cannot work ends with this code, and its last line, which stands for people, has these words.
#[track_caller]
fn refused(host: &Host, settings: &str, code: i32, words: &[&str]) -> String {
    let (ended, log) = host.start(settings).end(AT_ONCE);
    assert_eq!(ended, Some(code), "{}", tail(&log));
    let line = last_line(&log);
    assert!(line.starts_with("worker-gate: "), "{}", tail(&log));
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in:\n{line}");
    }
    assert!(!log.contains("panicked"), "{}", tail(&log));
    log
}

#[test]
fn a_wrong_password_is_said_once_and_never_shown() {
    let field = Field::on_redis(Redis::guarded());
    let host = field.host(0);
    let settings = field.settings_of(host, 0);
    let wrong = settings.replace(&field.url(), &field.redis().url_as("", "hunter2-wrong", field.port()));
    let log = refused(host, &wrong, 77, &["password", "broker.url"]);
    assert!(!log.contains("hunter2"), "{log}");
    let none = settings.replace(&field.url(), &field.redis().url_at(field.port()));
    refused(host, &none, 77, &["password", "broker.url"]);
    let stranger = settings.replace(&field.url(), &field.redis().url_as("nobody", "hunter2-wrong", field.port()));
    let log = refused(host, &stranger, 77, &["nobody", "broker.url"]);
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn a_user_who_may_not_do_what_a_feed_needs_is_refused() {
    let field = Field::on_redis(Redis::start());
    let host = field.host(0);
    for (user, rules) in [
        ("no-keys", &["~nothing", "&*", "+@all"][..]),
        ("no-scripts", &["~*", "&*", "+@all", "-@scripting"]),
        ("no-moves", &["~*", "&*", "+@all", "-lmove"]),
    ] {
        eprintln!("-- {user}");
        field.redis().add_user(user, rules);
        let url = field.redis().url_as(user, PASSWORD, field.port());
        let settings = field.settings_of(host, 0).replace(&field.url(), &url);
        let log = refused(host, &settings, 77, &["permission", user]);
        assert!(!log.contains(PASSWORD), "{log}");
    }
}

#[test]
fn a_cluster_is_refused() {
    let field = Field::on_redis(Redis::cluster());
    let host = field.host(0);
    refused(host, &field.settings_of(host, 0), 78, &["Redis Cluster", "give the address of a single Redis"]);
}

#[test]
fn facts_are_on_a_stream_for_late_readers_as_they_were_on_the_channels() {
    let field = Field::on_redis(Redis::start());
    let (redis, host) = (field.redis(), field.host(0));
    let ears = [Facts::on_redis(redis), Facts::on_redis_with_keys(redis)];
    let gate = host.start(&field.settings_of(host, 0));
    gate.wait_until(SOON, &field.name(0), "admitted");
    host.set_profile(DRIFTED);
    gate.wait_until(SOON, &field.name(0), "quarantined");
    assert!(gate.stop().success());
    let [heard, heard_with_keys] = ears.map(|facts| -> Vec<Value> {
        facts.nth(SOON, "gate-offline", &format!("worker-gate@{}", host.name()), 0);
        facts.all().into_iter().map(|fact| fact.body).collect()
    });
    assert_eq!(heard, heard_with_keys);
    let entries: Vec<(String, Vec<String>)> = redis.ask(&["XRANGE", EXCHANGE, "-", "+"]);
    let kept: Vec<Value> = (entries.iter())
        .map(|(_, fields)| {
            assert_eq!((fields.len(), fields[0].as_str()), (2, "event"), "{fields:?}");
            serde_json::from_str(&fields[1]).unwrap()
        })
        .collect();
    assert_eq!(kept, heard);
    assert!(kept.len() >= 5, "{kept:?}");
}
