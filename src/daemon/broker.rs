//! Whichever broker the settings name: its links, the way out for events, and its edges.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{channel, parts::Parts};
use crate::{
    edge::{
        self, Ends,
        fault::Fault,
        links::{self, Connect, LinkState},
        rabbitmq::{self, route::Route},
        redis,
    },
    model::{EdgeReport, Wanted, WorkerName},
    redis::envelope::fanout_channel,
    report::outbox::{Outlet, RedisOutlet},
    settings::{BrokerUrl, EdgeKind, FeedIntake, Settings, Worker, broker_url::AmqpUrl},
};

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
    pub(super) stop: CancellationToken,
}

impl Broker {
    /// Begins to connect, and to supply `channels` with what events go out on.
    pub(super) fn start(settings: &Settings, parts: &mut Parts, channels: watch::Sender<Option<Outlet>>) -> Self {
        let exchange = settings.events.exchange.clone();
        let stop = parts.stop_links.clone();
        match settings.broker.urls.first() {
            Some(BrokerUrl::Amqp(url)) => {
                let (state, links) = keep(settings, parts);
                let (up, url) = (links.clone(), url.clone());
                let (vhost, user) = (url.vhost.clone(), url.user.clone());
                parts.spawn("the events' channel".to_owned(), async move {
                    channel::keep(up, &exchange, (&vhost, &user), &channels, &stop).await
                });
                let (asked, gate, stop) = (links.clone(), settings.gate.name.clone(), parts.stop_links.clone());
                parts.spawn("the census".to_owned(), rabbitmq::census::keep(asked, gate, stop));
                Self::RabbitMq { links, url, _state: state }
            }
            url => {
                let (state, links) = keep(settings, parts);
                let (mut up, db) = (links.clone(), url.and_then(BrokerUrl::as_redis).map_or(0, |url| url.db));
                let prefix = settings.broker.global_keyprefix.clone();
                parts.spawn("the events' outlet".to_owned(), async move {
                    loop {
                        let outlet = match &*up.borrow_and_update() {
                            LinkState::Down(_) => None,
                            LinkState::Up(links) => Some(outlet(links, &prefix, db, &exchange)),
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

    pub(super) fn is_up(&self) -> bool {
        match self {
            Self::RabbitMq { links, .. } => matches!(*links.borrow(), LinkState::Up(_)),
            Self::Redis { links, .. } => matches!(*links.borrow(), LinkState::Up(_)),
        }
    }

    /// Keeps this worker's edge as wanted until it is told to stop.
    pub(super) fn run_edge(
        &self,
        gate: &str,
        worker: &Worker,
        wires: Wires,
    ) -> futures_util::future::BoxFuture<'static, Result<(), Fault>> {
        let Wires { wanted, reports, stop } = wires;
        let (gate, worker) = (gate.to_owned(), worker.clone());
        match (self, worker.edge.clone()) {
            (Self::RabbitMq { links, url, .. }, EdgeKind::Route(intake)) => {
                let (vhost, user) = (url.vhost.clone(), url.user.clone());
                let route = Route { worker, intake, feed: None, gate, vhost, user, maybe_deaf: true };
                Box::pin(edge::run(route, Ends { links: links.clone(), wanted, reports }, stop))
            }
            (Self::Redis { links, .. }, EdgeKind::Feed(feed)) => {
                let feed = redis::Feed { worker, feed, gate };
                Box::pin(edge::run(feed, Ends { links: links.clone(), wanted, reports }, stop))
            }
            (Self::RabbitMq { links, url, .. }, EdgeKind::Feed(feed)) => {
                let FeedIntake::Queue(queue) = feed.intake.clone() else { return Box::pin(async { Ok(()) }) };
                let route = Route::fed(worker, &queue, feed, gate, (url.vhost.clone(), url.user.clone()));
                Box::pin(edge::run(route, Ends { links: links.clone(), wanted, reports }, stop))
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

fn outlet(links: &Arc<redis::links::Links>, prefix: &str, db: u32, exchange: &str) -> Outlet {
    Outlet::Redis(RedisOutlet {
        connection: links.talk.connection(),
        rush: links.rush.clone(),
        channel: fanout_channel(prefix, db, exchange, ""),
        stream: format!("{prefix}{exchange}"),
    })
}
