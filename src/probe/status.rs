//! From the kernel's wait status to how a command ended.

use nix::sys::signal::Signal;

use crate::model::Outcome;

/// Decodes a wait status as wait(2) lays it out: the low seven bits are the signal, the next byte is the exit code.
pub(crate) fn outcome_of(raw: i32) -> Outcome {
    match raw & 0x7f {
        0 => Outcome::ExitCode((raw >> 8) & 0xff),
        signal => Outcome::Signal(signal_name(signal)),
    }
}

/// `SIGTERM`, or for the real-time signals, which have no names of their own, `SIGRTMIN+2`.
fn signal_name(number: i32) -> String {
    let first_real_time = nix::libc::SIGRTMIN();
    match Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) if number >= first_real_time => format!("SIGRTMIN+{}", number - first_real_time),
        Err(_) => format!("signal {number}"),
    }
}

/// How a command ended, as the end of a sentence that starts with the command.
pub(crate) fn in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::ExitCode(code) => format!("exited with code {code}"),
        Outcome::Signal(name) => format!("was ended by {name}"),
        Outcome::Timeout => "ran too long".to_owned(),
        Outcome::NotFound => "was not found".to_owned(),
        Outcome::NotStarted => "could not be started".to_owned(),
        Outcome::LeftChildren => "left processes behind".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_status_has_an_outcome() {
        for (raw, outcome) in [
            (0, Outcome::ExitCode(0)),
            (0x0100, Outcome::ExitCode(1)),
            (0xff00, Outcome::ExitCode(255)),
            (9, Outcome::Signal("SIGKILL".into())),
            (0x8b, Outcome::Signal("SIGSEGV".into())),
            (34, Outcome::Signal("SIGRTMIN+0".into())),
            (64, Outcome::Signal("SIGRTMIN+30".into())),
            (33, Outcome::Signal("signal 33".into())),
        ] {
            assert_eq!(outcome_of(raw), outcome, "{raw:#x}");
        }
    }
}
