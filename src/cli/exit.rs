//! How the program ends: its exit codes, and the one printer of errors.

use std::{error::Error, fmt, io, iter, process::ExitCode};

use anyhow::anyhow;
use nix::errno::Errno;

use super::{log::Lines, out};
use crate::{
    chain::chain,
    settings::{Place, Problem, Problems},
};

/// The exit codes; those from 64 on are those of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    #[default]
    Done = 0,
    /// A check failed, or a worker is not fit.
    Unfit = 1,
    /// Wrong usage of the command line.
    Usage = 64,
    /// The broker cannot be reached.
    Unreachable = 69,
    /// A defect, or something of the machine's that cannot be helped.
    Internal = 70,
    /// Not permitted, on this machine or by the broker.
    NotPermitted = 77,
    /// The settings are wrong.
    Settings = 78,
}

/// The exit codes, for `--help`.
pub(super) const HELP: &str = "\
Exit codes: 0 done; 1 a check failed or a worker is not fit; 64 wrong usage; 69 broker unreachable;
70 internal error; 77 not permitted; 78 settings wrong.";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that knows its exit code. It may stand anywhere in a chain; the outermost one holds.
#[derive(Debug)]
pub struct Coded {
    exit: Exit,
    source: anyhow::Error,
}

impl Coded {
    /// Gives an error its exit code; to be used as `result.map_err(|error| Coded::new(Exit::Unreachable, error))`.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, source: error.into() }
    }
}

/// It says nothing of its own: the error inside stands in its place.
impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for Coded {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// An error whose message can follow "failed to", with its causes and its exit code.
pub(super) fn failed(exit: Exit, error: &dyn Error) -> anyhow::Error {
    Coded::new(exit, anyhow!("failed to {}", chain(error))).into()
}

/// Prints what went wrong, after the `lines` of the log, and says how the program ends.
pub(super) fn report(answer: anyhow::Result<Exit>, lines: Option<&Lines>) -> Exit {
    match answer {
        Ok(exit) => exit,
        Err(error) if error.downcast_ref::<out::Gone>().is_some() => Exit::Done,
        Err(error) => {
            let text = text(&error);
            lines.map_or_else(|| out::error(&text), |lines| lines.add_last(&text));
            code(&error)
        }
    }
}

/// The error and its causes; problems with settings, one a line.
pub(super) fn text(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Problems>() {
        Some(problems) => problems.to_string(),
        None => format!("worker-gate: {}", chain(&**error)),
    }
}

/// Whether the system did not permit it, as the error or one of its causes says.
pub(super) fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let mut causes = iter::successors(Some(error), |error| (*error).source()).filter_map(|cause| cause.downcast_ref());
    causes.any(|cause: &io::Error| cause.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether it is a settings file that may not be read. A problem has no kind, only the system's own words.
fn is_file_denied(problem: &Problem) -> bool {
    matches!(problem.place, Some(Place::File { line: 0, .. }))
        && problem.what.ends_with(&io::Error::from(Errno::EACCES).to_string())
}

fn code(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(coded) = cause.downcast_ref::<Coded>() {
            return coded.exit;
        }
        if let Some(problems) = cause.downcast_ref::<Problems>() {
            return if problems.iter().any(is_file_denied) { Exit::NotPermitted } else { Exit::Settings };
        }
    }
    if is_denied(&**error) { Exit::NotPermitted } else { Exit::Internal }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_chain_says_nothing_twice() {
        let inner = anyhow!("connection refused").context("failed to reach 127.0.0.1: connection refused");
        assert_eq!(
            text(&inner.context("failed to start")),
            "worker-gate: failed to start: failed to reach 127.0.0.1: connection refused"
        );
    }

    #[test]
    fn the_outermost_code_of_a_chain_holds() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let coded = Coded::new(Exit::Unreachable, anyhow::Error::from(denied).context("failed to connect"));
        let error = Err::<(), _>(coded).context("failed to start").unwrap_err();
        assert_eq!(code(&error), Exit::Unreachable);
        assert!(text(&error).starts_with("worker-gate: failed to start: failed to connect: "));
        assert_eq!(code(&anyhow!("x")), Exit::Internal);
        let denied = anyhow::Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).context("failed to write");
        assert_eq!(code(&denied), Exit::NotPermitted);
    }
}
