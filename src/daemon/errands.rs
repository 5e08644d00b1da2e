//! What is asked of the gate over the broker, as far as the loop has to do with it.

use super::{Daemon, holds::Save};
use crate::{
    clock,
    control::{Done, desk::Errand},
    model::{FactKind, Order, order::Outcome},
};

impl Daemon {
    pub(super) async fn run_errand(&mut self, errand: Errand) {
        match errand {
            Errand::Refused(reason) => self.tell(FactKind::GateCommandRefused, reason),
            Errand::Orders(orders, reply) => {
                let before = self.gate.holds();
                let mut done = Vec::new();
                for order in orders {
                    done.extend(self.order(order).await);
                }
                let save = Save { holds: self.gate.holds(), done, reply };
                if save.holds == before {
                    return save.answer(None);
                }
                // The answer waits for the disk, and the loop does not.
                if let Err(refused) = self.saves.try_send(save) {
                    refused.into_inner().answer(Some("the disk does not answer"));
                }
            }
        }
    }

    /// `None` if the worker is another gate's, which will answer.
    async fn order(&mut self, order: Order) -> Option<Done> {
        let worker = order.worker.clone();
        let (step, outcome) = self.gate.order(clock::now(), order);
        self.act(step).await;
        self.has_news = true;
        if outcome == Outcome::NotOwner {
            return None;
        }
        let record = self.gate.record(&worker)?;
        let (admission, reason) = (record.admission?, record.reason?);
        Some(Done { worker, outcome, admission, reason, forgetful: None })
    }
}
