//! The look at a managed config, as the schedule wants it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{ProfileProbe, Signature};
use crate::{
    chain::chain,
    clock,
    identity::Identity,
    model::{Failure, ProfileReport},
    profile::{
        Target, inspect,
        managed::{self, Managed},
        values,
    },
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
        let paths = [path.clone()].into_iter().chain(profile.template.clone()).collect();
        let mend = {
            let (identity, profile, state_dir) = (identity.clone(), profile.clone(), state_dir.clone());
            move || repair(Target::new(&identity, &profile), &state_dir)
        };
        let values = {
            let (identity, profile) = (identity.clone(), profile.clone());
            move || values::values(Target::new(&identity, &profile))
        };
        Some(ProfileProbe {
            inspect: Arc::new(move || {
                let target = Target::new(&identity, &profile);
                let report = inspect(target, None);
                // A damaged memory of past merges says nothing about the file; `profile apply` is where that is told.
                let managed_on = Managed::read(&state_dir).ok().and_then(|managed| managed.on(&report.path));
                ProfileReport { managed_on, ..report }
            }),
            repair: Arc::new(mend),
            values: Arc::new(values),
            paths,
            signature: Arc::new(move || Signature::of(&path)),
            every,
        })
    }
}

/// Merges the enforced keys, as `profile apply` does.
fn repair(target: Target<'_>, state_dir: &Path) -> Result<(), Failure> {
    match managed::apply_and_record(target, state_dir, clock::now().wall) {
        Ok((_, warning)) => {
            if let Some(warning) = warning {
                tracing::warn!("mended the profile, but failed to {warning}");
            }
            Ok(())
        }
        Err(error) => Err(Failure { detail: format!("failed to {}", chain(&error)), remedy: error.remedy(&target) }),
    }
}
