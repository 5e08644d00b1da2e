//! One worker's feed edge on Redis, from the moment that this gate owns the worker to the first fault.

use std::sync::Arc;

use ::redis::{Script, aio::MultiplexedConnection};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    binding::Binding,
    fault,
    feeder::{News, PutBack, put_back},
    keys::{self, Keys},
    links::{Links, time_to_live},
    mended,
    recycling::Recycling,
};
use crate::{
    clock,
    edge::{Edge, Ends, Memory, bypass::Rightly, fault::Fault, recycle},
    failpoint::{self, Point},
    model::{self, Account, EdgeReport, Wanted, WorkerName},
    settings::{self, FeedIntake, OnQuarantine, Worker},
};

/// What one feed edge needs to know.
#[derive(Debug)]
pub struct Feed {
    /// The worker.
    pub worker: Worker,
    /// Its intake, and how much of it the worker may have.
    pub feed: settings::Feed,
    /// The gate's name, for whoever asks the owner.
    pub gate: String,
}

impl Edge for Feed {
    type Links = Links;

    fn worker(&self) -> &WorkerName {
        &self.worker.name
    }

    async fn serve(
        &mut self,
        links: &Arc<Links>,
        ends: &mut Ends<Links>,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<(), Fault> {
        self.serve_owned(links, ends, memory, stop).await.map_err(|fault| mended(fault, &links.user))
    }
}

impl Feed {
    async fn serve_owned(
        &self,
        links: &Arc<Links>,
        ends: &mut Ends<Links>,
        memory: &mut Memory,
        stop: &CancellationToken,
    ) -> Result<(), Fault> {
        let keys = Arc::new(Keys::new(&links.broker, &self.worker, &self.feed));
        let mut connection = links.feed.connection();
        let prove = Script::new(include_str!("scripts/prove.lua"));
        let mut proof = prove.prepare_invoke();
        for key in keys.for_scripts() {
            proof.key(key);
        }
        let proven = proof.invoke_async::<u8>(&mut connection).await;
        proven.map_err(|error| fault("get leave for what an edge does", error))?;
        failpoint::hit(Point::RedisProven);
        let value = self.own(links, &keys, &mut connection).await?;
        failpoint::hit(Point::RedisOwned);
        let binding = self.binding(links);
        let recycling = &mut memory.recycling;
        let mut serving = Serving { edge: self, links, keys, value, connection, open: false, recycling };
        // Start shut: what an earlier owner fed and nobody took goes back before anything else.
        serving.put_back(PutBack::Shut).await?;
        failpoint::hit(Point::RedisEmptied);
        if let Some(binding) = &binding {
            binding.make(&mut serving.connection).await?;
            failpoint::hit(Point::RedisBound);
        }
        memory.worked = true;
        let (worker, feed) = (&serving.edge.worker, &serving.edge.feed);
        let limits = (feed.depth, feed.offline_after);
        let news = links.feeder.add(&worker.name, Arc::clone(&serving.keys), &serving.value, &worker.lane, limits);
        if worker.task_events {
            links.keeper().add(&worker.name);
        }
        let _served = Served { links, worker };
        serving.reconcile(news, binding.as_ref(), ends, stop).await?;
        serving.let_go(ends).await
    }

    /// Takes the worker. Gives what its owner's key says from now on.
    pub(super) async fn own(
        &self,
        links: &Links,
        keys: &Keys,
        connection: &mut MultiplexedConnection,
    ) -> Result<String, Fault> {
        let script = Script::new(include_str!("scripts/own.lua"));
        let mut invocation = script.prepare_invoke();
        invocation.key(&keys.owner).key(&keys.fence).key(&keys.edge);
        invocation.arg(&self.gate).arg(std::process::id()).arg(time_to_live(&links.broker).as_millis().to_string());
        let (taken, value): (u8, String) =
            invocation.invoke_async(connection).await.map_err(|error| fault("own the worker", error))?;
        if taken == 1 {
            return Ok(value);
        }
        let owner: Value = serde_json::from_str(&value).unwrap_or_default();
        let owner = match (owner["gate"].as_str(), owner["pid"].as_u64()) {
            (Some(gate), Some(pid)) => format!("the gate {gate} (process {pid})"),
            (_, _) => format!("somebody who wrote {value:?} to the key {:?}", keys.owner),
        };
        Err(Fault::Owned { worker: self.worker.name.to_string(), owner })
    }

    fn binding(&self, links: &Links) -> Option<Binding> {
        let FeedIntake::Exchange { exchange, kind, keys } = &self.feed.intake else { return None };
        let queue = keys::source(&self.worker, &self.feed);
        Some(Binding::new(&links.broker, (exchange, *kind, keys), &queue, &self.worker.lane))
    }
}

/// A worker that is not served any more, however that ended, is fed no more, and its task events are not kept.
struct Served<'a> {
    links: &'a Links,
    worker: &'a Worker,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.links.feeder.remove(&self.worker.name);
        if self.worker.task_events {
            self.links.keeper().remove(&self.worker.name);
        }
    }
}

struct Serving<'a> {
    edge: &'a Feed,
    links: &'a Arc<Links>,
    keys: Arc<Keys>,
    value: String,
    connection: MultiplexedConnection,
    open: bool,
    /// Makes the worker start anew.
    recycling: &'a mut Option<AbortOnDropHandle<()>>,
}

impl Serving<'_> {
    /// Says that the gate owns the worker, then follows what is wanted.
    async fn reconcile(
        &mut self,
        mut news: mpsc::UnboundedReceiver<News>,
        binding: Option<&Binding>,
        ends: &mut Ends<Links>,
        stop: &CancellationToken,
    ) -> Result<(), Fault> {
        // A wish to open that is older than the ownership rests on evidence that is older, too.
        let mut done = ends.wanted.borrow_and_update().change;
        let owned = clock::now().mono;
        let name = self.edge.worker.name.clone();
        ends.tell(&name, EdgeReport::Owned(owned)).await;
        let mut rebound = self.links.feeder.watch(binding.map(|binding| binding.table.clone()));
        loop {
            let wanted = *ends.wanted.borrow_and_update();
            let is_outdated = wanted.edge == model::Edge::Open && wanted.owned != Some(owned);
            if wanted.change != done && !is_outdated {
                self.become_(wanted, ends).await?;
                done = wanted.change;
            }
            // Cancel-safe: watch, token and queues keep what is not taken.
            tokio::select! {
                biased;
                changed = ends.wanted.changed() => if changed.is_err() { return Ok(()) },
                _ = ends.links.changed() => return Err(Fault::LinkDown),
                () = stop.cancelled() => return Ok(()),
                told = news.recv() => match told {
                    Some(News::Bypass { messages, exchange, key }) => {
                        let way = self.rightly().past(&exchange, &key, messages);
                        ends.tell(&name, EdgeReport::Bypass(vec![way])).await;
                    }
                    Some(News::Lost) | None => return Err(self.expired()),
                },
                Some(()) = rebound.recv() => {
                    let Some(binding) = binding else { continue };
                    let keys = binding.make(&mut self.connection).await?;
                    failpoint::hit(Point::RedisRebound);
                    if !keys.is_empty() {
                        let way = |key: &String| self.rightly().past(&binding.exchange, key, 0);
                        ends.tell(&name, EdgeReport::Bypass(keys.iter().map(way).collect())).await;
                    }
                }
            }
        }
    }

    async fn become_(&mut self, wanted: Wanted, ends: &Ends<Links>) -> Result<(), Fault> {
        let name = &self.edge.worker.name;
        let mut moved = 0;
        let was_open = self.open;
        {
            let _urgent = self.links.rush.begin();
            match wanted.edge {
                model::Edge::Open if !was_open => self.open().await?,
                // Nothing is moved from here on, whatever Redis says.
                model::Edge::Shut if was_open => moved = self.shut().await?,
                model::Edge::Open | model::Edge::Shut => {}
            }
        }
        ends.tell(name, EdgeReport::Is(wanted, clock::now().mono)).await;
        failpoint::hit(if self.open { Point::RedisOpenTold } else { Point::RedisShutTold });
        let account = Account { before: moved, moved, left: 0, taken: 0 };
        let change = wanted.change;
        if wanted.edge == model::Edge::Open || !was_open {
            ends.tell(name, EdgeReport::Settled { change, account, exposed: None, blocked: false }).await;
            return Ok(());
        }
        let (links, reports, name) = (Arc::clone(self.links), ends.reports.clone(), name.clone());
        let events = self.edge.worker.task_events;
        let (asked, answered) = oneshot::channel();
        // Apart: a worker that is away or deaf holds up no edge.
        tokio::spawn(async move {
            let keeper = events.then(|| links.keeper());
            let exposed = Some(links.remote.exposed(&name, keeper).await);
            let _ = reports.send((name, EdgeReport::Settled { change, account, exposed, blocked: false })).await;
            // Whether anybody waits for it is no matter.
            let _ = asked.send(());
        });
        if self.recycles(wanted) {
            self.recycle(ends, answered);
        }
        Ok(())
    }

    /// Makes the worker start anew.
    fn recycle(&mut self, ends: &Ends<Links>, answered: oneshot::Receiver<()>) {
        let worker = &self.edge.worker;
        let hands = Recycling { links: ends.links.clone(), worker: worker.name.clone(), lane: worker.lane.clone() };
        recycle::begin(self.recycling, hands, worker, ends.reports.clone(), answered);
    }

    fn rightly(&self) -> Rightly {
        Rightly::of(&self.edge.worker.lane, &self.edge.worker.edge)
    }

    fn recycles(&self, wanted: Wanted) -> bool {
        wanted.quarantine && self.edge.worker.on_quarantine == OnQuarantine::Recycle
    }

    async fn open(&mut self) -> Result<(), Fault> {
        failpoint::hit(Point::RedisOpenBegun);
        let script = Script::new(include_str!("scripts/open.lua"));
        let mut invocation = script.prepare_invoke();
        invocation.key(&self.keys.owner).key(&self.keys.edge).arg(&self.value);
        invocation.arg(time_to_live(&self.links.broker).as_millis().to_string());
        let opened: u8 =
            invocation.invoke_async(&mut self.connection).await.map_err(|error| fault("open the edge", error))?;
        if opened == 0 {
            return Err(self.expired());
        }
        self.open = true;
        failpoint::hit(Point::RedisOpened);
        self.links.feeder.set_open(&self.edge.worker.name, true);
        Ok(())
    }

    /// Says how many messages went back.
    async fn shut(&mut self) -> Result<u64, Fault> {
        self.links.feeder.set_open(&self.edge.worker.name, false);
        self.open = false;
        failpoint::hit(Point::RedisShutBegun);
        self.put_back(PutBack::Shut).await.inspect(|_| failpoint::hit(Point::RedisShut))
    }

    async fn put_back(&mut self, what: PutBack) -> Result<u64, Fault> {
        let (moved, _) = put_back(&mut self.connection, &self.keys, &self.value, what).await?;
        self.links.feeder.ring();
        u64::try_from(moved).map_err(|_| self.expired())
    }

    /// Shuts, puts back what waits in the lane, and gives the worker up, so that the next owner need not wait for the key to
    /// expire.
    async fn let_go(&mut self, ends: &Ends<Links>) -> Result<(), Fault> {
        self.links.feeder.remove(&self.edge.worker.name);
        failpoint::hit(Point::RedisLetGoBegun);
        self.put_back(PutBack::Release).await?;
        failpoint::hit(Point::RedisLetGo);
        if self.open {
            self.open = false;
            ends.tell(&self.edge.worker.name, EdgeReport::Is(Wanted::shut(), clock::now().mono)).await;
        }
        Ok(())
    }

    fn expired(&self) -> Fault {
        Fault::Expired { worker: self.edge.worker.name.to_string() }
    }
}
