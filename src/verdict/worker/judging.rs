//! What the evidence says about a worker. Nothing here changes anything.

use std::time::Duration;

use super::{Judgement, Ownership, Worker};
use crate::{
    model::{Admission, ImageState, Mono, Reason},
    verdict::{Policy, evidence::CheckEvidence, reason},
};

impl Worker {
    pub(super) fn judge(&self, now: Mono, policy: &Policy) -> Judgement {
        let (admission, reason) = self.weighed(now, policy);
        Judgement { admission, reason }
    }

    fn weighed(&self, now: Mono, policy: &Policy) -> (Admission, Reason) {
        let before = &self.judged;
        if self.stopping {
            return match before.admission {
                Admission::Quarantined => (Admission::Quarantined, before.reason.clone()),
                Admission::Held | Admission::Admitted => (Admission::Held, reason::stopping()),
            };
        }
        if let Some(reason) = self.unfit(policy) {
            return (Admission::Quarantined, reason);
        }
        if let Ownership::Down(reason) = &self.ownership {
            // What is quarantined stays so until it is proven again, and that takes an owner.
            return match before.admission {
                Admission::Quarantined => (Admission::Quarantined, before.reason.clone()),
                Admission::Held | Admission::Admitted => (Admission::Held, reason.clone()),
            };
        }
        let stale = self.stale_at(policy).is_some_and(|at| now >= at);
        let proven = !stale && self.is_proven(policy);
        match before.admission {
            Admission::Quarantined if proven && let Some(wait) = self.flap.waits(now) => {
                (Admission::Quarantined, reason::flapping(wait))
            }
            _ if proven => (Admission::Admitted, self.excuses.reason().cloned().unwrap_or_else(reason::fit)),
            Admission::Held => (Admission::Held, before.reason.clone()),
            Admission::Admitted | Admission::Quarantined if stale => (Admission::Quarantined, reason::stale(policy)),
            Admission::Admitted | Admission::Quarantined => {
                let doubt = self.doubted(policy).unwrap_or(&before.reason);
                (Admission::Quarantined, doubt.clone())
            }
        }
    }

    /// What is wrong with this worker, if anything required is.
    fn unfit(&self, policy: &Policy) -> Option<Reason> {
        let counts = |name: &str, evidence: &CheckEvidence| evidence.is_unfit() && !self.excuses.has(name);
        if let Some((name, evidence)) = self.required(policy).find(|(name, evidence)| counts(name, evidence)) {
            return Some(evidence.doubted().cloned().unwrap_or_else(|| reason::failed(name, evidence)));
        }
        if let Some(reason) = self.unfit_image(policy) {
            return Some(reason);
        }
        if !policy.profile || !self.profile.is_unfit() {
            return None;
        }
        let report = self.profile.last()?;
        Some(self.repairs.explain(reason::drifted(report), report))
    }

    /// What is wrong with the image for this worker, where only a verified one will do.
    pub(in crate::verdict) fn unfit_image(&self, policy: &Policy) -> Option<Reason> {
        let report = self.image.as_ref().filter(|_| policy.image_required)?;
        let Some(image) = report.image.as_ref().filter(|image| image.state == ImageState::Verified) else {
            return Some(reason::unverified(report));
        };
        let listed = [("codex_cli", &image.codex_cli_version), ("spec_kit", &image.spec_kit_version)];
        listed.into_iter().find_map(|(name, listed)| {
            let found = self.checks.get(name)?.last()?.0.version.as_ref()?;
            (Some(found) != listed.as_ref()).then(|| reason::mismatch(name, listed.as_deref(), found))
        })
    }

    /// Why something that was proven does not count any more.
    fn doubted<'a>(&'a self, policy: &'a Policy) -> Option<&'a Reason> {
        let profile = self.profile.doubted().filter(|_| policy.profile);
        self.required(policy).find_map(|(_, evidence)| evidence.doubted()).or(profile)
    }

    fn required<'a>(&'a self, policy: &'a Policy) -> impl Iterator<Item = (&'a String, &'a CheckEvidence)> {
        self.checks.iter().filter(|(name, _)| policy.checks.get(*name).is_some_and(|rule| rule.required))
    }

    fn is_proven(&self, policy: &Policy) -> bool {
        self.required(policy).all(|(name, evidence)| evidence.is_proven() || self.excuses.has(name))
            && (!policy.profile || self.profile.is_proven())
            && (!policy.image_required || self.image.is_some())
    }

    /// When the first piece of the proof, or of what excuses it, will be too old.
    pub(super) fn stale_at(&self, policy: &Policy) -> Option<Mono> {
        let age = policy.max_age;
        let of = |(name, evidence): (&String, &CheckEvidence)| {
            self.excuses.stale_at(name, age).or_else(|| evidence.stale_at(age))
        };
        self.required(policy).filter_map(of).chain(self.profile_stale_at(policy, age)).min()
    }

    /// The last moment for which all of it is proven.
    pub(super) fn proven_at(&self, policy: &Policy) -> Option<Mono> {
        let age = Duration::ZERO;
        let checks = self.required(policy).filter_map(|(_, evidence)| evidence.stale_at(age));
        checks.chain(self.profile_stale_at(policy, age)).min()
    }

    fn profile_stale_at(&self, policy: &Policy, age: Duration) -> Option<Mono> {
        if policy.profile { self.profile.stale_at(age) } else { None }
    }
}
