//! Attempts to break the route edge where it is rare, slow or crowded.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    time::Duration,
};

use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use serde_json::json;

use crate::support::{
    celery::App,
    facts::Facts,
    gate::{GATE, Host, MANAGED, patient},
    process,
    proxy::Proxy,
    rabbitmq::Broker,
    scratch::Scratch,
    vhost::{Vhost, vhost},
    wait::{LONG, eventually, throughout, until},
};

const SOON: Duration = Duration::from_secs(30);
const LANE: &str = "codex-0";
const HELD: &str = "codex-0.held";
const DRIFTED: &str = "model = \"o5\"\napproval_policy = \"on-request\"\n";

fn numbers(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| n.to_string())
}

#[test]
fn a_backlog_that_takes_long_to_move_is_neither_a_bypass_nor_taken_nor_held_while_open() {
    const MANY: u32 = 60_000;
    let (vhost, host) = (vhost(), Host::new("backlog"));
    let gate = host.start(&patient(&host.settings(&vhost.url(), LANE)));
    gate.wait_until(SOON, LANE, "admitted");
    for _ in 0..6 {
        vhost.publish("codex", LANE, numbers(MANY as usize / 6));
    }
    vhost.wait_for_messages(SOON, LANE, MANY);
    let mut facts = Facts::of(&vhost);
    host.set_profile(DRIFTED);
    let fact = facts.next(SOON, "worker-quarantined", LANE);
    println!("shut: {}", fact.body["account"]);
    assert_eq!(fact.body["account"]["before"], MANY);
    assert_eq!(fact.body["account"]["taken"], 0);
    vhost.wait_for_messages(LONG, HELD, MANY);
    assert_eq!(facts.all().iter().filter(|fact| fact.kind() == "worker-bypass").count(), 0);

    host.set_profile(MANAGED);
    let fact = facts.next(SOON, "worker-admitted", LANE);
    println!("open: {}", fact.body["account"]);
    assert_eq!(fact.body["account"]["before"], MANY);
    assert_eq!(fact.body["account"]["taken"], 0);
    vhost.wait_for_messages(LONG, LANE, MANY);
    assert!(!gate.log().contains("making the way again"), "{}", gate.log());
    let bodies: Vec<_> = vhost.drain(LANE).into_iter().map(|message| message.text().parse::<u32>().unwrap()).collect();
    assert_eq!(bodies.len(), MANY as usize);
}

#[test]
fn a_crowd_on_one_profile_is_opened_shut_and_opened_again_and_every_change_is_told() {
    const CROWD: usize = 150;
    let (vhost, host) = (vhost(), Host::new("crowd"));
    let mut settings = host.settings_without_workers(&vhost.url());
    for n in 0..CROWD {
        let lane = format!("codex-{n}");
        host.add_worker(&mut settings, &lane, &format!(r#"exchange = "codex", type = "direct", keys = ["{lane}"]"#));
    }
    let gate = host.start(&settings);
    let open =
        |bound, edges| until(bound, &format!("{edges} are open"), || vhost.bindings_from("codex").len() == edges);
    open(LONG, CROWD);
    let facts = Facts::of(&vhost);
    for (profile, edges, kind) in [(DRIFTED, 0, "worker-quarantined"), (MANAGED, CROWD, "worker-admitted")] {
        host.set_profile(profile);
        open(SOON, edges);
        until(LONG, kind, || {
            let told: BTreeSet<_> = facts
                .all()
                .iter()
                .filter(|fact| fact.kind() == kind)
                .map(|fact| fact.body["worker_name"].to_string())
                .collect();
            told.len() == CROWD
        });
    }
    assert!(!gate.log().contains("lost the connection"), "{}", gate.log());
}

#[test]
fn a_bypass_of_an_edge_that_was_never_open_is_reported() {
    let (vhost, host) = (vhost(), Host::new("first-bypass"));
    host.set_profile(DRIFTED);
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "quarantined");
    let mut facts = Facts::of(&vhost);
    until(SOON, "the gate owns the worker", || vhost.is_intercepted(LANE));
    // What comes in the first moments may have waited there before the gate came.
    until(SOON, "a bypass is reported", || {
        vhost.publish("", LANE, ["past"]);
        facts.all().iter().any(|fact| fact.kind() == "worker-bypass")
    });
    let fact = facts.next(SOON, "worker-bypass", LANE);
    assert!(fact.body["reason"]["detail"].as_str().unwrap().contains("exchange '' key 'codex-0'"), "{}", fact.body);
}

#[test]
fn a_worker_that_was_told_to_stop_consuming_and_has_not_read_it_yet_consumes_once_its_edge_is_open() {
    let (vhost, host) = (vhost(), Host::new("deaf"));
    let app = App::new(&vhost.url(), "codex", LANE);
    let _worker = app.worker(LANE, LANE, &["-P", "solo"]);
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_for_edge(SOON, LANE, "open");
    let mut facts = Facts::of(&vhost);
    // Its one thread does not look at the mailbox meanwhile.
    app.send("app.slow", "long", 1, &[json!(8)]);
    app.wait_for_runs(SOON, 1);
    host.set_profile(DRIFTED);
    // The account is told, so what comes now comes past the edge.
    facts.next(SOON, "worker-quarantined", LANE);
    vhost.publish("", LANE, ["nothing that Celery could run"]);
    facts.next(SOON, "worker-bypass", LANE);
    vhost.wait_for_messages(SOON, HELD, 1);
    host.set_profile(MANAGED);
    gate.wait_for_edge(SOON, LANE, "open");
    assert!(!app.marks().iter().any(|mark| mark.phase == "ended"), "the task was to last longer than this");
    until(SOON, "the task has ended", || app.marks().iter().any(|mark| mark.phase == "ended"));
    app.send("app.mark", "after", 1, &[]);
    app.wait_for_runs(SOON, 2);
}

#[test]
fn a_message_held_for_a_key_that_the_settings_no_longer_name_does_not_go_round_for_ever() {
    for kind in ["direct", "topic"] {
        let (vhost, host) = (vhost(), Host::new("old-key"));
        let mut settings = host.settings_without_workers(&vhost.url());
        host.add_worker(&mut settings, LANE, &format!(r#"exchange = "codex", type = "{kind}", keys = ["old"]"#));
        let gate = host.start(&settings);
        gate.wait_until(SOON, LANE, "admitted");
        assert!(gate.stop().success());
        vhost.publish("codex", "old", ["old"]);
        vhost.wait_for_messages(SOON, HELD, 1);

        let gate = host.start(&settings.replace("\"old\"", "\"new\""));
        gate.wait_until(SOON, LANE, "admitted");
        vhost.wait_for_messages(SOON, "codex.unrouted", 1);
        vhost.publish("codex", "new", ["new"]);
        vhost.wait_for_messages(SOON, LANE, 1);
        throughout(Duration::from_secs(3), "it stays there", || vhost.waiting("codex.unrouted") == 1);
        assert!(!gate.log().contains("making the way again"), "{}", gate.log());
    }
}

#[test]
fn an_alarm_delays_moving_and_shuts_no_other_edge() {
    let broker = Broker::fresh();
    let (vhost, host) = (Vhost::on(broker), Host::new("alarm"));
    let other = Host::new("alarm-other");
    let mut settings = host.settings(&vhost.url(), LANE);
    // Other users' checks are other checks: this worker stays fit.
    other.add_worker(&mut settings, "codex-1", r#"exchange = "codex", type = "direct", keys = ["codex-1"]"#);
    let gate = host.start(&settings);
    for lane in [LANE, "codex-1"] {
        gate.wait_until(SOON, lane, "admitted");
    }
    vhost.publish("codex", LANE, numbers(2_000));
    vhost.wait_for_messages(SOON, LANE, 2_000);
    let mut facts = Facts::of(&vhost);
    vhost.broker().memory_alarm(true);
    host.set_profile(DRIFTED);
    until(SOON, "the edge is shut", || !vhost.is_open(LANE));
    throughout(Duration::from_secs(15), "the other edge stays open", || vhost.is_open("codex-1"));

    // A wish to open that is outdated by the time the movers have stopped must not open anything.
    host.set_profile(MANAGED);
    gate.wait_until(SOON, LANE, "admitted");
    host.set_profile(DRIFTED);
    gate.wait_until(SOON, LANE, "quarantined");
    // It may have been opened in time, and then it is shut by now or in a moment.
    until(SOON, "it is shut", || !vhost.is_open(LANE));
    throughout(Duration::from_secs(8), "it is not opened", || !vhost.is_open(LANE));

    vhost.broker().memory_alarm(false);
    until(LONG, "all of them are held", || vhost.waiting(HELD) >= 2_000 && vhost.waiting(LANE) == 0);
    assert!(vhost.is_open("codex-1"));
    assert!(!gate.log().contains("lost the connection"), "{}", gate.log());
    facts.next(SOON, "worker-quarantined", LANE);
    assert!(gate.stop().success());
    let held: Vec<_> = vhost.drain(HELD).iter().map(|message| message.text().to_owned()).collect();
    assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), 2_000);
    assert!(held.len() <= 2_000 + 64, "twice only what was in flight: {}", held.len());
}

#[test]
fn a_gate_that_starts_in_an_alarm_keeps_the_lane_to_itself_for_as_long_as_that_lasts() {
    let (vhost, host) = (Vhost::on(Broker::fresh()), Host::new("alarm-start"));
    let settings = host.settings(&vhost.url(), LANE);
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    assert!(gate.stop().success());
    vhost.publish("", LANE, numbers(400));
    vhost.broker().memory_alarm(true);
    let gate = host.start(&settings);
    until(SOON, "it cannot prove its way", || gate.log().contains("RabbitMQ takes none"));
    assert!(vhost.is_intercepted(LANE));
    let worker = vhost.consume(LANE);
    throughout(Duration::from_secs(15), "the worker has nothing", || worker.count() == 0);
    vhost.broker().memory_alarm(false);
    gate.wait_until(SOON, LANE, "admitted");
    until(SOON, "it has all of them", || worker.count() == 400);
    assert!(gate.stop().success());
}

#[test]
fn a_gate_that_starts_in_an_alarm_goes_on_when_rabbitmq_takes_back_what_it_has_had_for_too_long() {
    let (vhost, host) = (Vhost::on(Broker::fresh()), Host::new("alarm-long"));
    let settings = host.settings(&vhost.url(), LANE);
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    assert!(gate.stop().success());
    vhost.publish("", LANE, numbers(400));
    // Instead of half an hour, looked at once a minute.
    let set = |key: &str| format!("application:set_env(rabbit, {key}, 1000)");
    vhost.broker().ctl(&["eval", &format!("{}, {}.", set("consumer_timeout"), set("channel_tick_interval"))]);
    vhost.broker().memory_alarm(true);
    let gate = host.start(&settings);
    until(SOON, "it cannot prove its way", || gate.log().contains("RabbitMQ takes none"));
    let is_there = || vhost.is_intercepted(LANE);
    for _ in 0..3 {
        until(SOON, "it holds the lane", is_there);
        until(SOON, "RabbitMQ has it back", || !is_there());
    }
    vhost.broker().memory_alarm(false);
    gate.wait_until(LONG, LANE, "admitted");
    vhost.wait_for_messages(LONG, LANE, 400);
    assert!(gate.stop().success());
}

#[test]
fn a_worker_that_was_told_to_stop_consuming_consumes_again_after_a_lost_link() {
    const MANY: usize = 15_000;
    let (vhost, host) = (vhost(), Host::new("deaf"));
    let app = App::new(&vhost.url(), "codex", LANE);
    let proxy = Proxy::to(vhost.broker().port());
    let gate = host.start(&patient(&host.settings(&vhost.url_as("guest", "guest", proxy.port()), LANE)));
    gate.wait_until(SOON, LANE, "admitted");
    let worker = app.worker(LANE, LANE, &["-c", "1"]);
    // Nothing that Celery could run, but it has to be told so one by one.
    app.send("app.slow", "slow-", 8, &[json!(3)]);
    vhost.publish("codex", LANE, numbers(MANY));
    host.set_profile(DRIFTED);
    gate.wait_until(SOON, LANE, "quarantined");
    until(SOON, "it stops", || {
        // The gate's own are one, or five once the lane is empty.
        worker.log().contains("Canceling") || vhost.count(LANE).is_some_and(|lane| [1, 5].contains(&lane.consumers))
    });
    vhost.wait_for_messages(LONG, LANE, 0);
    proxy.cut();
    gate.wait_until(SOON, LANE, "quarantined");
    until(SOON, "owned again", || vhost.is_intercepted(LANE));
    vhost.purge(HELD);
    host.set_profile(MANAGED);
    gate.wait_until(SOON, LANE, "admitted");
    until(SOON, "the worker consumes again", || vhost.count(LANE).is_some_and(|lane| lane.consumers == 1));
    app.send("app.mark", "after-", 1, &[]);
    until(LONG, "it runs", || app.runs().contains_key("after-0"));
}

#[test]
fn a_worker_that_is_refused_late_stops_no_other_worker() {
    let (vhost, host, owner) = (vhost(), Host::new("late"), Host::new("late-owner"));
    let other = r#"exchange = "other", type = "direct", keys = ["codex-1"]"#;
    let mut settings = owner.settings_without_workers(&vhost.url());
    owner.add_worker(&mut settings, "codex-1", other);
    let owning = owner.start(&settings);
    owning.wait_until(SOON, "codex-1", "admitted");
    let mut settings = host.settings(&vhost.url(), LANE);
    host.add_worker(&mut settings, "codex-1", other);
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    until(SOON, "it says who owns it", || gate.log().contains("late-owner"));
    vhost.delete_exchange("other");
    vhost.declare_exchange("other", "topic", None);
    owning.kill();
    let refused = eventually(SOON, "it is refused", || {
        let (_, text) = gate.get("/workers")?;
        text.contains("broker_refused").then_some(text)
    });
    println!("{refused}");
    throughout(Duration::from_secs(2), "the first stays admitted", || vhost.is_open(LANE));
    assert!(gate.stop().success());
}

#[test]
fn a_link_that_flaps_is_not_renewed_ten_times_a_second() {
    let (vhost, host) = (vhost(), Host::new("flaps"));
    let proxy = Proxy::to(vhost.broker().port());
    let gate = host.start(&host.settings(&vhost.url_as("guest", "guest", proxy.port()), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let before = gate.log().matches("connected to RabbitMQ").count();
    throughout(Duration::from_secs(10), "flaps", || {
        proxy.cut();
        std::thread::sleep(Duration::from_millis(200));
        true
    });
    let times = gate.log().matches("connected to RabbitMQ").count() - before;
    println!("connected {times} times");
    gate.wait_until(SOON, LANE, "admitted");
    assert!(times <= 12, "{times}");
}

#[test]
fn an_intake_that_somebody_made_anew_without_its_alternate_exchange_is_found() {
    let (vhost, host) = (vhost(), Host::new("anew"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let mut facts = Facts::of(&vhost);
    vhost.delete_exchange("codex");
    vhost.declare_exchange("codex", "direct", None);
    // The way is looked over every two minutes.
    let fact = facts.next(LONG * 2, "worker-held", LANE);
    assert_eq!(fact.body["reason"]["code"], "broker_refused", "{}", fact.body["reason"]);
    vhost.delete_exchange("codex");
    gate.wait_until(LONG, LANE, "admitted");
    vhost.publish("codex", LANE, ["x"]);
    vhost.wait_for_messages(SOON, LANE, 1);
}

#[test]
fn a_holding_queue_that_somebody_deleted_is_made_again() {
    let (vhost, host) = (vhost(), Host::new("no-held"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    host.set_profile(DRIFTED);
    gate.wait_until(SOON, LANE, "quarantined");
    until(SOON, "the lane is intercepted", || vhost.is_intercepted(LANE));
    vhost.delete_queue(HELD);
    // The way is looked over every two minutes.
    until(LONG * 2, "it is there again", || vhost.list("queues").iter().any(|queue| queue["name"] == HELD));
    until(SOON, "it holds messages again", || {
        vhost.publish("codex", LANE, ["x"]);
        vhost.waiting(HELD) > 0
    });
}

#[test]
fn a_name_may_have_letters_of_any_script() {
    let (vhost, host) = (vhost(), Host::new("names"));
    let name = "größe-作業@höst";
    let mut settings = host.settings_without_workers(&vhost.url());
    host.add_worker(&mut settings, name, &format!(r#"exchange = "codex", type = "direct", keys = ["{name}"]"#));
    let gate = host.start(&settings);
    gate.wait_until(SOON, name, "admitted");
    vhost.publish("codex", name, ["x"]);
    vhost.wait_for_messages(SOON, name, 1);
    let path =
        format!("/readyz?worker={}", percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC));
    assert_eq!(gate.get(&path).unwrap().0, 200);
    assert!(gate.stop().success());
}

#[test]
fn a_client_that_keeps_its_connection_does_not_delay_the_stop() {
    use std::io::{Read, Write};
    let (vhost, host) = (vhost(), Host::new("keep-alive"));
    let settings = host.settings(&vhost.url(), LANE);
    let gate = host.start(&settings);
    gate.wait_until(SOON, LANE, "admitted");
    let port: u16 = settings.split("127.0.0.1:").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    let silent = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut half = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    half.write_all(b"GET /workers HTTP/1.1\r\nHost: x\r\n").unwrap();
    let mut kept = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let _ = kept.read(&mut [0; 64]).unwrap();
    let start = std::time::Instant::now();
    assert!(gate.stop().success());
    println!("stopped in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop((silent, half, kept));
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_the_gate_nor_its_end() {
    let (vhost, host, dir) = (vhost(), Host::new("stalled"), Scratch::new("log"));
    let log = dir.join("fifo");
    mkfifo(&log, Mode::S_IRWXU).unwrap();
    // Both ends are open for as long as the test lasts, and nobody reads.
    let mut full = File::options().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&log).unwrap();
    let refused = std::iter::repeat_with(|| full.write(b"\n")).find_map(Result::err).unwrap();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    let mut command = process::command("/bin/sh");
    command.args(["-c", "log=$1; shift; exec \"$@\" 2>\"$log\"", "sh"]).arg(&log).arg(GATE);
    let gate = host.start_logging(command, &host.settings(&vhost.url(), LANE), "debug");
    gate.wait_until(SOON, LANE, "admitted");
    host.set_profile(DRIFTED);
    gate.wait_until(SOON, LANE, "quarantined");
    assert_eq!(gate.get("/healthz").unwrap().0, 200);
    assert!(gate.stop().success());
}

#[test]
fn an_edge_that_is_shut_while_it_opens_leaves_nobody_behind_who_takes_messages() {
    let (vhost, host) = (vhost(), Host::new("hasty"));
    let gate = host.start(&host.settings(&vhost.url(), LANE));
    gate.wait_until(SOON, LANE, "admitted");
    let mut facts = Facts::of(&vhost);
    for _ in 0..40 {
        host.set_profile(DRIFTED);
        facts.next(SOON, "worker-quarantined", LANE);
        host.set_profile(MANAGED);
        until(SOON, "the edge opens", || vhost.is_open(LANE));
    }
    host.set_profile(DRIFTED);
    facts.next(SOON, "worker-quarantined", LANE);
    until(SOON, "the lane is intercepted", || vhost.is_intercepted(LANE));
    vhost.publish("", LANE, numbers(50));
    vhost.wait_for_messages(SOON, HELD, 50);
    until(SOON, "nobody takes what is held", || vhost.count(HELD).is_some_and(|held| held.consumers == 0));
    throughout(Duration::from_secs(1), "they stay held", || vhost.waiting(HELD) == 50);
    host.set_profile(MANAGED);
    vhost.wait_for_messages(SOON, LANE, 50);
    until(SOON, "nobody takes what is for the worker", || vhost.count(LANE).is_some_and(|lane| lane.consumers == 0));
    throughout(Duration::from_secs(1), "it stays there", || vhost.waiting(LANE) == 50);
    assert!(gate.stop().success());
}
