//! A field: a broker with two workers' worth of ways to the work, on any kind of edge. What holds for every edge is written
//! once against it.

use std::{array, collections::BTreeMap, time::Duration};

use lapin::types::FieldTable;
use serde_json::{Value, json};

use super::{
    celery::{App, Worker},
    facts::Facts,
    gate::{Gate, Host},
    redis::Redis,
    tasks::Task,
    vhost::{Vhost, vhost},
    wait::{eventually, throughout, until},
};

/// Which edge, on which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Two workers on one direct intake of RabbitMQ, each with a key of its own.
    Route,
    /// Two workers that share one queue of RabbitMQ.
    FeedRabbitmq,
    /// Two workers that share one queue of Redis.
    FeedRedis,
}

impl Kind {
    /// Whether both workers take from one intake, so that one may do what the other cannot.
    pub(crate) fn is_shared(self) -> bool {
        match self {
            Self::Route => false,
            Self::FeedRabbitmq | Self::FeedRedis => true,
        }
    }

    /// How many messages may be there twice after a gate was killed while it moved some: none where a move is one step,
    /// and else what may be between its confirm and its ack.
    pub(crate) fn twice_per_kill(self) -> u32 {
        match self {
            Self::Route => 128,
            // One for each of the two lanes, as deep as it is.
            Self::FeedRabbitmq => 2,
            Self::FeedRedis => 0,
        }
    }
}

/// Makes of each of these functions, which take a [`Kind`], one test for each kind of edge.
macro_rules! for_each_edge {
    (@ $module:ident, $kind:ident, [$($name:ident)*]) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    super::$name(crate::support::field::Kind::$kind);
                }
            )*
        }
    };
    ($($name:ident)*) => {
        for_each_edge!(@ route, Route, [$($name)*]);
        for_each_edge!(@ feed_rabbitmq, FeedRabbitmq, [$($name)*]);
        for_each_edge!(@ feed_redis, FeedRedis, [$($name)*]);
    };
}
pub(crate) use for_each_edge;

/// The same for those kinds that feed.
macro_rules! for_each_feed {
    ($($name:ident)*) => {
        $crate::support::field::for_each_edge!(@ feed_rabbitmq, FeedRabbitmq, [$($name)*]);
        $crate::support::field::for_each_edge!(@ feed_redis, FeedRedis, [$($name)*]);
    };
}
pub(crate) use for_each_feed;

/// The queue or the exchange that producers publish to.
pub(crate) const INTAKE: &str = "codex";
/// Options of a worker that has at most one task, and one more in its hands.
pub(crate) const ONE_AT_A_TIME: [&str; 4] = ["-c", "1", "--prefetch-multiplier", "1"];

/// A broker of one test's own, and two hosts.
pub(crate) struct Field {
    kind: Kind,
    site: Site,
    hosts: [Host; 2],
}

enum Site {
    Rabbitmq(Vhost),
    Redis(Box<Redis>),
}

impl Field {
    #[track_caller]
    pub(crate) fn new(kind: Kind) -> Self {
        Self::with_intake(kind, FieldTable::default())
    }

    /// A field whose intake, if that is a queue of RabbitMQ, has these arguments.
    #[track_caller]
    pub(crate) fn with_intake(kind: Kind, arguments: FieldTable) -> Self {
        let site = match kind {
            Kind::Route => Site::Rabbitmq(vhost()),
            Kind::FeedRabbitmq => {
                let vhost = vhost();
                // As any producer does before it publishes to it.
                vhost.declare_queue_with(INTAKE, arguments);
                Site::Rabbitmq(vhost)
            }
            Kind::FeedRedis => Site::Redis(Box::new(Redis::start())),
        };
        Self::at(kind, site)
    }

    /// A field on this Redis.
    pub(crate) fn on_redis(redis: Redis) -> Self {
        Self::at(Kind::FeedRedis, Site::Redis(Box::new(redis)))
    }

    fn at(kind: Kind, site: Site) -> Self {
        Self { kind, site, hosts: array::from_fn(|n| Host::new(&format!("host-{n}"))) }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Host `n` is where worker `n` runs.
    pub(crate) fn host(&self, n: usize) -> &Host {
        &self.hosts[n]
    }

    pub(crate) fn hosts(&self) -> &[Host; 2] {
        &self.hosts
    }

    /// The node name of worker `n`.
    pub(crate) fn name(&self, n: usize) -> String {
        format!("codex-{n}@{}", self.hosts[n].name())
    }

    /// The queue that worker `n` consumes.
    pub(crate) fn lane(&self, n: usize) -> String {
        match self.kind {
            Kind::Route => format!("codex-{n}"),
            Kind::FeedRabbitmq | Kind::FeedRedis => format!("codex-{n}.lane"),
        }
    }

    pub(crate) fn vhost(&self) -> &Vhost {
        match &self.site {
            Site::Rabbitmq(vhost) => vhost,
            Site::Redis(_) => panic!("this field has a Redis"),
        }
    }

    pub(crate) fn redis(&self) -> &Redis {
        match &self.site {
            Site::Redis(redis) => redis,
            Site::Rabbitmq(_) => panic!("this field has a RabbitMQ"),
        }
    }

    pub(crate) fn url(&self) -> String {
        match &self.site {
            Site::Rabbitmq(vhost) => vhost.url(),
            Site::Redis(redis) => redis.url(),
        }
    }

    /// The broker's address by another port, where a proxy listens.
    fn url_at(&self, port: u16) -> String {
        match &self.site {
            Site::Rabbitmq(vhost) => vhost.url_as("guest", "guest", port),
            Site::Redis(redis) => redis.url_at(port),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        match &self.site {
            Site::Rabbitmq(vhost) => vhost.broker().port(),
            Site::Redis(redis) => redis.port(),
        }
    }

    /// Settings for one gate, on host 0, that has both workers.
    pub(crate) fn settings(&self) -> String {
        self.settings_with(&self.url())
    }

    /// The same by another port, where a proxy listens.
    pub(crate) fn settings_at(&self, port: u16) -> String {
        self.settings_with(&self.url_at(port))
    }

    /// The same with this address.
    pub(crate) fn settings_with(&self, url: &str) -> String {
        let mut settings = self.hosts[0].settings_without_workers(url);
        for n in 0..2 {
            self.add_worker(&mut settings, n);
        }
        settings
    }

    /// Settings for a gate on this host with worker `n` alone.
    pub(crate) fn settings_of(&self, host: &Host, n: usize) -> String {
        let mut settings = host.settings_without_workers(&self.url());
        self.add_worker_on(host, &mut settings, n);
        settings
    }

    fn add_worker(&self, settings: &mut String, n: usize) {
        self.add_worker_on(&self.hosts[n], settings, n);
    }

    fn add_worker_on(&self, host: &Host, settings: &mut String, n: usize) {
        let (name, lane) = (self.name(n), self.lane(n));
        match self.kind {
            Kind::Route => {
                let intake = format!(r#"exchange = "{INTAKE}", type = "direct", keys = ["{lane}"]"#);
                host.add_routed_worker(settings, &name, &lane, &intake);
            }
            Kind::FeedRabbitmq | Kind::FeedRedis => {
                host.add_fed_worker(settings, &name, &lane, &format!(r#"queue = "{INTAKE}""#));
            }
        }
    }

    /// Starts one gate for both workers, on host 0, and waits until both are admitted.
    #[track_caller]
    pub(crate) fn admit_both(&self) -> Gate {
        let gate = self.hosts[0].start(&self.settings());
        self.wait_until_both_are(&gate, "admitted");
        gate
    }

    #[track_caller]
    pub(crate) fn wait_until_both_are(&self, gate: &Gate, admission: &str) {
        for n in 0..2 {
            gate.wait_until(SOON, &self.name(n), admission);
        }
    }

    /// The application of producers and workers.
    pub(crate) fn app(&self) -> App {
        let destination = match self.kind {
            // For the key, see `send`.
            Kind::Route => json!({ "exchange": INTAKE, "routing_key": self.lane(0) }),
            Kind::FeedRabbitmq | Kind::FeedRedis => json!({ "queue": INTAKE }),
        };
        App::routed(&self.url(), json!({ "app.*": destination }))
    }

    /// Starts both workers of an application, each with one task at a time, and waits until they consume.
    #[track_caller]
    pub(crate) fn workers(&self, app: &App) -> [Worker; 2] {
        let mut workers = array::from_fn(|n| app.start_worker(&self.lane(n), &self.name(n), &ONE_AT_A_TIME));
        workers.iter_mut().for_each(Worker::wait_until_ready);
        workers
    }

    /// Starts worker `n` alone.
    #[track_caller]
    pub(crate) fn worker(&self, app: &App, n: usize) -> Worker {
        app.worker(&self.lane(n), &self.name(n), &ONE_AT_A_TIME)
    }

    /// Lets Celery publish so many tasks; where each worker has its key, by both keys in turn, worker 0's first.
    #[track_caller]
    pub(crate) fn send(&self, app: &App, task: &str, prefix: &str, count: u32, extra: &[Value]) {
        app.send_with(&self.turns(), task, prefix, count, extra);
    }

    /// The same with more options of `apply_async`.
    #[track_caller]
    pub(crate) fn send_with(&self, app: &App, more: &Value, task: &str, prefix: &str, count: u32, extra: &[Value]) {
        let mut turns = self.turns();
        for turn in turns.as_array_mut().unwrap() {
            turn.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        app.send_with(&turns, task, prefix, count, extra);
    }

    /// Options of `apply_async` for as many tasks as there are ways to the workers.
    fn turns(&self) -> Value {
        match self.kind {
            Kind::Route => json!([{ "routing_key": self.lane(0) }, { "routing_key": self.lane(1) }]),
            Kind::FeedRabbitmq | Kind::FeedRedis => json!([{}]),
        }
    }

    /// Publishes these tasks in the same way, without Celery.
    #[track_caller]
    pub(crate) fn publish(&self, tasks: impl IntoIterator<Item = Task>) {
        match (&self.site, self.kind) {
            (Site::Rabbitmq(vhost), Kind::Route) => {
                for (n, task) in tasks.into_iter().enumerate() {
                    vhost.publish_tasks(INTAKE, &self.lane(n % 2), [task]);
                }
            }
            (Site::Rabbitmq(vhost), _) => vhost.publish_tasks("", INTAKE, tasks),
            (Site::Redis(redis), _) => redis.publish(INTAKE, tasks),
        }
    }

    /// Publishes these tasks straight to the lane of worker `n`, as somebody does who knows its name and no better.
    #[track_caller]
    pub(crate) fn publish_past(&self, n: usize, tasks: impl IntoIterator<Item = Task>) {
        match &self.site {
            Site::Rabbitmq(vhost) => vhost.publish_tasks("", &self.lane(n), tasks),
            Site::Redis(redis) => redis.publish(&self.lane(n), tasks),
        }
    }

    /// How many messages wait where no worker gets them.
    #[track_caller]
    pub(crate) fn waiting(&self) -> u32 {
        let in_queue = |queue: &str| self.in_queue(queue);
        match self.kind {
            Kind::Route => (0..2).map(|n| in_queue(&format!("{}.held", self.lane(n)))).sum(),
            Kind::FeedRabbitmq | Kind::FeedRedis => in_queue(INTAKE),
        }
    }

    /// How many wait in the lane of worker `n`.
    #[track_caller]
    pub(crate) fn in_lane(&self, n: usize) -> u32 {
        self.in_queue(&self.lane(n))
    }

    /// How many wait in a queue; none in one that is not there.
    #[track_caller]
    fn in_queue(&self, queue: &str) -> u32 {
        match &self.site {
            Site::Rabbitmq(vhost) => vhost.count(queue).map_or(0, |count| count.messages),
            Site::Redis(redis) => redis.waiting(queue),
        }
    }

    /// Waits until exactly so many messages wait where no worker gets them.
    #[track_caller]
    pub(crate) fn wait_for_waiting(&self, messages: u32) {
        let mut seen = None;
        eventually(SOON, &format!("{messages} messages wait"), || {
            let now = Some(self.waiting());
            if now != seen {
                seen = now;
                eprintln!("{now:?} wait; in the lanes: {} and {}", self.in_lane(0), self.in_lane(1));
            }
            (now == Some(messages)).then_some(())
        });
    }

    /// Waits until the workers have run all that is in their lanes, and nothing moves any more.
    #[track_caller]
    pub(crate) fn wait_until_quiet(&self, app: &App) {
        let mut last = None;
        let mut since = std::time::Instant::now();
        until(SOON * 2, "the workers have run what they had", || {
            let now = Some((self.waiting(), self.in_lane(0), self.in_lane(1), app.marks().len()));
            if now != last {
                (last, since) = (now, std::time::Instant::now());
            }
            // Longer than any task of these tests takes.
            self.in_lane(0) + self.in_lane(1) == 0 && since.elapsed() > Duration::from_millis(1_500)
        });
    }

    /// Asserts that nothing moves for a while: so many messages wait, and so many tasks have run.
    #[track_caller]
    pub(crate) fn stays(&self, app: &App, waiting: u32, run: usize) {
        throughout(A_WHILE, "nothing moves", || {
            let now = (self.waiting(), app.runs().len());
            // A gate sends messages of its own to see that they are held, and takes them away when it gives back.
            let holds = now.0 >= waiting && now.1 == run;
            if !holds {
                eprintln!("(waiting, run) is {now:?}, and was {:?}", (waiting, run));
            }
            holds
        });
    }

    /// Whether the broker still believes that a gate owns worker `n`.
    #[track_caller]
    pub(crate) fn is_owned(&self, n: usize) -> bool {
        let owner = format!("worker-gate.owner.{}", self.name(n));
        match &self.site {
            Site::Rabbitmq(vhost) => vhost.list("queues").iter().any(|queue| queue["name"] == owner.as_str()),
            Site::Redis(redis) => redis.ask(&["EXISTS", &owner]),
        }
    }

    /// Waits until the broker has given up the gate that owned both workers.
    #[track_caller]
    pub(crate) fn wait_until_nobody_owns(&self) {
        until(SOON, "the broker gives the gate up", || !self.is_owned(0) && !self.is_owned(1));
    }

    /// Hears the facts from now on.
    #[track_caller]
    pub(crate) fn facts(&self) -> Facts {
        match &self.site {
            Site::Rabbitmq(vhost) => Facts::of(vhost),
            Site::Redis(redis) => Facts::on_redis(redis),
        }
    }
}

const SOON: Duration = Duration::from_secs(30);
/// For what must not happen: longer than everything takes that a gate does by itself, looks of once a second included.
const A_WHILE: Duration = Duration::from_millis(1_500);

/// Asserts that each of so many tasks has run once and no other.
#[track_caller]
pub(crate) fn each_once(runs: &BTreeMap<String, u32>, tasks: usize) {
    assert!(runs.len() == tasks && runs.values().all(|times| *times == 1), "{} have run: {runs:?}", runs.len());
}

/// Asserts of every account that has been told that it balances, and says how many there were.
#[track_caller]
pub(crate) fn accounts_balance(facts: &Facts) -> usize {
    let all = facts.all();
    let told = all.iter().filter(|fact| fact.body["account"].is_object());
    told.inspect(|fact| {
        let count = |key: &str| fact.body["account"][key].as_u64().unwrap();
        let sum = count("moved") + count("left") + count("taken");
        assert_eq!(count("before"), sum, "{} {}", fact.kind(), fact.body["account"]);
    })
    .count()
}
