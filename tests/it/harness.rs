//! The harness does what the other tests rely on.

use std::time::Duration;

use lapin::{options::QueueDeclareOptions, types::FieldTable};
use serde_json::json;

use crate::support::{
    celery::{App, venv},
    facts::{EXCHANGE, Facts},
    gate::{Host, MANAGED},
    process::run,
    proxy::{Mode, Proxy},
    rabbitmq::Broker,
    redis::{Redis, Sentinels},
    runtime::on,
    tasks::Task,
    vhost::{Count, Vhost, channel, connect, vhost},
    wait::{throughout, until},
};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn two_vhosts_know_nothing_of_each_other() {
    let (one, other) = (vhost(), vhost());
    one.declare_exchange("in", "direct", None);
    one.declare_queue("q");
    one.bind("q", "in", "k");
    one.publish("in", "k", ["a", "b"]);

    assert_eq!(one.count("q"), Some(Count { messages: 2, consumers: 0 }));
    assert_eq!(other.count("q"), None);
    assert!(one.has_exchange("in") && !other.has_exchange("in"));
    assert_eq!(one.bindings_from("in"), [("queue".to_owned(), "q".to_owned(), "k".to_owned())]);

    let messages = one.drain("q");
    let seen: Vec<_> = messages.iter().map(|m| (m.exchange.as_str(), m.routing_key.as_str(), m.text())).collect();
    assert_eq!(seen, [("in", "k", "a"), ("in", "k", "b")]);
    assert!(messages.iter().all(|m| *m.properties.delivery_mode() == Some(2)));
}

#[test]
fn an_alternate_exchange_takes_what_has_lost_its_binding() {
    let vhost = vhost();
    vhost.declare_exchange("held", "fanout", None);
    vhost.declare_exchange("in", "x-consistent-hash", Some("held"));
    for (queue, exchange) in [("q", "in"), ("q.held", "held")] {
        vhost.declare_queue(queue);
        vhost.bind(queue, exchange, "1");
    }
    vhost.publish("in", "any", ["a"]);
    vhost.unbind("q", "in", "1");
    vhost.publish("in", "any", ["b"]);

    assert_eq!((vhost.waiting("q"), vhost.waiting("q.held")), (1, 1));
    assert_eq!(vhost.purge("q.held"), 1);
    vhost.delete_queue("q");
    assert_eq!(vhost.count("q"), None);
}

#[test]
fn a_user_may_do_what_the_patterns_allow_and_nothing_else() {
    let vhost = vhost();
    vhost.declare_queue("lane");
    let user = format!("worker.{}", vhost.name());
    vhost.add_user(&user, "^$", "^$", "^lane$");
    let channel = channel(&connect(vhost.url_as(&user, "secret", vhost.broker().port())));
    let refused = on(async move {
        let (options, none) = (QueueDeclareOptions::default(), FieldTable::default());
        channel.queue_declare("another".into(), options, none).await.unwrap_err()
    });
    assert!(refused.to_string().contains("ACCESS_REFUSED"), "{refused}");
}

#[test]
fn a_policy_limits_a_queue() {
    let vhost = vhost();
    vhost.declare_queue("short");
    vhost.set_policy("limit", "^short$", "queues", &json!({"max-length": 1}));
    until(SOON, "the policy is applied", || vhost.list("queues").iter().any(|queue| queue["policy"] == "limit"));
    vhost.publish("", "short", ["a", "b", "c"]);
    assert_eq!(vhost.drain("short").iter().map(|m| m.text().to_owned()).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn a_celery_worker_runs_what_is_published_to_an_exchange_with_a_key_and_only_then() {
    let vhost = vhost();
    vhost.declare_exchange("codex", "direct", None);
    vhost.declare_queue("waiting");
    vhost.bind("waiting", "codex", "codex-0");
    let app = App::new(&vhost.url(), "codex", "codex-0");
    let mut worker = app.worker("lane", "codex-0@one", &["--pool", "prefork", "-c", "2"]);

    app.send("app.mark", "early-", 3, &[]);
    assert_eq!(vhost.waiting("waiting"), 3);
    vhost.bind("lane", "codex", "codex-0");
    app.send("app.retry_once", "twice-", 1, &[]);
    app.send("app.slow", "slow-", 1, &[json!(0.1)]);
    until(SOON, "the slow one has ended", || app.marks().iter().any(|mark| mark.phase == "ended"));
    until(SOON, "the retry has run", || app.runs().get("twice-0") == Some(&2));

    let runs = app.runs();
    assert_eq!(runs.keys().collect::<Vec<_>>(), ["slow-0", "twice-0"]);
    let retry = app.marks().into_iter().find(|mark| mark.retries == 1).unwrap();
    assert_eq!(retry.worker, "codex-0@one");
    assert_eq!((retry.exchange.as_deref(), retry.routing_key.as_deref()), (Some("codex"), Some("codex-0")));
    assert!(worker.stop().is_some_and(|status| status.success()), "{}", worker.log());
}

#[test]
fn a_producer_that_publishes_all_the_time_counts_what_the_broker_has() {
    let vhost = vhost();
    vhost.declare_exchange("codex", "direct", None);
    vhost.declare_queue("lane");
    vhost.bind("lane", "codex", "k");
    let app = App::new(&vhost.url(), "codex", "k");
    let producer = app.keep_sending("p", 0.0);
    until(SOON, "a hundred are there", || vhost.waiting("lane") >= 100);
    let sent = producer.stop();
    assert!(sent.unknown.is_empty(), "{sent:?}");
    assert_eq!(vhost.waiting("lane"), sent.confirmed);
}

#[test]
fn a_frozen_worker_takes_its_prefetch_and_no_more() {
    let vhost = vhost();
    let app = App::routed(&vhost.url(), json!({"app.*": {"queue": "lane"}}));
    let mut worker = app.worker("lane", "codex-0@one", &["--pool", "solo", "-c", "1", "--prefetch-multiplier", "2"]);
    worker.freeze();
    app.send("app.mark", "m", 5, &[]);
    vhost.wait_for_messages(SOON, "lane", 3);
    worker.thaw();
    let runs = app.wait_for_runs(SOON, 5);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
    let ordered = app.marks().windows(2).all(|pair| pair[0].at <= pair[1].at);
    assert!(ordered, "{:?}", app.marks());
    worker.kill();
    until(SOON, "the broker has noticed", || vhost.count("lane").unwrap().consumers == 0);
}

#[test]
fn the_proxy_forwards_stalls_refuses_and_cuts() {
    let vhost = vhost();
    let proxy = Proxy::to(vhost.broker().port());
    let url = vhost.url_as("guest", "guest", proxy.port());
    let connection = connect(url.clone());
    assert_eq!(proxy.connections(), 1);

    proxy.set(Mode::Stall);
    let mut channel = Box::pin(connection.create_channel());
    let mut opened = || {
        let (waker, mut channel) = (std::task::Waker::noop(), channel.as_mut());
        channel.as_mut().poll(&mut std::task::Context::from_waker(waker)).map(|result| result.is_ok())
    };
    throughout(Duration::from_millis(300), "nothing passes", || opened().is_pending());
    proxy.set(Mode::Forward);
    let mut answer = std::task::Poll::Pending;
    until(SOON, "what was stalled passes", || {
        answer = opened();
        answer.is_ready()
    });
    assert_eq!(answer, std::task::Poll::Ready(true));

    proxy.cut();
    until(SOON, "the client has noticed the cut", || !connection.status().connected());
    connect(url.clone());
    proxy.set(Mode::Refuse);
    assert!(std::net::TcpStream::connect(("127.0.0.1", proxy.port())).is_err());
    proxy.set(Mode::Forward);
    connect(url);
}

#[test]
fn a_fresh_node_raises_an_alarm_dies_and_comes_back_with_its_messages() {
    let vhost = Vhost::on(Broker::fresh());
    vhost.declare_queue("q");
    vhost.publish("", "q", ["kept"]);
    vhost.broker().memory_alarm(true);
    vhost.broker().memory_alarm(false);
    vhost.broker().kill();
    let port = vhost.broker().port();
    until(SOON, "nobody listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    vhost.broker().start();
    vhost.wait_for_messages(SOON, "q", 1);
}

#[test]
fn facts_are_heard_in_order_and_each_only_once() {
    let vhost = vhost();
    let mut facts = Facts::of(&vhost);
    let begin = std::time::SystemTime::now();
    let fact = |kind: &str, seq: u32| json!({"type": kind, "worker_name": "w", "seq": seq}).to_string();
    vhost.publish(EXCHANGE, "", [fact("worker-held", 1), fact("worker-admitted", 2), fact("worker-held", 3)]);
    assert_eq!(facts.next(SOON, "worker-held", "w").body["seq"], 1);
    let third = facts.next(SOON, "worker-held", "w");
    assert_eq!(third.body["seq"], 3);
    assert!(third.received >= begin);
    assert_eq!(facts.all().len(), 3);
}

#[test]
fn the_broker_closes_every_connection_but_our_own() {
    let vhost = vhost();
    let app = App::routed(&vhost.url(), json!({"app.*": {"queue": "lane"}}));
    let worker = app.worker("lane", "codex-0@one", &["--pool", "solo"]);
    until(SOON, "the broker lists the worker's connections", || vhost.list("connections").len() > 1);
    assert!(vhost.close_connections() > 0);
    until(SOON, "the worker has noticed", || worker.log().contains("Connection to broker lost"));
    assert_eq!(vhost.waiting("lane"), 0);
}

#[test]
fn a_hosts_tools_do_what_a_test_says_and_its_settings_name_its_folders() {
    let host = Host::new("host-1");
    let login = || std::process::Command::new(host.tool("codex")).args(["login", "status"]).status().unwrap().code();
    assert_eq!(login(), Some(0));
    host.set_tool("codex", "echo 'Not logged in'; exit 1");
    assert_eq!(login(), Some(1));
    host.mend_tools();
    assert_eq!(login(), Some(0));

    let settings: toml::Table = host.settings("amqp://h//", "codex-0").parse().unwrap();
    assert_eq!(settings["workers"][0]["home"].as_str(), host.home().to_str());
    assert_eq!(settings["gate"]["state_dir"].as_str(), host.state_dir().to_str());
    assert_eq!(std::fs::read_to_string(host.profile()).unwrap(), MANAGED);
}

#[test]
fn a_redis_server_sorts_by_kombus_priorities_and_a_celery_worker_runs_what_the_tests_write() {
    let redis = Redis::start();
    let app = App::routed(&redis.url(), json!({"app.*": {"queue": "lane"}}));
    let prioritized = [9, 0, 4, 6, 0].into_iter().enumerate();
    redis.publish(
        "lane",
        prioritized.map(|(n, priority)| Task::mark(format!("{priority}-{n}")).with_priority(priority)),
    );
    assert_eq!(redis.waiting("lane"), 5);
    // 4 is sorted with 3.
    assert_eq!(redis.ids("lane"), ["0-1", "0-4", "4-2", "6-3", "9-0"]);
    app.send("app.mark", "c-", 1, &[]);
    assert_eq!(redis.ids("lane")[2], "c-0", "the tests and Celery mean the same list");
    let _worker = app.worker("lane", "codex-0@one", &["-c", "1", "--prefetch-multiplier", "1"]);
    app.wait_for_runs(SOON, 6);
    let order: Vec<_> = app.marks().into_iter().map(|mark| mark.id).collect();
    assert_eq!(order, ["0-1", "0-4", "c-0", "4-2", "6-3", "9-0"]);
}

#[test]
fn facts_on_redis_are_heard_as_kombu_publishes_them() {
    let redis = Redis::start();
    let app = App::routed(&redis.url(), json!({}));
    let (plain, keyed) = (Facts::on_redis(&redis), Facts::on_redis_with_keys(&redis));
    let text = format!(
        "from app import app\n\
         from kombu import Exchange\n\
         exchange = Exchange({EXCHANGE:?}, type='fanout')\n\
         with app.producer_or_acquire() as producer:\n    \
             for key in ('', 'worker.held'):\n        \
                 fact = dict(type='worker-held', worker_name='w', key=key)\n        \
                 producer.publish(fact, exchange=exchange, routing_key=key, declare=[exchange], serializer='json')\n"
    );
    let mut command = app.python(std::process::Command::new(venv().join("bin/python")));
    command.args(["-c", &text]);
    run(command);
    for (facts, key) in [(plain, ""), (keyed, "worker.held")] {
        assert_eq!(facts.nth(SOON, "worker-held", "w", 0).body["key"], key);
        assert_eq!(facts.all().len(), 1);
    }
}

#[test]
fn a_durable_redis_server_dies_and_comes_back_with_its_messages() {
    let redis = Redis::durable();
    redis.publish("lane", [Task::mark("kept")]);
    redis.kill();
    let port = redis.port();
    until(SOON, "nobody listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    redis.start_again();
    assert_eq!(redis.ids("lane"), ["kept"]);
}

#[test]
fn sentinels_make_the_other_server_the_master_when_the_first_is_killed() {
    let sentinels = Sentinels::start();
    sentinels.first().publish("lane", [Task::mark("kept")]);
    sentinels.fail_over();
    assert_eq!(sentinels.second().ids("lane"), ["kept"]);
}
