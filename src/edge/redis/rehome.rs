//! Gives what waits for a worker that is gone to another one's intake. Each message is moved by one step of a script, so none is
//! there twice and none is missing, whenever this is killed.

use std::sync::Arc;

use ::redis::{Script, aio::MultiplexedConnection, cmd, pipe};
use tokio_util::sync::CancellationToken;

use super::{
    Feed,
    address::readdressed,
    binding::Binding,
    fault,
    feeder::{PutBack, put_back},
    keys::{self, Keys},
    links::{Links, time_to_live},
    mended,
};
use crate::{
    edge::{
        fault::Fault,
        links::Connect,
        rehome::{Entry, Outcome, Plan, RehomeError},
    },
    settings::{self, Broker, EdgeKind, FeedIntake},
};

/// So many are read, readdressed and moved together: some hundred KiB, and less than a millisecond of Redis.
const TOGETHER: isize = 100;

/// See [`crate::edge::rehome::run`].
pub(crate) async fn run(
    plan: &Plan,
    broker: &Broker,
    name: &str,
    stop: &CancellationToken,
    mut tell: impl FnMut(u64, u64) + Send,
) -> Result<Outcome, RehomeError> {
    // Settings with a route on Redis are refused.
    let (EdgeKind::Feed(gone), EdgeKind::Feed(to)) = (&plan.gone.edge, &plan.to.edge) else {
        return Ok(Outcome::default());
    };
    let links = Arc::new(Links::connect(broker, name).await?);
    let moved = own(plan, (gone, to), &links, name, stop, &mut tell).await;
    links.goodbye().await;
    Ok(moved.map_err(|fault| mended(fault, &links.user))?)
}

async fn own(
    plan: &Plan,
    (gone, to): (&settings::Feed, &settings::Feed),
    links: &Arc<Links>,
    name: &str,
    stop: &CancellationToken,
    tell: &mut (impl FnMut(u64, u64) + Send),
) -> Result<Outcome, Fault> {
    let owner = Keys::new(&links.broker, &plan.gone, gone);
    let mut connection = links.feed.connection();
    let edge = Feed { worker: plan.gone.clone(), feed: gone.clone(), gate: name.to_owned() };
    let value = edge.own(links, &owner, &mut connection).await?;
    let mut moving = Moving { plan, links, owner, value, connection, moved: 0 };
    let outcome = moving.rehome(to, stop, tell).await;
    let disowned = moving.disown().await;
    let outcome = outcome?;
    disowned.map(|()| outcome)
}

/// What is moved under one ownership.
struct Moving<'a> {
    plan: &'a Plan,
    links: &'a Arc<Links>,
    owner: Keys,
    /// What the owner's key says of it.
    value: String,
    connection: MultiplexedConnection,
    moved: u64,
}

impl Moving<'_> {
    async fn rehome(
        &mut self,
        to: &settings::Feed,
        stop: &CancellationToken,
        tell: &mut (impl FnMut(u64, u64) + Send),
    ) -> Result<Outcome, Fault> {
        let broker = &self.links.broker;
        let (lane, held) = (keys::lists(broker, &self.plan.gone.lane), keys::lists(broker, &self.plan.held()));
        let into = keys::lists(broker, &keys::source(&self.plan.to, to));
        let all: Vec<_> = lane.iter().chain(&held).cloned().collect();
        let before = self.waiting(&all).await?;
        self.unbind(to).await?;
        if self.owner.intake == into {
            // Back to where it was fed from, in front of what came later, and all in one step.
            let back = put_back(&mut self.connection, &self.owner, &self.value, PutBack::Shut).await?;
            self.moved += u64::try_from(back.0).map_err(|_| self.expired())?;
            tell(self.moved, before);
        }
        for from in [lane, held] {
            for (from, to) in from.iter().zip(&into) {
                self.empty(from, to, before, stop, tell).await?;
            }
        }
        Ok(Outcome { before, moved: self.moved, waiting: self.waiting(&all).await? })
    }

    /// Moves one list, the oldest first, but no more messages than waited in all of them at the beginning: who still publishes
    /// must not keep it going for ever.
    async fn empty(
        &mut self,
        from: &str,
        to: &str,
        before: u64,
        stop: &CancellationToken,
        tell: &mut (impl FnMut(u64, u64) + Send),
    ) -> Result<(), Fault> {
        let script = Script::new(include_str!("scripts/rehome.lua"));
        let (entry, time_to_live) = (self.plan.entry(), time_to_live(&self.links.broker).as_millis().to_string());
        while self.moved < before && !stop.is_cancelled() {
            let mut range = cmd("LRANGE");
            range.arg(from).arg(-TOGETHER).arg(-1);
            let oldest_last: Vec<Vec<u8>> =
                range.query_async(&mut self.connection).await.map_err(|error| fault("read what is held", error))?;
            if oldest_last.is_empty() {
                break;
            }
            let mut invocation = script.prepare_invoke();
            invocation.key(&self.owner.owner).key(from).key(to).arg(&self.value).arg(&time_to_live);
            for message in oldest_last.iter().rev() {
                invocation.arg(message.as_slice()).arg(address(&entry, message).as_ref());
            }
            let moved: i64 = invocation
                .invoke_async(&mut self.connection)
                .await
                .map_err(|error| fault("move what is held", error))?;
            self.moved += u64::try_from(moved).map_err(|_| self.expired())?;
            tell(self.moved, before);
        }
        Ok(())
    }

    async fn waiting(&mut self, lists: &[String]) -> Result<u64, Fault> {
        let mut lengths = pipe();
        // Between two commands a message could go from one list to another.
        lengths.atomic();
        for list in lists {
            lengths.cmd("LLEN").arg(list);
        }
        let lengths: Vec<u64> =
            lengths.query_async(&mut self.connection).await.map_err(|error| fault("count what is held", error))?;
        Ok(lengths.iter().sum())
    }

    /// Takes the other's keys from the holding queue of the one that is gone: who has taken over a key would else be given its
    /// messages for ever, since each would come back here as well.
    async fn unbind(&mut self, to: &settings::Feed) -> Result<(), Fault> {
        let FeedIntake::Exchange { exchange, kind, keys } = &to.intake else { return Ok(()) };
        let (held, lane) = (self.plan.held(), &self.plan.gone.lane);
        let binding = Binding::new(&self.links.broker, (exchange, *kind, keys), &held, lane);
        binding.remove(&mut self.connection).await
    }

    async fn disown(&mut self) -> Result<(), Fault> {
        let script = Script::new(include_str!("scripts/disown.lua"));
        let mut invocation = script.prepare_invoke();
        invocation.key(&self.owner.owner).arg(&self.value);
        let done: Result<u8, _> = invocation.invoke_async(&mut self.connection).await;
        done.map(drop).map_err(|error| fault("give the worker up", error))
    }

    fn expired(&self) -> Fault {
        Fault::Expired { worker: self.plan.gone.name.to_string() }
    }
}

/// A message as it is when it has come by this entry.
fn address<'a>(entry: &Entry, message: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
    match entry {
        Entry::Queue(queue) => readdressed(message, "", queue),
        Entry::Exchange(exchange, key) => readdressed(message, exchange, key.as_deref().unwrap_or_default()),
    }
}
