//! The gate's connections to Redis.
//!
//! Two, because a command waits behind everything that was sent before it on the same connection: `feed` owns, opens, shuts
//! and moves; `talk` publishes events and speaks with Celery's workers. Where a worker's task events are kept, a third one hears them
//! (`kept`).

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{feeder::Feeder, kept::Keeper, mended, remote::Remote};
use crate::{
    edge::{fault::Fault, links::Connect},
    redis::{self, Link},
    rush::Rush,
    settings::{Broker, BrokerUrl, broker_url::RedisUrl},
};

/// How often the sentinels are asked whether the master is another one. They need some seconds to agree on that themselves.
const SENTINEL_LOOK: Duration = Duration::from_secs(1);

/// The connections of one link-up, and what works on them.
#[derive(Debug)]
pub struct Links {
    /// Owns, opens, shuts, moves.
    pub(super) feed: Link,
    /// Publishes, and speaks with Celery.
    pub talk: Link,
    /// Moves for all workers.
    pub(super) feeder: Arc<Feeder>,
    /// The way to Celery's workers.
    pub(super) remote: Arc<Remote>,
    /// Keeps task events, once a worker's are wanted.
    keeper: OnceLock<Keeper>,
    gate: String,
    db: u32,
    /// What goes before the events.
    pub rush: Rush,
    /// As whom the gate is logged in, for remedies.
    pub(super) user: String,
    /// The settings' prefix, priorities and heartbeat.
    pub(super) broker: Broker,
    /// Set, with the cause, by whichever task finds that the links are of no use any more.
    ended: watch::Sender<Option<String>>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// For how long Redis keeps a worker for a gate that says nothing: as long as RabbitMQ keeps a silent connection.
pub(super) fn time_to_live(broker: &Broker) -> Duration {
    broker.heartbeat * 5 / 2
}

impl Connect for Links {
    const BROKER: &'static str = "Redis";

    async fn connect(broker: &Broker, gate: &str) -> Result<Self, Fault> {
        let name = |purpose: &str| format!("worker-gate {gate} {purpose}");
        let (feed, invalidated) = redis::connect(broker, &name("feed")).await?;
        let (talk, published) = redis::connect(broker, &name("talk")).await?;
        let url: Option<&RedisUrl> = broker.urls.first().and_then(BrokerUrl::as_redis);
        let db = url.map_or(0, |url| url.db);
        let user = url.and_then(|url| url.user.clone()).unwrap_or_else(|| "default".to_owned());
        let feeder = Arc::new(Feeder::new(time_to_live(broker), broker.priority_steps.len()));
        let remote = Remote::open(&talk, &broker.global_keyprefix, db, gate).await;
        let remote = remote.map_err(|fault| mended(fault, &user))?;
        let (ended, _) = watch::channel(None);
        let tell = |ended: &watch::Sender<Option<String>>| {
            let ended = ended.clone();
            move |cause: String| {
                ended.send_if_modified(|known| {
                    let is_first = known.is_none();
                    known.get_or_insert(cause);
                    is_first
                });
            }
        };
        let mut tasks = Vec::new();
        let (end, feeds, speaks, connection) =
            (tell(&ended), Arc::clone(&feeder), Arc::clone(&remote), feed.connection());
        tasks.push(tokio::spawn(async move {
            if let Err(fault) = feeds.run(connection, invalidated, speaks).await {
                end(format!("failed to {fault}"));
            }
        }));
        let (feeds, speaks) = (Arc::clone(&feeder), Arc::clone(&remote));
        tasks.push(tokio::spawn(async move { speaks.hear(published, &feeds).await }));
        let (end, broker_then, at) = (tell(&ended), broker.clone(), feed.address().to_owned());
        tasks.push(tokio::spawn(async move {
            let master = other_master(&broker_then, &at).await;
            end(format!(
                "the sentinels name another master, {master}; what the old one took and did not hand on is lost with it"
            ));
        }));
        let tasks = tasks.into_iter().map(AbortOnDropHandle::new).collect();
        let rush = Rush::default();
        let (keeper, gate, broker) = (OnceLock::new(), gate.to_owned(), broker.clone());
        Ok(Self { feed, talk, feeder, remote, keeper, gate, db, rush, user, broker, ended, _tasks: tasks })
    }

    async fn lost(&self) -> String {
        let mut ended = self.ended.subscribe();
        let cause = async { ended.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone()) };
        tokio::select! {
            cause = cause => cause.unwrap_or_default(),
            () = self.feed.lost() => "Redis ended it".to_owned(),
            () = self.talk.lost() => "Redis ended it".to_owned(),
        }
    }

    fn cut(&self) {
        // What is open is not renewed from here on, and what a task still wants to do it does on a link that is lost.
        self.feeder.end();
        self.ended.send_if_modified(|known| known.replace("it was given up".to_owned()).is_none());
    }

    async fn goodbye(&self) {
        self.feeder.end();
    }
}

impl Links {
    /// Keeps task events, from the first call on.
    pub(super) fn keeper(&self) -> &Keeper {
        self.keeper.get_or_init(|| Keeper::begin(self.broker.clone(), self.db, &self.gate))
    }
}

/// Ends when the sentinels name another master than the one at this address; never, without sentinels.
async fn other_master(broker: &Broker, address: &str) -> String {
    if !redis::has_sentinels(broker) {
        std::future::pending::<()>().await;
    }
    loop {
        sleep(SENTINEL_LOOK).await;
        if let Some(master) = redis::master(broker).await.filter(|master| master != address) {
            return master;
        }
    }
}
