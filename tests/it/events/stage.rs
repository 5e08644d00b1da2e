//! A broker with events on it, and the real program that subscribes to them.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin::BasicProperties;
use serde_json::Value;

use super::{EXCHANGE, SOON};
use crate::support::{
    gate::{GATE, Host},
    process::{self, Process},
    redis::Redis,
    scratch::{RUN_MARK, Scratch},
    vhost::{Vhost, vhost},
    wait::eventually,
};

/// Makes of each of these functions, which take a [`Stage`], one test for each broker.
macro_rules! on_both_brokers {
    ($($name:ident)*) => {
        mod rabbitmq {
            $(
                #[test]
                fn $name() {
                    super::$name(&$crate::events::stage::Stage::rabbitmq());
                }
            )*
        }
        mod redis {
            $(
                #[test]
                fn $name() {
                    super::$name(&$crate::events::stage::Stage::redis());
                }
            )*
        }
    };
}
pub(super) use on_both_brokers;

pub(super) struct Stage {
    pub(super) broker: Kind,
    pub(super) host: Host,
    pub(super) dir: Scratch,
}

pub(super) enum Kind {
    RabbitMq(Vhost),
    Redis(Box<Redis>),
}

impl Stage {
    pub(super) fn rabbitmq() -> Self {
        Self::on(vhost())
    }

    /// The same on a node of its own.
    pub(super) fn on(vhost: Vhost) -> Self {
        // Somebody else's queue, so that the exchange is there and what is published counts as routed.
        vhost.declare_exchange(EXCHANGE, "fanout", None);
        vhost.declare_queue("bystander");
        vhost.bind("bystander", EXCHANGE, "");
        Self { broker: Kind::RabbitMq(vhost), host: Host::new("host-1"), dir: Scratch::new("events") }
    }

    pub(super) fn redis() -> Self {
        Self { broker: Kind::Redis(Box::new(Redis::start())), host: Host::new("host-1"), dir: Scratch::new("events") }
    }

    pub(super) fn url(&self) -> String {
        match &self.broker {
            Kind::RabbitMq(vhost) => vhost.url(),
            Kind::Redis(redis) => redis.url(),
        }
    }

    /// Settings of a gate with one worker on this broker.
    pub(super) fn settings(&self, url: &str) -> String {
        match &self.broker {
            Kind::RabbitMq(_) => self.host.settings(url, "codex-0"),
            Kind::Redis(_) => {
                let mut settings = self.host.settings_without_workers(url);
                self.host.add_fed_worker(&mut settings, "codex-0", "codex-0.lane", "queue = \"codex\"");
                settings
            }
        }
    }

    /// Starts `worker-gate events` and waits until it is subscribed.
    #[track_caller]
    pub(super) fn subscribe(&self, args: &[&str]) -> Process {
        self.subscribe_at(&self.url(), args)
    }

    /// The same at another URL, where a proxy listens.
    #[track_caller]
    pub(super) fn subscribe_at(&self, url: &str, args: &[&str]) -> Process {
        let mut process = self.start(url, &[], args);
        process.wait_for_output(SOON, "subscribed to worker-gate.health");
        process
    }

    /// Starts it with these variables and no more environment than a service has.
    #[track_caller]
    pub(super) fn start(&self, url: &str, env: &[(&str, &str)], args: &[&str]) -> Process {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let command = self.command(url, env, args);
        Process::start(command, &self.dir.join(&format!("subscriber-{number}.log")))
    }

    /// The command alone.
    #[track_caller]
    pub(super) fn command(&self, url: &str, env: &[(&str, &str)], args: &[&str]) -> Command {
        let file = self.dir.join("subscriber.toml");
        fs::write(&file, self.settings(url)).unwrap();
        let mut command = process::command(GATE);
        command.env_clear().env("HOME", self.host.home()).env("PATH", "/usr/bin:/bin");
        command.envs(std::env::vars_os().filter(|(name, _)| name == RUN_MARK)).envs(env.iter().copied());
        command.arg("events").arg("--config").arg(file).args(args);
        command
    }

    /// Publishes events as gates do.
    #[track_caller]
    pub(super) fn publish(&self, events: impl IntoIterator<Item = String>) {
        match &self.broker {
            Kind::RabbitMq(vhost) => {
                let json = BasicProperties::default().with_content_type("application/json".into());
                let json = json.with_content_encoding("utf-8".into()).with_delivery_mode(2);
                let events = events.into_iter().map(|event| (event.into_bytes(), json.clone()));
                vhost.publish_all(EXCHANGE, "", events.collect());
            }
            Kind::Redis(redis) => {
                let mut connection = redis.connect().unwrap();
                let events: Vec<String> = events.into_iter().collect();
                for some in events.chunks(500) {
                    let mut adds = ::redis::pipe();
                    for event in some {
                        adds.cmd("XADD").arg(EXCHANGE).arg("*").arg("event").arg(event).ignore();
                    }
                    let () = adds.query(&mut connection).unwrap();
                }
            }
        }
    }
}

/// An event of the gate `g` about the worker `codex-0@h`, which happens now.
pub(super) fn event(kind: &str, seq: u32) -> String {
    event_at(kind, seq, now())
}

pub(super) fn event_at(kind: &str, seq: u32, timestamp: f64) -> String {
    format!(
        r#"{{"type":"{kind}","hostname":"codex-0@h","timestamp":{timestamp},"id":"{seq:08}","seq":{seq},"gate":"g","worker_name":"codex-0@h","admission":"quarantined","edge":"shut","reason":{{"code":"check_failed","detail":"not logged in","remedy":"codex login"}}}}"#
    )
}

pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The `seq` of every event among these lines.
pub(super) fn seqs(text: &str) -> Vec<u64> {
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter_map(|event| event["seq"].as_u64()).collect()
}

/// Without what came again.
pub(super) fn first_of_each(seqs: &[u64]) -> Vec<u64> {
    let mut first = Vec::new();
    for seq in seqs {
        if !first.contains(seq) {
            first.push(*seq);
        }
    }
    first
}

/// Waits until a subscriber has shown so many events, and gives their `seq`.
#[track_caller]
pub(super) fn shown(bound: Duration, process: &Process, count: usize) -> Vec<u64> {
    eventually(bound, &format!("{count} events are shown"), || {
        let shown = seqs(&process.output());
        (shown.len() >= count).then_some(shown)
    })
}
