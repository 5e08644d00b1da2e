//! The same on Redis, where events are published and also stay on a stream.

use std::{ops::Range, thread, time::Duration};

use worker_gate::{
    cli::events::Filter,
    redis::{Link, connect, envelope::fanout_channel},
    report::outbox::{Outlet, RedisOutlet, gates, stream},
    rush::Rush,
    settings::{Broker, BrokerUrl, Tls},
};

use super::{EXCHANGE, Listening, SOON, are_read_by_kombu_and_celery, listen};
use crate::support::{
    proxy::Proxy,
    redis::{PASSWORD, Redis},
    runtime::on,
    wait::{eventually, throughout, until},
};

const PREFIX: &str = "fleet:";

fn settings(url: &str) -> Broker {
    Broker {
        urls: vec![BrokerUrl::parse(url).unwrap()],
        heartbeat: Duration::from_secs(2),
        global_keyprefix: PREFIX.to_owned(),
        priority_steps: vec![0],
        master_name: String::new(),
        tls: Tls::default(),
    }
}

/// What the daemon gives its outbox.
fn outlet(redis: &Redis, prefix: &str) -> (Link, Outlet) {
    let broker = settings(&redis.url());
    let (link, _) = on(async move { connect(&broker, "test").await }).unwrap();
    let outlet = RedisOutlet {
        connection: link.connection(),
        rush: Rush::default(),
        channel: fanout_channel(prefix, redis.database(), EXCHANGE, ""),
        stream: stream(prefix, EXCHANGE),
        gates: gates(prefix),
        celeryev: None,
    };
    (link, Outlet::Redis(outlet))
}

fn event(seq: u32) -> String {
    format!(r#"{{"type":"worker-admitted","seq":{seq},"timestamp":1.50}}"#)
}

/// Puts events on the stream, as a gate does.
fn write(redis: &Redis, seqs: Range<u32>) {
    let mut connection = redis.connect().unwrap();
    for seq in seqs {
        let mut add = redis::cmd("XADD");
        add.arg(stream(PREFIX, EXCHANGE)).arg("*").arg("event").arg(event(seq));
        let _: String = add.query(&mut connection).unwrap();
    }
}

fn lines(seqs: Range<u32>) -> String {
    seqs.map(|seq| event(seq) + "\n").collect()
}

fn listen_at(url: &str, since: Option<Duration>) -> Listening {
    listen(settings(url), Filter::default(), since)
}

#[track_caller]
fn until_subscribed(told: &Listening, times: usize) {
    let subscribed = || told.notes.text().matches("subscribed to worker-gate.health").count();
    until(SOON, "it is subscribed", || subscribed() == times);
}

#[track_caller]
fn until_shown(told: &Listening, seqs: Range<u32>) {
    until(SOON, "all is shown", || told.out.text().lines().count() >= seqs.len());
    assert_eq!(told.out.text(), lines(seqs));
}

#[test]
fn kombu_and_celerys_event_receiver_read_what_the_audit_log_says() {
    let redis = Redis::start();
    // Clients that know of no prefix.
    let (_link, outlet) = outlet(&redis, "");
    are_read_by_kombu_and_celery(&redis.url(), outlet, || {
        let subscribers: String = redis.ask(&["CLIENT", "LIST", "TYPE", "PUBSUB"]);
        subscribers.lines().filter(|client| client.contains(" psub=1 ")).count() == 3
    });
}

#[test]
fn events_begins_with_what_is_new_and_ends_with_its_reader() {
    let redis = Redis::start();
    write(&redis, 0..3);
    let told = listen_at(&redis.url(), None);
    until_subscribed(&told, 1);
    write(&redis, 3..5);
    until(SOON, "two are shown", || told.out.text().lines().count() == 2);
    assert_eq!(told.out.text(), lines(3..5));

    told.out.close();
    write(&redis, 5..6);
    let end = eventually(SOON, "it has ended", || told.ended.lock().unwrap().take());
    assert!(end.is_ok(), "{end:?}");
}

#[test]
fn a_stream_that_is_quiet_or_not_there_yet_is_waited_for_on_one_connection() {
    let redis = Redis::start();
    let told = listen_at(&redis.url(), None);
    until_subscribed(&told, 1);
    // Longer than a command may take.
    throughout(Duration::from_secs(5), "the link stays", || !told.notes.text().contains("lost"));
    write(&redis, 0..1);
    until_shown(&told, 0..1);
}

#[test]
fn what_was_and_what_comes_are_shown_once_each_and_in_order() {
    let redis = Redis::start();
    write(&redis, 0..2000);
    let told = thread::scope(|scope| {
        scope.spawn(|| write(&redis, 2000..4000));
        listen_at(&redis.url(), Some(Duration::from_secs(600)))
    });
    until_shown(&told, 0..4000);
}

#[test]
fn since_shows_no_more_than_was_asked_for() {
    let redis = Redis::start();
    let old: String = redis.ask(&["XADD", &stream(PREFIX, EXCHANGE), "1000-0", "event", &event(0)]);
    assert_eq!(old, "1000-0");
    write(&redis, 1..3);
    let told = listen_at(&redis.url(), Some(Duration::from_secs(600)));
    until_subscribed(&told, 1);
    write(&redis, 3..4);
    until(SOON, "three are shown", || told.out.text().lines().count() == 3);
    assert_eq!(told.out.text(), lines(1..4));
}

#[test]
fn nothing_is_missed_and_nothing_comes_twice_over_a_lost_link() {
    let redis = Redis::start();
    let proxy = Proxy::to(redis.port());
    let told = listen_at(&redis.url_at(proxy.port()), None);
    until_subscribed(&told, 1);
    write(&redis, 0..10);
    until_shown(&told, 0..10);
    for cut in 1..=3 {
        thread::scope(|scope| {
            scope.spawn(|| write(&redis, cut * 500 - 490..cut * 500 + 10));
            proxy.cut();
        });
        until_subscribed(&told, 1 + cut as usize);
        until_shown(&told, 0..cut * 500 + 10);
    }
    let notes = told.notes.text();
    assert_eq!(notes.matches("the stream keeps what comes until it is back").count(), 3, "{notes}");
    assert_eq!(notes.matches("nothing was missed").count(), 3, "{notes}");
}

#[test]
fn a_server_that_comes_back_without_its_data_is_followed_and_the_gap_is_told() {
    let redis = Redis::start();
    let told = listen_at(&redis.url(), None);
    until_subscribed(&told, 1);
    write(&redis, 0..2);
    until_shown(&told, 0..2);
    redis.kill();
    until(SOON, "it hears of the loss", || told.notes.text().contains("the link was lost"));
    redis.start_again();
    until_subscribed(&told, 2);
    until(SOON, "the gap is told", || told.notes.text().contains("something may be missed"));
    write(&redis, 2..4);
    until_shown(&told, 0..4);
}

#[test]
fn what_is_no_event_is_noted_and_passed_over() {
    let redis = Redis::start();
    let told = listen_at(&redis.url(), None);
    until_subscribed(&told, 1);
    let _: String = redis.ask(&["XADD", &stream(PREFIX, EXCHANGE), "*", "other", "x"]);
    let _: String = redis.ask(&["XADD", &stream(PREFIX, EXCHANGE), "*", "event", "[1]"]);
    write(&redis, 0..1);
    until_shown(&told, 0..1);
    assert_eq!(told.notes.text().matches("what is not an event").count(), 2, "{}", told.notes.text());
}

#[test]
fn what_waiting_will_not_mend_is_said_at_once() {
    let end = |url: &str| {
        let told = listen_at(url, None);
        let end = eventually(SOON, "it has ended", || told.ended.lock().unwrap().take());
        end.unwrap_err()
    };
    let guarded = Redis::guarded();
    let wrong = end(&guarded.url_as("", "wrong", guarded.port()));
    assert!(wrong.is_permission() && wrong.to_string().contains("broker.url"), "{wrong}");

    guarded.add_user("reader", &["~*", "+@connection", "+info", "+role"]);
    let powerless = end(&guarded.url_as("reader", PASSWORD, guarded.port()));
    let text = powerless.to_string();
    assert!(powerless.is_permission() && text.contains("NOPERM") && text.contains("XREAD"), "{text}");

    let open = Redis::start();
    let _: u32 = open.ask(&["LPUSH", &stream(PREFIX, EXCHANGE), "x"]);
    let text = end(&open.url()).to_string();
    assert!(text.contains("WRONGTYPE") && text.contains("events.exchange"), "{text}");
}
