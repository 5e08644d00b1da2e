//! How admission and the wanted edge change, and the fact that will tell of it.

use super::{ACCOUNT_LIMIT, Held, Judgement, Ownership, Pending, Worker};
use crate::{
    model::{Admission, Code, Edge, FactKind, Mono, Now, Wanted},
    verdict::{Policy, Step, fact, reason},
};

impl Worker {
    /// Brings admission and the wanted edge in line with the evidence, and with what operators say.
    pub(super) fn settle(&mut self, now: Now, seen: Mono, policy: &Policy, step: &mut Step) {
        let hold_ended = self.expire(now.mono);
        self.adjust(now, seen, policy, step);
        if hold_ended && self.admission != Admission::Admitted {
            self.tell_end_of_hold(now, policy, step);
        }
    }

    pub(super) fn adjust(&mut self, now: Now, seen: Mono, policy: &Policy, step: &mut Step) {
        if self.held.is_some() {
            self.excuses.clear();
        }
        let judged = self.judge(now.mono, policy);
        // An operator's hold is no quarantine that counts for flapping, and does not hide one that does.
        if judged.admission != self.judged.admission {
            match judged.admission {
                Admission::Admitted => self.flap.admitted(now.mono),
                Admission::Quarantined => self.flap.quarantined(now, policy.flap),
                Admission::Held => {}
            }
        }
        self.judged = judged;
        if self.judged.admission == Admission::Admitted {
            self.proven = self.proven_at(policy);
        }
        let admission = self.standing();
        if admission != Admission::Admitted {
            self.excuses.clear();
        }
        self.changed_at.get_or_insert(now.wall);
        if admission != self.admission {
            self.change(now, admission, seen, policy, step);
        }
    }

    fn change(&mut self, now: Now, admission: Admission, seen: Mono, policy: &Policy, step: &mut Step) {
        // The change before this one is told as it stands; its account will not come any more.
        self.tell(now, None, None, step);
        self.admission = admission;
        self.changed_at = Some(now.wall);
        let by_check = admission == Admission::Quarantined && self.reason().code == Code::CheckFailed;
        self.fell_at = by_check.then_some(now.mono);
        self.wanted = Wanted {
            edge: if admission == Admission::Admitted { Edge::Open } else { Edge::Shut },
            quarantine: admission == Admission::Quarantined,
            change: self.wanted.change + 1,
            owned: self.owned(),
        };
        self.edge_at = None;
        self.pending = Some(Pending {
            kind: match admission {
                Admission::Held => FactKind::WorkerHeld,
                Admission::Admitted => FactKind::WorkerAdmitted,
                Admission::Quarantined => FactKind::WorkerQuarantined,
            },
            record: self.record(policy),
            change: self.wanted.change,
            seen,
            proven: self.proven,
            tell_at: now.mono + ACCOUNT_LIMIT,
        });
        step.wanted.push((self.name.clone(), self.wanted));
        if matches!(self.ownership, Ownership::Down(_)) {
            // No edge will answer.
            self.tell(now, None, None, step);
        }
    }

    /// This gate no longer has the worker, or not in this way. Its edge shuts by itself. A hold is for whoever comes in its
    /// place under this name.
    pub(in crate::verdict) fn dismiss(&mut self, now: Now, policy: &Policy, step: &mut Step) -> Option<Held> {
        self.tell(now, None, None, step);
        let held = self.held.take();
        self.admission = Admission::Held;
        self.changed_at = Some(now.wall);
        self.judged = Judgement { admission: Admission::Held, reason: reason::dismissed() };
        step.facts.push(fact(FactKind::WorkerHeld, now, self.record(policy)));
        held
    }
}
