//! Whichever broker the settings name: its links, the way out for events, and its edges.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{channel, parts::Parts};
use crate::{
    control::{self, desk::Desk},
    edge::{
        self, Ends, Memory,
        celery::EVENTS,
        fault::Fault,
        links::{self, Connect, LinkState},
        rabbitmq::{
            self,
            route::{Deaf, Route},
        },
        redis,
    },
    model::{EdgeReport, Wanted, WorkerName},
    redis::envelope::fanout_channel,
    report::outbox::{Outlet, RedisOutlet, gates, stream},
    settings::{BrokerUrl, EdgeKind, Events, FeedIntake, Settings, Worker, broker_url::AmqpUrl},
};

/// For counting what waits. Whoever is to know it has better things to do than to wait for a broker that is busy or gone.
const COUNT_LIMIT: Duration = Duration::from_secs(3);

/// The broker's links, which the edges share.
#[derive(Debug)]
pub(super) enum Broker {
    RabbitMq {
        links: watch::Receiver<LinkState<rabbitmq::links::Links>>,
        url: AmqpUrl,
        /// The other parts end with the last sender. With this one the link is the first to end when it ends for a reason, and
        /// the reason is heard.
        _state: watch::Sender<LinkState<rabbitmq::links::Links>>,
    },
    Redis {
        links: watch::Receiver<LinkState<redis::links::Links>>,
        /// Likewise.
        _state: watch::Sender<LinkState<redis::links::Links>>,
    },
}

/// What an edge's task is told and tells.
pub(super) struct Wires {
    pub(super) wanted: watch::Receiver<Wanted>,
    pub(super) reports: mpsc::Sender<(WorkerName, EdgeReport)>,
    pub(super) memory: Memory,
    pub(super) stop: CancellationToken,
}

impl Broker {
    /// Begins to connect, and to supply `channels` with what events go out on.
    pub(super) fn start(settings: &Settings, parts: &mut Parts, channels: watch::Sender<Option<Outlet>>) -> Self {
        let events = settings.events.clone();
        let stop = parts.stop_links.clone();
        match settings.broker.urls.first() {
            Some(BrokerUrl::Amqp(url)) => {
                let (state, links) = keep(settings, parts);
                let (up, url, gate) = (links.clone(), url.clone(), settings.gate.name.clone());
                let (vhost, user) = (url.vhost.clone(), url.user.clone());
                parts.spawn("the events' channel".to_owned(), async move {
                    channel::keep(up, &events, &gate, (&vhost, &user), &channels, &stop).await
                });
                Self::RabbitMq { links, url, _state: state }
            }
            Some(BrokerUrl::Redis(_)) | None => {
                let (state, links) = keep(settings, parts);
                let (mut up, db) = (links.clone(), settings.broker.database());
                let prefix = settings.broker.global_keyprefix.clone();
                parts.spawn("the events' outlet".to_owned(), async move {
                    loop {
                        let outlet = match &*up.borrow_and_update() {
                            LinkState::Down(_) => None,
                            LinkState::Up(links) => Some(outlet(links, &prefix, db, &events)),
                        };
                        channels.send_replace(outlet);
                        tokio::select! {
                            changed = up.changed() => if changed.is_err() { return Ok(()) },
                            () = stop.cancelled() => return Ok(()),
                        }
                    }
                });
                Self::Redis { links, _state: state }
            }
        }
    }

    /// Answers what is asked over the broker.
    pub(super) fn run_desk(&self, settings: &Settings, desk: Desk, parts: &mut Parts) {
        let (name, stop) = ("the desk".to_owned(), parts.stop_links.clone());
        match self {
            Self::RabbitMq { links, .. } => parts.spawn(name, control::rabbitmq::serve(links.clone(), desk, stop)),
            Self::Redis { .. } => parts.spawn(name, control::redis::serve(settings.broker.clone(), desk, stop)),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        match self {
            Self::RabbitMq { links, .. } => matches!(*links.borrow(), LinkState::Up(_)),
            Self::Redis { links, .. } => matches!(*links.borrow(), LinkState::Up(_)),
        }
    }

    /// Whether the broker has said that it takes no messages, as in a memory or disk alarm.
    pub(super) fn is_blocked(&self) -> bool {
        match self {
            Self::RabbitMq { links, .. } => match &*links.borrow() {
                LinkState::Up(links) => links.is_blocked(),
                LinkState::Down(_) => false,
            },
            // It refuses what is too much for it, each time anew.
            Self::Redis { .. } => false,
        }
    }

    /// How many messages wait for each of these workers where no worker gets them: for the workers of a shared queue, those in
    /// that queue. A worker of whom that cannot be known now is left out. Takes at most three seconds. Cancel-safe.
    pub(crate) async fn waiting(&self, workers: &[Worker]) -> BTreeMap<WorkerName, u64> {
        let counting = async {
            match self {
                Self::RabbitMq { links, .. } => {
                    let state = links.borrow().clone();
                    let LinkState::Up(links) = state else { return Ok(BTreeMap::new()) };
                    links.rush.quiet().await;
                    rabbitmq::waiting::waiting(&links, workers).await
                }
                Self::Redis { links, .. } => {
                    let state = links.borrow().clone();
                    let LinkState::Up(links) = state else { return Ok(BTreeMap::new()) };
                    links.rush.quiet().await;
                    redis::waiting::waiting(&links, workers).await
                }
            }
        };
        match timeout(COUNT_LIMIT, counting).await {
            Ok(Ok(waiting)) => waiting,
            Ok(Err(fault)) => {
                tracing::debug!("failed to {fault}");
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        }
    }

    /// Calls `tell` each time that the links are there again after they were lost, for as long as the gate lives.
    pub(super) async fn reconnects(&self, tell: impl Fn()) {
        match self {
            Self::RabbitMq { links, .. } => links::reconnects(links.clone(), tell).await,
            Self::Redis { links, .. } => links::reconnects(links.clone(), tell).await,
        }
    }

    /// Keeps this worker's edge as wanted until it is told to stop.
    pub(super) fn run_edge(
        &self,
        gate: &str,
        worker: &Worker,
        wires: Wires,
    ) -> futures_util::future::BoxFuture<'static, Result<(), Fault>> {
        let Wires { wanted, reports, memory, stop } = wires;
        let (gate, worker) = (gate.to_owned(), worker.clone());
        match (self, worker.edge.clone()) {
            (Self::RabbitMq { links, url, .. }, EdgeKind::Route(intake)) => {
                let (vhost, user) = (url.vhost.clone(), url.user.clone());
                let route = Route { worker, intake, feed: None, gate, vhost, user, deaf: Deaf::Perhaps };
                Box::pin(edge::run(route, Ends { links: links.clone(), wanted, reports }, memory, stop))
            }
            (Self::Redis { links, .. }, EdgeKind::Feed(feed)) => {
                let feed = redis::Feed { worker, feed, gate };
                Box::pin(edge::run(feed, Ends { links: links.clone(), wanted, reports }, memory, stop))
            }
            (Self::RabbitMq { links, url, .. }, EdgeKind::Feed(feed)) => {
                let FeedIntake::Queue(queue) = feed.intake.clone() else { return Box::pin(async { Ok(()) }) };
                let route = Route::fed(worker, &queue, feed, gate, (url.vhost.clone(), url.user.clone()));
                Box::pin(edge::run(route, Ends { links: links.clone(), wanted, reports }, memory, stop))
            }
            // Settings with such an edge are refused before a gate is made from them.
            (Self::Redis { .. }, EdgeKind::Route(_)) => Box::pin(async { Ok(()) }),
        }
    }
}

type States<L> = (watch::Sender<LinkState<L>>, watch::Receiver<LinkState<L>>);

fn keep<L: Connect>(settings: &Settings, parts: &mut Parts) -> States<L> {
    let (state, links) = watch::channel(LinkState::Down(None));
    let (broker, gate, stop) = (settings.broker.clone(), settings.gate.name.clone(), parts.stop_links.clone());
    let kept = state.clone();
    parts.spawn("the link".to_owned(), async move { links::keep(&broker, &gate, &kept, &stop).await });
    (state, links)
}

fn outlet(links: &Arc<redis::links::Links>, prefix: &str, db: u32, events: &Events) -> Outlet {
    Outlet::Redis(RedisOutlet {
        connection: links.talk.connection(),
        rush: links.rush.clone(),
        channel: fanout_channel(prefix, db, &events.exchange, ""),
        stream: stream(prefix, &events.exchange),
        gates: gates(prefix),
        celeryev: events.mirror_celeryev.then(|| fanout_channel(prefix, db, EVENTS, "")),
    })
}
