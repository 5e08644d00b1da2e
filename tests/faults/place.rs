//! A broker, a host and one worker's way to the work, as a case needs them.

use std::{collections::BTreeSet, process::Command};

use crate::{
    cases::{Case, Drive},
    support::{
        facts::Facts,
        gate::{GATE, Gate, Host},
        process,
        redis::{Redis, SEPARATOR},
        tasks::Task,
        vhost::{Vhost, vhost},
    },
};

/// Which edge, on which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    Route,
    FeedRabbitmq,
    FeedRedis,
}

impl Edge {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::FeedRabbitmq => "feed-rabbitmq",
            Self::FeedRedis => "feed-redis",
        }
    }
}

pub(crate) const WORKER: &str = "codex-0@faults";
pub(crate) const LANE: &str = "codex-0";
/// The exchange or the queue that producers publish to.
const INTAKE: &str = "codex";
/// The worker's keys on a route.
pub(crate) const KEYS: [&str; 2] = ["one", "two"];
/// How many may wait in a lane that is fed: enough for a take-back to have something in its midst.
const DEPTH: usize = 40;
/// More than the intercept can have in hand.
pub(crate) const HOARD: u32 = 10_500;

pub(crate) enum Site {
    Rabbitmq(Vhost),
    Redis(Box<Redis>),
}

pub(crate) struct Place {
    pub(crate) edge: Edge,
    pub(crate) site: Site,
    pub(crate) host: Host,
    drive: Drive,
}

impl Place {
    pub(crate) fn new(case: &Case) -> Self {
        let site = match case.edge {
            Edge::Route => Site::Rabbitmq(vhost()),
            Edge::FeedRabbitmq => {
                let vhost = vhost();
                vhost.declare_queue(INTAKE);
                Site::Rabbitmq(vhost)
            }
            Edge::FeedRedis => Site::Redis(Box::new(Redis::start())),
        };
        Self { edge: case.edge, site, host: Host::new("faults"), drive: case.drive }
    }

    pub(crate) fn url(&self) -> String {
        match &self.site {
            Site::Rabbitmq(vhost) => vhost.url(),
            Site::Redis(redis) => redis.url(),
        }
    }

    /// Settings with both keys, as they were when the messages began to come.
    pub(crate) fn first_settings(&self) -> String {
        self.settings_with(&KEYS)
    }

    /// Settings of the gate that dies and of the one after it.
    pub(crate) fn settings(&self) -> String {
        self.settings_with(if self.drive == Drive::Stray { &KEYS[..1] } else { &KEYS })
    }

    /// Settings that have another worker, and another lane, in this one's place.
    pub(crate) fn settings_without_it(&self) -> String {
        let other = |word: &str| format!("\"{word}-other\"");
        let settings = self.settings_with(&["other"]).replace(&format!("\"{LANE}\""), &other(LANE));
        settings.replace(&format!("\"{WORKER}\""), &other(WORKER))
    }

    fn settings_with(&self, keys: &[&str]) -> String {
        let mut settings = self.host.settings_without_workers(&self.url());
        let exchange = format!("exchange = \"{INTAKE}\", type = \"direct\", keys = {keys:?}");
        match self.edge {
            Edge::Route => self.host.add_routed_worker(&mut settings, WORKER, LANE, &exchange),
            Edge::FeedRabbitmq | Edge::FeedRedis => {
                let queue = format!("queue = \"{INTAKE}\"");
                let intake = if matches!(self.drive, Drive::Exchange | Drive::Rebind) { exchange } else { queue };
                self.host.add_fed_worker(&mut settings, WORKER, LANE, &intake);
            }
        }
        if self.drive == Drive::Recycle {
            settings += "on_quarantine = \"recycle\"\n";
        }
        settings.replace("depth = 1\n", &format!("depth = {}\n", self.depth()))
    }

    fn depth(&self) -> usize {
        if self.drive == Drive::Hoard { 2 * HOARD as usize } else { DEPTH }
    }

    /// How many may be there twice after one death: what moves may have between confirm and ack. On RabbitMQ that are 32 of
    /// each mover, of which a give-back may end while an intercept begins, and of a feed what its lane had room for, or its
    /// window if that is less. On Redis a move is one step.
    pub(crate) fn twice_allowed(&self) -> usize {
        match self.edge {
            Edge::Route => 2 * 32,
            Edge::FeedRabbitmq => 32 + self.depth().min(1024),
            Edge::FeedRedis => 0,
        }
    }

    /// Starts a gate that will kill itself.
    pub(crate) fn start_armed(&self, case: &Case) -> Gate {
        let mut command: Command = process::command("/usr/bin/env");
        command.arg(format!("WORKER_GATE_FAILPOINT={}:{}", case.point, case.nth)).arg(GATE);
        self.host.start_by(command, &self.settings())
    }

    /// Exchange and key by which a producer's message number `n` comes; for Redis, the key is the list.
    pub(crate) fn way(&self, n: usize) -> (&'static str, &'static str) {
        match self.edge {
            Edge::Route => (INTAKE, KEYS[n % KEYS.len()]),
            Edge::FeedRabbitmq => ("", INTAKE),
            // Where kombu's producers find that the exchange leads to.
            Edge::FeedRedis if matches!(self.drive, Drive::Exchange | Drive::Rebind) => ("", "codex-0.held"),
            Edge::FeedRedis => ("", INTAKE),
        }
    }

    /// The exchange that leads to the edge, and a key of this worker's.
    fn entry(&self) -> (&'static str, &'static str) {
        match self.edge {
            Edge::Route => (INTAKE, KEYS[0]),
            Edge::FeedRabbitmq | Edge::FeedRedis => ("codex.feed", LANE),
        }
    }

    /// Whether the broker would still let a message through on behalf of a gate that is dead.
    pub(crate) fn is_gone(&self) -> bool {
        match &self.site {
            Site::Rabbitmq(vhost) => {
                let edge = format!("worker-gate.edge.{WORKER}");
                let owner = format!("worker-gate.owner.{WORKER}");
                vhost.bindings_from(self.entry().0).iter().all(|(_, destination, _)| *destination != edge)
                    && vhost.list("queues").iter().all(|queue| queue["name"] != owner.as_str())
            }
            // There nobody but the gate moves.
            Site::Redis(_) => true,
        }
    }

    /// How many wait in the lane.
    pub(crate) fn in_lane(&self) -> u32 {
        self.in_queue(LANE)
    }

    fn in_queue(&self, queue: &str) -> u32 {
        match &self.site {
            Site::Rabbitmq(vhost) => vhost.count(queue).map_or(0, |count| count.messages),
            Site::Redis(redis) => redis.waiting(queue),
        }
    }

    /// How many wait where nobody consumes.
    pub(crate) fn held(&self) -> u32 {
        match self.edge {
            Edge::Route => self.in_queue("codex-0.held"),
            Edge::FeedRabbitmq | Edge::FeedRedis => self.in_queue(self.way(0).1),
        }
    }

    /// How many wait for a worker that has their key.
    pub(crate) fn unrouted(&self) -> u32 {
        if self.edge == Edge::Route { self.in_queue("codex.unrouted") } else { 0 }
    }

    /// The ids of all that waits anywhere; takes them out.
    pub(crate) fn left(&self) -> Vec<String> {
        let queues: BTreeSet<&str> = [LANE, "codex-0.held", "codex", "codex.unrouted"].into();
        let queues = queues.into_iter().filter(|queue| self.in_queue(queue) > 0);
        match &self.site {
            Site::Rabbitmq(vhost) => {
                queues.flat_map(|queue| vhost.drain(queue)).filter_map(|message| message.task_id()).collect()
            }
            Site::Redis(redis) => queues.flat_map(|queue| redis.ids(queue)).collect(),
        }
    }

    /// Binds the lane past the edge, and publishes by it.
    pub(crate) fn publish_past(&self, tasks: impl IntoIterator<Item = Task>) {
        let Site::Rabbitmq(vhost) = &self.site else { panic!("nobody can bind past a gate on Redis") };
        let (exchange, key) = self.entry();
        vhost.bind(LANE, exchange, key);
        vhost.publish_tasks(exchange, key, tasks);
    }

    /// Binds the lane to the intake in kombu's table.
    pub(crate) fn rebind(&self) {
        let Site::Redis(redis) = &self.site else { panic!("there is no such table on RabbitMQ") };
        let member = [KEYS[0], "", LANE].join(SEPARATOR);
        let _: u8 = redis.ask(&["SADD", &format!("_kombu.binding.{INTAKE}"), &member]);
    }

    /// Fills the lane, and has one more message in the queue from which it is fed; gives the ids.
    pub(crate) fn fill(&self, prefix: &str) -> Vec<String> {
        let Site::Rabbitmq(vhost) = &self.site else { panic!("on Redis a gate has nothing in hand") };
        let ids: Vec<String> = (0..=2 * DEPTH).map(|n| format!("{prefix}{n}")).collect();
        vhost.publish_tasks("", LANE, ids[1..].iter().map(Task::mark));
        vhost.publish_tasks("", INTAKE, [Task::mark(&ids[0])]);
        ids
    }

    /// Deletes the holding queue.
    pub(crate) fn delete_held(&self) {
        let Site::Rabbitmq(vhost) = &self.site else { panic!("nothing to delete on Redis") };
        vhost.delete_queue("codex-0.held");
    }

    /// Takes the open edge away, as somebody does who cleans up.
    pub(crate) fn delete_edge(&self) {
        let Site::Rabbitmq(vhost) = &self.site else { panic!("nothing to delete on Redis") };
        vhost.delete_exchange(&format!("worker-gate.edge.{WORKER}"));
    }

    pub(crate) fn facts(&self) -> Facts {
        match &self.site {
            Site::Rabbitmq(vhost) => Facts::of(vhost),
            Site::Redis(redis) => Facts::on_redis(redis),
        }
    }
}
