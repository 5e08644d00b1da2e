//! Looking after the way: what somebody took apart is made again, and what came past it is reported.

use std::sync::atomic::Ordering::Relaxed;

use futures_util::try_join;
use lapin::types::ShortString;
use tokio::{sync::oneshot, time::Instant};

use super::Serving;
use crate::{
    edge::{
        Ends,
        bypass::Rightly,
        fault::Fault,
        rabbitmq::{links::Links, recycling::Recycling, route::topology},
        recycle,
    },
    failpoint::{self, Point},
    model::EdgeReport,
};

impl Serving<'_> {
    /// Messages that come to the holding queue while the edge is open say that somebody took the way apart: deleted the edge
    /// exchange, or the lane, which the worker then declared without our binding. True if the way was made again.
    pub(super) async fn mend(&mut self) -> Result<bool, Fault> {
        let late = self.movers.iter().any(|moving| moving.tally.late.swap(false, Relaxed));
        if late && self.open {
            tracing::warn!(worker = %self.route.worker.name, "messages were held while the edge is open: making the way again");
            // On a channel of its own, because lapin remembers every declaration of a channel for as long as that lives.
            let channel = topology::open(&self.links.control).await?;
            self.topology.lane(&self.links.control).await?;
            self.topology.declare_edge(&channel).await?;
            failpoint::hit(Point::MendDeclared);
            self.topology.open_edge(&channel).await?;
            failpoint::hit(Point::MendOpened);
            let _ = channel.close(200, "done".into()).await;
        }
        Ok(late)
    }

    /// Declares again what somebody may have deleted. Producers see nothing of a missing holding queue, nor of an intake that
    /// one of them made anew without its alternate exchange: their messages are confirmed, and nobody has them. Cancel-safe.
    pub(super) async fn look(&self) -> Result<(), Fault> {
        let channel = topology::open(&self.links.control).await?;
        let intake = async { if self.is_plain { self.topology.declare_intake(&channel).await } else { Ok(()) } };
        match try_join!(self.topology.declare_holding(&channel), self.topology.declare_edge(&channel), intake) {
            Err(Fault::Topology { .. }) => Err(Fault::Nowhere { exchange: self.names.intake.to_string() }),
            looked => {
                looked?;
                let _ = channel.close(200, "done".into()).await;
                Ok(())
            }
        }
    }

    /// Binds what somebody may have unbound. Never given up half way, or a shut could overtake it.
    pub(super) async fn open_again(&self) -> Result<(), Fault> {
        if self.open { self.topology.open_edge(&self.control).await } else { Ok(()) }
    }

    /// Makes the worker start anew.
    pub(super) fn recycle(&mut self, ends: &Ends<Links>, answered: oneshot::Receiver<()>) {
        let (worker, links) = (&self.route.worker, ends.links.clone());
        let hands = Recycling { links, worker: worker.name.clone(), lane: self.names.lane.clone() };
        recycle::begin(self.recycling, hands, worker, ends.reports.clone(), answered);
    }

    /// Says how far a move has come that outlasts its account, in the log and for whoever asks.
    pub(super) async fn tell_progress(&mut self, ends: &Ends<Links>) -> Result<(), Fault> {
        let Some(mut progress) = self.progress.take() else { return Ok(()) };
        if self.settling.is_some() {
            // Something else is moved now, and has an account of its own.
            ends.tell(&self.route.worker.name, EdgeReport::Moving(None)).await;
            return Ok(());
        }
        if Instant::now() < progress.look_at() {
            self.progress = Some(progress);
            return Ok(());
        }
        let queues = if self.open { self.holding_queues() } else { vec![self.names.lane.clone()] };
        let mut left = 0;
        for queue in queues {
            left += topology::waiting(&self.control, &queue).await?;
        }
        let tallies = self.movers.iter().filter(|moving| !moving.stop.is_cancelled()).map(|moving| &moving.tally);
        let (moved, in_hand) = tallies
            .fold((0, 0), |(moved, in_hand), tally| (moved + tally.moved.load(Relaxed), in_hand + tally.in_hand()));
        let (account, logs) = progress.look(moved, left + in_hand);
        let (worker, left) = (&self.route.worker.name, account.left);
        if logs {
            tracing::info!(%worker, moved, left, blocked = self.links.is_blocked(), "moving messages");
        }
        if left > 0 {
            self.progress = Some(progress);
        } else if !self.open {
            self.expect_bursts();
        }
        ends.tell(worker, EdgeReport::Moving((left > 0).then_some(account))).await;
        Ok(())
    }

    /// Reports what came past the shut edge, and takes the binding away that it came by. True if there was something.
    pub(super) async fn tell_bypass(&mut self, ends: &Ends<Links>) -> Result<bool, Fault> {
        let mut came = std::mem::take(&mut self.untold);
        came.extend(self.movers.iter().flat_map(|moving| moving.tally.take_bypass()));
        if came.is_empty() {
            return Ok(false);
        }
        if !self.open && !self.silenced {
            // The queue sends at most 200 messages ahead of what has left its node for us (RabbitMQ's rabbit_queue_consumers.erl,
            // UNSENT_MESSAGE_LIMIT). Of a burst of more the next ones go to the worker, whatever the priorities say.
            self.silenced = true;
            self.silence();
        }
        for (exchange, key, _) in &came {
            if exchange == &self.names.intake {
                self.topology.unbind_foreign(&self.control, key.as_str()).await?;
                failpoint::hit(Point::BypassUnbound);
            }
        }
        let rightly = Rightly::of(&self.route.worker.lane, &self.route.worker.edge);
        let way = |(exchange, key, messages): &(ShortString, ShortString, u64)| {
            rightly.past(exchange.as_str(), key.as_str(), *messages)
        };
        ends.tell(&self.route.worker.name, EdgeReport::Bypass(came.iter().map(way).collect())).await;
        failpoint::hit(Point::BypassTold);
        Ok(true)
    }
}
