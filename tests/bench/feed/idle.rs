//! What ten fed workers cost while nothing happens but their heartbeats and a check a minute. Both brokers at once, each with
//! a gate of its own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use lapin::{Connection, options::BasicConsumeOptions, types::FieldTable};
use serde_json::Value;

use super::{INTAKE, SOON, signs::Signs};
use crate::{
    idle::{CALM, Tools, Usage, WINDOW, WORKERS, settings, start_floor},
    support::{
        gate::{Gate, Host},
        process::Process,
        redis::{Redis, STEPS, list},
        runtime::on,
        vhost::{Vhost, channel, connect, vhost},
    },
    table::{Sample, Table},
};

/// Celery's own default.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// The least that a gate must do on Redis: two connections, and one of them hears Celery's heartbeats.
pub(crate) fn be_the_floor(url: &str) -> ! {
    let client = ::redis::Client::open(url).unwrap();
    let _feed = client.get_connection().unwrap();
    let mut talk = client.get_connection().unwrap();
    let mut heard = talk.as_pubsub();
    heard.psubscribe("/*.celeryev/worker.*").unwrap();
    loop {
        heard.get_message().unwrap();
    }
}

pub(crate) fn measure() -> Vec<Table> {
    let tools = Tools::find();
    let (redis, vhost) = (Redis::start(), vhost());
    vhost.declare_queue(INTAKE);
    for n in 0..WORKERS {
        vhost.declare_queue(&lane(n));
    }
    let consumers = Consumers::new(&redis);
    let signs = Signs::start(&redis, (0..WORKERS).map(node).collect(), HEARTBEAT);
    let _consuming = consume(&vhost);
    let sites = [Site::start("idle-redis", &redis.url(), &tools), Site::start("idle-rabbitmq", &vhost.url(), &tools)];
    thread::sleep(CALM);
    let before = (sites.each_ref().map(Site::usage), Calls::of(&redis), consumers.sent() + signs.published());
    let packets_before = packets(&vhost);
    let begin = Instant::now();
    thread::sleep(WINDOW);
    let took = begin.elapsed().as_secs_f64();
    let after = (sites.each_ref().map(Site::usage), Calls::of(&redis), consumers.sent() + signs.published());
    let packets_after = packets(&vhost);
    let [on_redis, on_rabbitmq] = [0, 1].map(|n| Cost { before: &before.0[n], after: &after.0[n], took });
    let name = tools.name();
    let mut redis_table =
        on_redis.table(&format!("feed on Redis, idle: ten workers of one user, every = \"60s\", {name}, one minute"));
    let count = |calls: &Calls, command: &str| calls.0.get(command).copied().unwrap_or_default();
    let (rounds, all) = (count(&after.1, "evalsha") - count(&before.1, "evalsha"), after.1.all() - before.1.all());
    // Ours, and what INFO itself counts as.
    let ours = after.2 - before.2 + 1;
    redis_table.row("rounds of its script", "a second", &per_second(rounds, took));
    redis_table.row(
        "commands that Redis did for it, within scripts too",
        "a second",
        &per_second(all - ours.min(all), took),
    );
    redis_table.note(format!("each worker sends a heartbeat every {} s; floor: who hears those", HEARTBEAT.as_secs()));
    let mut rabbitmq_table = on_rabbitmq
        .table(&format!("feed on RabbitMQ, idle: ten workers of one user, every = \"60s\", {name}, one minute"));
    let packets = packets_after.saturating_sub(packets_before);
    rabbitmq_table.row("packets that RabbitMQ got from it", "a second", &per_second(packets, took));
    rabbitmq_table.note("floor: three connections that answer heartbeats");
    for site in sites {
        assert!(site.gate.stop().success());
    }
    vec![redis_table, rabbitmq_table]
}

fn per_second(count: u64, seconds: f64) -> Sample {
    Sample::one(f64::from(u32::try_from(count).unwrap()) / seconds)
}

fn node(n: usize) -> String {
    format!("codex-{n}@bench")
}

fn lane(n: usize) -> String {
    format!("codex-{n}.lane")
}

/// A gate with ten workers, and its floor.
struct Site {
    gate: Gate,
    floor: Process,
    _host: Host,
}

impl Site {
    /// Returns when all workers are admitted.
    fn start(name: &str, url: &str, tools: &Tools) -> Self {
        let host = Host::new(name);
        let home = host.home().with_file_name("home-0");
        tools.prepare(&home, &home);
        let mut settings = settings(&host, url);
        for n in 0..WORKERS {
            let (node, lane, path) = (node(n), lane(n), tools.path(&host));
            write!(
                settings,
                r#"
[[workers]]
name = "{node}"
home = {home:?}
path_env = "{path}"
edge = "feed"
lane = "{lane}"
intake = {{ queue = "{INTAKE}" }}
"#
            )
            .unwrap();
        }
        let gate = host.start(&settings);
        for n in 0..WORKERS {
            gate.wait_until(SOON, &node(n), "admitted");
        }
        let floor = start_floor(&host, url);
        Self { gate, floor, _host: host }
    }

    fn usage(&self) -> [Usage; 2] {
        [self.gate.pid(), self.floor.pid()].map(Usage::of)
    }
}

/// What a gate and its floor have used in so many seconds.
struct Cost<'a> {
    before: &'a [Usage; 2],
    after: &'a [Usage; 2],
    took: f64,
}

impl Cost<'_> {
    fn table(&self, title: &str) -> Table {
        let ([before, floor_before], [after, floor_after]) = (self.before, self.after);
        let share = |seconds: f64| Sample::one(seconds / self.took * 100.0);
        let mut table = Table::new(title);
        let floor = share(floor_after.cpu - floor_before.cpu);
        table
            .row("CPU of the gate itself, of one core", "%", &share(after.cpu - before.cpu))
            .against("the floor", &floor);
        table.at_most(0.5);
        table.row("floor: CPU of a process that only listens", "%", &floor);
        table.row("CPU of the checks that it ran", "%", &share(after.children - before.children));
        table.row("resident memory (VmRSS)", "MB", &Sample::one(after.rss));
        table.row("  at its highest, from the start on (VmHWM)", "MB", &Sample::one(after.peak));
        let switches = after.switches.saturating_sub(before.switches);
        table.row("times that it was woken", "a second", &per_second(switches, self.took));
        table
    }
}

/// Waits at every lane, as kombu does: for a second at a time, at the lists of all priorities.
struct Consumers(Arc<AtomicU64>);

impl Consumers {
    fn new(redis: &Redis) -> Self {
        let sent = Arc::<AtomicU64>::default();
        for n in 0..WORKERS {
            let (mut connection, sent) = (redis.connect().unwrap(), Arc::clone(&sent));
            let mut pop = ::redis::cmd("BRPOP");
            for step in STEPS {
                pop.arg(list(&lane(n), step));
            }
            pop.arg(1);
            thread::spawn(move || {
                // Until its server is gone.
                while pop.query::<Option<(String, Vec<u8>)>>(&mut connection).is_ok() {
                    sent.fetch_add(1, Relaxed);
                }
            });
        }
        Self(sent)
    }

    fn sent(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One consumer for each lane, all of them on one connection.
fn consume(vhost: &Vhost) -> Arc<Connection> {
    let connection = connect(vhost.url());
    let channel = channel(&connection);
    on(async move {
        for n in 0..WORKERS {
            let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
            // A consumer that is dropped stays with the broker, and nothing is sent here.
            channel.basic_consume(lane(n).into(), lane(n).into(), options, none).await?;
        }
        lapin::Result::Ok(())
    })
    .unwrap();
    connection
}

/// How often Redis has done each command.
struct Calls(BTreeMap<String, u64>);

impl Calls {
    fn of(redis: &Redis) -> Self {
        let stats: String = redis.ask(&["INFO", "commandstats"]);
        let call = |line: &str| {
            let (command, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((command.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        Self(stats.lines().filter_map(call).collect())
    }

    fn all(&self) -> u64 {
        self.0.values().sum()
    }
}

/// How many packets RabbitMQ has got from gates, on all their connections.
fn packets(vhost: &Vhost) -> u64 {
    let is_a_gates = |connection: &&Value| {
        connection["user_provided_name"].as_str().is_some_and(|name| name.starts_with("worker-gate"))
    };
    vhost.list("connections").iter().filter(is_a_gates).filter_map(|connection| connection["recv_cnt"].as_u64()).sum()
}
