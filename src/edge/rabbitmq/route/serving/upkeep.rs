//! Looking after the way: what somebody took apart is made again, and what came past it is reported.

use std::sync::atomic::Ordering::Relaxed;

use futures_util::try_join;

use super::Serving;
use crate::{
    edge::{
        Ends,
        fault::Fault,
        rabbitmq::{links::Links, route::topology},
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

    /// Reports what came past the shut edge, and takes the binding away that it came by. True if there was something.
    pub(super) async fn tell_bypass(&mut self, ends: &Ends<Links>) -> Result<bool, Fault> {
        let mut told = false;
        for moving in &self.movers {
            let bypass = moving.tally.take_bypass();
            if bypass.messages == 0 {
                continue;
            }
            told = true;
            for (exchange, key) in &bypass.ways {
                if exchange == &self.names.intake {
                    self.topology.unbind_foreign(&self.control, key.as_str()).await?;
                    failpoint::hit(Point::BypassUnbound);
                }
            }
            let ways = bypass.ways.iter().map(|(exchange, key)| format!("exchange '{exchange}' key '{key}'")).collect();
            let report = EdgeReport::Bypass { messages: bypass.messages, ways };
            ends.tell(&self.route.worker.name, report).await;
            failpoint::hit(Point::BypassTold);
        }
        Ok(told)
    }
}
