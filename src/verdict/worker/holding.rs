//! What operators ask for a worker. A hold keeps it out, however fit it is; what is judged of it goes on beneath.

use std::time::Duration;

use super::{Ownership, Worker};
use crate::{
    model::{
        Admission, Ask, By, Code, Command, FactKind, Hold, Mono, Now, Order, Reason, Record,
        order::{Outcome, Verb},
    },
    verdict::{Member, Policy, Step, fact, reason},
};

/// A hold, and when it ends by the clock that nobody can set.
#[derive(Debug)]
pub(in crate::verdict) struct Held {
    hold: Hold,
    ends: Option<Mono>,
}

impl Held {
    fn new(now: Now, hold: Hold) -> Self {
        let left = |until: jiff::Timestamp| Duration::try_from(until.duration_since(now.wall)).unwrap_or_default();
        let ends = hold.until.map(|until| now.mono + left(until));
        Self { hold, ends }
    }
}

impl Worker {
    /// Does what an operator asks for, and tells it. A gate that does not own the worker does nothing.
    pub(in crate::verdict) fn order(&mut self, now: Now, order: Order, policy: &Policy, step: &mut Step) -> Outcome {
        if self.is_elsewhere() {
            return Outcome::NotOwner;
        }
        let Order { ask, by, reason, .. } = order;
        let (verb, until, outcome) = match ask {
            Ask::Hold { until } => {
                let hold = Hold { by: by.clone(), reason: reason.clone(), since: now.wall, until };
                self.held = Some(Held::new(now, hold));
                (Verb::Hold, until, Outcome::Held)
            }
            Ask::Release => {
                let outcome = if self.held.take().is_some() { Outcome::Released } else { Outcome::NotHeld };
                (Verb::Release, None, outcome)
            }
            Ask::Recheck => {
                step.recheck.insert(self.identity);
                (Verb::Recheck, None, Outcome::Rechecking)
            }
        };
        self.adjust(now, now.mono, policy, step);
        self.tell_command(now, Command { ask: verb, by, reason, until, outcome }, policy, step);
        outcome
    }

    /// Goes on with a hold from before a restart, unless it has ended by the clock on the wall.
    pub(in crate::verdict) fn restore(&mut self, now: Now, hold: Hold) {
        if hold.until.is_none_or(|until| until > now.wall) {
            self.held = Some(Held::new(now, hold));
        }
    }

    /// A new worker in the place of one that was dismissed with this hold.
    pub(in crate::verdict) fn after(held: Option<Held>, member: Member, policy: &Policy) -> Self {
        Self { held, ..Self::new(member, policy) }
    }

    pub(in crate::verdict) fn hold(&self) -> Option<&Hold> {
        self.held.as_ref().map(|held| &held.hold)
    }

    /// Whether another gate owns the worker.
    pub(in crate::verdict) fn is_elsewhere(&self) -> bool {
        matches!(&self.ownership, Ownership::Down(reason) if reason.code == Code::OwnedElsewhere)
    }

    pub(super) fn hold_ends(&self) -> Option<Mono> {
        self.held.as_ref().and_then(|held| held.ends)
    }

    /// Ends a hold whose time is up. True if it did.
    pub(super) fn expire(&mut self, now: Mono) -> bool {
        self.held.take_if(|held| held.ends.is_some_and(|ends| now >= ends)).is_some()
    }

    /// Tells that a hold has ended by itself, where no admission does.
    pub(super) fn tell_end_of_hold(&self, now: Now, policy: &Policy, step: &mut Step) {
        let by = By { user: None, claims: "worker-gate".to_owned() };
        let reason = "the hold has ended".to_owned();
        let outcome = Outcome::Released;
        self.tell_command(now, Command { ask: Verb::Release, by, reason, until: None, outcome }, policy, step);
    }

    fn tell_command(&self, now: Now, command: Command, policy: &Policy, step: &mut Step) {
        let record = Record { command: Some(command), ..self.record(policy) };
        step.facts.push(fact(FactKind::WorkerCommand, now, record));
    }

    /// What holds: the judgement, unless an operator says otherwise.
    pub(super) fn standing(&self) -> Admission {
        if self.overruling().is_some() { Admission::Quarantined } else { self.judged.admission }
    }

    /// Why. A cause that stands is told before a hold.
    pub(super) fn reason(&self) -> Reason {
        self.overruling().map_or_else(|| self.judged.reason.clone(), |hold| reason::held(&self.name, hold))
    }

    /// The hold, if nothing else keeps the worker out. It says nothing about a worker of another gate's.
    fn overruling(&self) -> Option<&Hold> {
        self.hold().filter(|_| self.judged.admission != Admission::Quarantined && !self.is_elsewhere())
    }
}
