//! Facts reach those who listen: kombu, Celery's event receiver and `worker-gate events`, also over a lost link.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use lapin::{ExchangeKind, options::ConfirmSelectOptions};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use worker_gate::{
    amqp::{self, Link},
    cli::events::{EventsError, Filter, Subscription, Target, events},
    model::{
        Account, Admission, CheckRecord, CheckStatus, Code, Edge, Exposed, ExposedTask, Fact, FactKind, Outcome,
        Reason, Record, Since, WorkerName,
    },
    report::{
        audit::{self, FILE_NAME},
        outbox::{Leftover, Outbox, Outlet, Scribe, declare},
    },
    rush::Rush,
    secret::Secret,
    settings::{Broker, BrokerUrl, Tls, broker_url::AmqpUrl},
};

use crate::support::{
    celery::venv,
    facts::Facts,
    process::{Process, command},
    proxy::{Mode, Proxy},
    runtime::{on, spawn},
    scratch::Scratch,
    vhost::{Vhost, vhost},
    wait::{eventually, until},
};

mod alerts;
mod durable;
mod example;
mod exec;
mod hook;
mod mirror;
mod redis;
mod slow;
mod stage;
mod webhook;

const EXCHANGE: &str = crate::support::facts::EXCHANGE;
const SOON: Duration = Duration::from_secs(30);

fn settings(vhost: &Vhost, port: u16) -> Broker {
    let url = AmqpUrl {
        host: "127.0.0.1".into(),
        port,
        user: "guest".into(),
        password: Secret::new("guest"),
        vhost: vhost.name().into(),
        tls: false,
    };
    Broker {
        urls: vec![BrokerUrl::Amqp(url)],
        heartbeat: Duration::from_secs(2),
        global_keyprefix: String::new(),
        priority_steps: vec![0],
        master_name: String::new(),
        tls: Tls::default(),
    }
}

/// What the daemon's edge gives the outbox: a link and a channel on it in confirm mode, with the exchange declared.
async fn outlet(broker: &Broker) -> (Link, Outlet) {
    let link = amqp::connect(broker, "test").await.unwrap();
    let channel = link.connection().create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    declare(&channel, EXCHANGE, ExchangeKind::Fanout).await.unwrap();
    (link, Outlet::RabbitMq { channel, rush: Rush::default(), mirror: false })
}

fn quarantined() -> Record {
    let check = CheckRecord {
        status: CheckStatus::Failed,
        required: true,
        outcome: Some(Outcome::ExitCode(1)),
        duration_ms: Some(90.5),
        version: Some("0.169.0".into()),
        fingerprint: None,
        message: Some("Not logged in – „nein“".into()),
        checked_at: Some("2026-11-22T10:00:00Z".parse().unwrap()),
    };
    let task = ExposedTask {
        id: "7f3c".into(),
        name: "app.build".into(),
        active: true,
        started_at: None,
        ended_at: None,
        since: Since::Drift,
    };
    Record {
        worker_name: WorkerName::new("codex-0@host-1"),
        codex_cli_status: CheckStatus::Failed,
        spec_kit_status: CheckStatus::Passed,
        config_hash: Some("c0ffee".into()),
        policy_hash: None,
        last_checked_at: Some("2026-11-22T10:00:00Z".parse().unwrap()),
        failure_message: Some("codex_cli failed".into()),
        checks: BTreeMap::from([("codex_cli".to_owned(), check)]),
        admission: Some(Admission::Quarantined),
        edge: Some(Edge::Shut),
        reason: Some(Reason::new(Code::CheckFailed, "codex_cli: not logged in", "codex login")),
        changed_at: None,
        hold: None,
        command: None,
        intake: None,
        account: Some(Account { before: 3, moved: 2, left: 0, taken: 1 }),
        exposed: Some(Exposed { tasks: Some(vec![task]), ..Exposed::default() }),
        broker_blocked: false,
        moving: None,
        seen_at: None,
        proven_at: None,
        latency_ms: Some(3.25),
        readmission: None,
        version_change: None,
        changed_settings: None,
        profile: None,
        image: None,
    }
}

fn fact(kind: FactKind, record: Option<Record>, audited: bool) -> Fact {
    Fact { kind, at: jiff::Timestamp::now(), record, reason: None, digest: None, audited }
}

fn heartbeat() -> Fact {
    fact(FactKind::GateHeartbeat, None, false)
}

#[test]
fn kombu_and_celerys_event_receiver_read_what_the_audit_log_says() {
    let vhost = vhost();
    let broker = settings(&vhost, vhost.broker().port());
    let (_link, outlet) = on(async move { outlet(&broker).await });
    are_read_by_kombu_and_celery(&vhost.url(), outlet, || true);
}

/// Four facts that go out by `outlet`, read by real clients at `url`, who can be heard of once they are `subscribed`.
#[track_caller]
fn are_read_by_kombu_and_celery(url: &str, outlet: Outlet, subscribed: impl Fn() -> bool) {
    let dir = Scratch::new("events");
    let mut python = command(venv().join("bin/python"));
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/read_events.py")).args([url, EXCHANGE, "4"]);
    let mut python = Process::start(python, &dir.join("python.log"));
    python.wait_for_output(SOON, "ready");
    until(SOON, "everybody is subscribed", subscribed);

    let state_dir = dir.join("state");
    let log = state_dir.join(FILE_NAME);
    let leftover = on(async move {
        let scribe = Scribe::open(&state_dir, "host-1").unwrap();
        // The giver of channels has ended already, as it may while the gate stops; the channel is still good.
        let (_, channels) = watch::channel(Some(outlet));
        let outbox = Outbox::spawn(scribe, EXCHANGE.into(), 1, channels).unwrap();
        outbox.offer(fact(FactKind::GateOnline, None, true));
        outbox.offer(fact(FactKind::WorkerQuarantined, Some(quarantined()), true));
        outbox.offer(heartbeat());
        outbox.offer(fact(FactKind::GateOffline, None, true));
        outbox.flush(Instant::now() + SOON).await
    });
    assert_eq!(leftover, Leftover { unwritten: 0, unpublished: 0 });
    assert!(python.wait(SOON).success(), "{}", python.output());

    let output = python.output();
    let told: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let by = |who: &str| told.iter().filter(|it| it["by"] == who).cloned().collect::<Vec<_>>();
    let (kombu, by_pattern, celery) = (by("kombu"), by("kombu #"), by("celery"));
    let types = |events: &[Value]| events.iter().map(|it| it["event"]["type"].clone()).collect::<Vec<_>>();
    let expected = ["gate-online", "worker-quarantined", "gate-heartbeat", "gate-offline"];
    assert_eq!(
        (types(&kombu), types(&celery)),
        (expected.map(Value::from).to_vec(), expected.map(Value::from).to_vec())
    );
    let without_reader = |events: &[Value]| {
        let strip = |event: &Value| {
            let mut event = event.clone();
            event.as_object_mut().unwrap().shift_remove("by");
            event
        };
        events.iter().map(strip).collect::<Vec<_>>()
    };
    assert_eq!(without_reader(&kombu), without_reader(&by_pattern));
    assert_eq!(kombu.iter().map(|it| it["event"]["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4]);

    let quarantine = &kombu[1];
    assert_eq!(quarantine["headers"], json!({"hostname": "codex-0@host-1"}));
    assert_eq!(quarantine["routing_key"], "worker.quarantined");
    assert_eq!(
        (&quarantine["content_type"], &quarantine["content_encoding"]),
        (&json!("application/json"), &json!("utf-8"))
    );
    assert_eq!(quarantine["delivery_mode"], 2);
    assert_eq!(quarantine["event"]["checks"]["codex_cli"]["message"], "Not logged in – „nein“");
    assert_eq!(kombu[0]["headers"], json!({"hostname": "worker-gate@host-1"}));

    // What was published is what was written, but for the chain, which the event bears witness of: up to its own line or one
    // that was written together with it.
    let lines: Vec<Value> = audit::read(&log).unwrap().map(|entry| Value::from(entry.unwrap().fields)).collect();
    for (own, mut written) in lines.iter().cloned().enumerate() {
        let mut published = kombu.iter().find(|it| it["event"]["seq"] == written["seq"]).unwrap()["event"].clone();
        assert!(lines[own..].iter().any(|line| published["audit_hash"] == line["hash"]), "{published}");
        for (object, names) in [(&mut written, &["prev", "hash"][..]), (&mut published, &["audit_hash"])] {
            for name in names {
                object.as_object_mut().unwrap().shift_remove(*name);
            }
        }
        assert_eq!(published, written);
    }

    let state = &by("state")[0];
    assert_eq!(state["workers"], json!({"codex-0@host-1": "quarantined"}));
    assert!(state["clock"].as_u64().unwrap() > 4, "Celery's clock went on past ours: {state}");
    // Gate and receiver share a time zone here, so Celery's correction must be none.
    let stamps = |events: &[Value]| events.iter().map(|it| it["event"]["timestamp"].clone()).collect::<Vec<_>>();
    assert_eq!(state["adjusted"], Value::from(stamps(&kombu)));
}

#[test]
fn facts_of_the_time_without_a_link_follow_in_order_when_it_is_back() {
    let (vhost, dir) = (vhost(), Scratch::new("events"));
    let facts = Facts::of(&vhost);
    let proxy = Proxy::to(vhost.broker().port());
    let broker = settings(&vhost, proxy.port());
    let (give, channels) = watch::channel(None);
    let scribe = Scribe::open(dir.path(), "g").unwrap();
    let outbox = on(async move { Outbox::spawn(scribe, EXCHANGE.into(), 1, channels) }).unwrap();
    let seen = || {
        let mut ids = Vec::new();
        facts.all().iter().for_each(|fact| {
            // A confirm that the cut took away makes one event come twice; the second has the same id.
            if !ids.contains(&fact.body["id"]) {
                ids.push(fact.body["id"].clone());
            }
        });
        ids.len()
    };

    outbox.offer(heartbeat());
    let connect = |broker: Broker| on(async move { outlet(&broker).await });
    let (link, first) = connect(broker.clone());
    give.send_replace(Some(first));
    until(SOON, "what waited for the first link is there", || seen() == 1);

    for cut in 1..=5 {
        for _ in 0..20 {
            outbox.offer(heartbeat());
        }
        proxy.cut();
        for _ in 0..20 {
            outbox.offer(heartbeat());
        }
        let (_link, next) = connect(broker.clone());
        give.send_replace(Some(next));
        until(SOON, "everything so far has come", || seen() == 1 + 40 * cut);
    }
    drop(link);

    // What was under way when a link was lost comes again.
    let seqs: Vec<_> = facts.all().iter().map(|fact| fact.body["seq"].as_u64().unwrap()).collect();
    assert_eq!(stage::first_of_each(&seqs), (1..=201).collect::<Vec<_>>(), "in order, without a hole");
}

#[test]
fn a_broker_that_hangs_holds_up_neither_the_offer_nor_the_audit_log_nor_the_stop() {
    let (vhost, dir) = (vhost(), Scratch::new("events"));
    let facts = Facts::of(&vhost);
    let proxy = Proxy::to(vhost.broker().port());
    let broker = settings(&vhost, proxy.port());
    let (link, outlet) = on(async move { outlet(&broker).await });
    let (give, channels) = watch::channel(Some(outlet));
    let scribe = Scribe::open(dir.path(), "g").unwrap();
    let outbox = on(async move { Outbox::spawn(scribe, EXCHANGE.into(), 1, channels) }).unwrap();
    outbox.offer(heartbeat());
    until(SOON, "the first has come", || facts.all().len() == 1);

    proxy.set(Mode::Stall);
    for _ in 0..10 {
        outbox.offer(fact(FactKind::WorkerQuarantined, Some(quarantined()), true));
    }
    let log = dir.join(FILE_NAME);
    until(SOON, "all are in the audit log", || audit::verify(&log).is_ok_and(|log| log.lines == 10));
    let started = std::time::Instant::now();
    let leftover = on(async move { outbox.flush(Instant::now() + Duration::from_millis(500)).await });
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(leftover, Leftover { unwritten: 0, unpublished: 10 });
    drop((give, link));
}

/// A terminal that a test can read, and close.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<(String, bool)>>);

impl Screen {
    fn text(&self) -> String {
        self.0.lock().unwrap().0.clone()
    }

    fn close(&self) {
        self.0.lock().unwrap().1 = true;
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut screen = self.0.lock().unwrap();
        if screen.1 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        screen.0.push_str(std::str::from_utf8(bytes).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `worker-gate events` with its two streams and its end.
struct Listening {
    out: Screen,
    notes: Screen,
    ended: Arc<Mutex<Option<Result<(), EventsError>>>>,
}

fn listen(broker: Broker, filter: Filter, since: Option<Duration>) -> Listening {
    let listening = Listening { out: Screen::default(), notes: Screen::default(), ended: Arc::default() };
    let (mut out, mut notes, ended) = (listening.out.clone(), listening.notes.clone(), Arc::clone(&listening.ended));
    spawn(async move {
        let subscription = Subscription { filter, since, durable: None, target: Target::Json };
        let result = events(&broker, EXCHANGE, subscription, &mut out, &mut notes).await;
        *ended.lock().unwrap() = Some(result);
    });
    listening
}

#[test]
fn events_shows_what_is_published_comes_back_after_a_lost_link_and_ends_with_its_reader() {
    let vhost = vhost();
    let proxy = Proxy::to(vhost.broker().port());
    let filter = Filter { kinds: vec!["worker-admitted".into()], ..Filter::default() };
    let told = listen(settings(&vhost, proxy.port()), filter, None);
    let subscribed = || told.notes.text().matches("subscribed to worker-gate.health").count();
    until(SOON, "it made the exchange itself and subscribed", || subscribed() == 1);

    let event = |kind: &str, seq: u32| format!(r#"{{"type":"{kind}","seq":{seq},"timestamp":1.50}}"#);
    vhost.publish(EXCHANGE, "", [event("worker-held", 1), event("worker-admitted", 2)]);
    until(SOON, "one event is shown", || !told.out.text().is_empty());
    assert_eq!(told.out.text(), event("worker-admitted", 2) + "\n");

    proxy.cut();
    until(SOON, "it is back", || subscribed() == 2);
    assert!(told.notes.text().contains("the link was lost"), "{}", told.notes.text());
    vhost.publish(EXCHANGE, "", [event("worker-admitted", 3)]);
    until(SOON, "it shows events again", || told.out.text().lines().count() == 2);

    told.out.close();
    vhost.publish(EXCHANGE, "", [event("worker-admitted", 4)]);
    let end = eventually(SOON, "it has ended", || told.ended.lock().unwrap().take());
    assert!(end.is_ok(), "{end:?}");
}

#[test]
fn events_says_at_once_what_waiting_will_not_mend() {
    let vhost = vhost();
    let end = |broker: Broker| {
        let told = listen(broker, Filter::default(), None);
        let end = eventually(SOON, "it has ended", || told.ended.lock().unwrap().take());
        end.unwrap_err().to_string()
    };
    let mut wrong = settings(&vhost, vhost.broker().port());
    if let BrokerUrl::Amqp(url) = &mut wrong.urls[0] {
        url.password = Secret::new("wrong");
    }
    assert!(end(wrong).contains("broker.url"));

    let user = format!("reader.{}", vhost.name());
    vhost.add_user(&user, "^$", "^$", "^$");
    let mut powerless = settings(&vhost, vhost.broker().port());
    if let BrokerUrl::Amqp(url) = &mut powerless.urls[0] {
        (url.user, url.password) = (user, Secret::new("secret"));
    }
    let refused = end(powerless);
    assert!(refused.contains("events.exchange") && refused.contains("ACCESS_REFUSED"), "{refused}");
}

#[test]
fn an_exchange_of_another_type_is_an_error_of_the_broker_and_no_panic() {
    let vhost = vhost();
    vhost.declare_exchange(EXCHANGE, "direct", None);
    let broker = settings(&vhost, vhost.broker().port());
    let error = on(async move {
        let link = amqp::connect(&broker, "test").await.unwrap();
        let channel = link.connection().create_channel().await.unwrap();
        timeout(SOON, declare(&channel, EXCHANGE, ExchangeKind::Fanout)).await.unwrap().unwrap_err()
    });
    assert!(error.to_string().contains("PRECONDITION_FAILED"), "{error}");
}
