//! Makes a file that is missing.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, renameat2},
    unistd::linkat,
};

use super::{
    Applied, ApplyError, Target, Try,
    directory::{self, Made},
    temp::{self, Temp},
};
use crate::{
    profile::{
        inspect::{self, Broken},
        locate::{self, Place, open_below},
        plan::{self, Plan},
        read::MAX_BYTES,
    },
    regular,
};

/// Makes the file and the directories above it, unless somebody else makes it first.
pub(super) fn create(target: &Target<'_>, place: &Place) -> Result<Try, ApplyError> {
    let plan = plan_for_new(target)?;
    let (Some(directory), at) = directories(target, place)? else { return Ok(Try::Again) };
    let mut temp = Temp::create(&directory, &at, plan.text.as_bytes(), (target.uid, target.gid), 0o600)?;
    let failed = |errno| ApplyError::Step { step: "create", path: place.path(), errno };
    match renameat2(&directory, temp.os_name(), &directory, place.name(), RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => temp.remove = false,
        // A second name does not replace anything either; the first one goes with `temp`.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            match linkat(&directory, temp.os_name(), &directory, place.name(), AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::EEXIST) => return Ok(Try::Again),
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(Errno::EEXIST) => return Ok(Try::Again),
        Err(errno) => return Err(failed(errno)),
    }
    temp::flush(&directory, &at)?;
    Ok(Try::Done(Applied { path: place.path(), created: true, changed: plan.changed() }))
}

/// What a new file will say.
pub(in crate::profile) fn plan_for_new(target: &Target<'_>) -> Result<Plan, ApplyError> {
    let Some(path) = target.template else {
        return plan::plan("", target.enforce).map_err(|error| ApplyError::Plan { path: PathBuf::new(), error });
    };
    let unusable = |problem: String| ApplyError::Template { path: path.to_owned(), problem };
    let bytes = regular::read(path, MAX_BYTES).map_err(|error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        unusable(errno.map_or_else(|| error.to_string(), |errno| errno.to_string()))
    })?;
    let (text, _) = inspect::text_of(&bytes).map_err(|broken| {
        unusable(match broken {
            Broken::NotUtf8(byte) => format!("it is not UTF-8 at byte {byte}"),
            Broken::Syntax(error) => format!("it is not TOML: {error}"),
        })
    })?;
    plan::plan(text, target.enforce).map_err(|error| unusable(format!("cannot {error}")))
}

/// Opens the file's directory and makes what is missing of it. `None` if the path changed in the meantime.
fn directories(target: &Target<'_>, place: &Place) -> Result<(Option<OwnedFd>, PathBuf), ApplyError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut at = place.root().to_owned();
    let step = |step, path: &Path| {
        let path = path.to_owned();
        move |errno| ApplyError::Step { step, path, errno }
    };
    let mut current = open_below(place.home(), Path::new(""), flags).map_err(step("open", &at))?;
    for (index, name) in place.directories().into_iter().enumerate() {
        let parent = at.clone();
        at.push(name);
        if index >= place.existing && directory::make(&current, &parent, name, target)? == Made::Exchanged {
            return Ok((None, at));
        }
        let next = match open_below(&current, Path::new(name), flags) {
            Ok(next) => next,
            Err(errno) if locate::moved(errno) => return Ok((None, at)),
            Err(errno) => return Err(step("open", &at)(errno)),
        };
        current = next;
    }
    Ok((Some(current), at))
}
