//! The look at a managed config, as the schedule wants it.

use std::{path::PathBuf, sync::Arc};

use super::{ProfileProbe, Signature};
use crate::{
    identity::Identity,
    profile::{Target, inspect, managed::Managed},
    settings::Settings,
};

/// Makes each identity's look at its profile; `None` if settings name no profile.
pub fn probes(settings: &Settings) -> impl Fn(&Identity) -> Option<ProfileProbe> + use<> {
    let state_dir: Arc<PathBuf> = Arc::new(settings.gate.state_dir.clone());
    let profile = settings.profile.clone().map(Arc::new);
    let every = ProfileProbe::renewal(settings.evidence.max_age);
    move |identity| {
        let (profile, state_dir, identity) = (profile.clone()?, state_dir.clone(), Arc::new(identity.clone()));
        let path = match profile.path.strip_prefix("~/") {
            Some(below) => identity.home.join(below),
            None => PathBuf::from(&profile.path),
        };
        Some(ProfileProbe {
            inspect: Arc::new(move || {
                let target = Target::new(&identity, &profile);
                let report = inspect(target, None);
                // A damaged memory of past merges says nothing about the file; `profile apply` is where that is told.
                let managed_on = Managed::read(&state_dir).ok().and_then(|managed| managed.on(&report.path));
                crate::model::ProfileReport { managed_on, ..report }
            }),
            paths: vec![path.clone()],
            signature: Arc::new(move || Signature::of(&path)),
            every,
        })
    }
}
