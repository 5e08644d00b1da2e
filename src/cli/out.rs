//! The only place that writes to standard output.

use std::io::{self, Write};

/// Whoever read our output has gone, as `head` does. Not an error: the program ends quietly.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(super) struct Gone;

/// Writes text to standard output as it is, and makes sure that it is out.
///
/// # Errors
/// [`Gone`], which ends the program with 0; else what the system says, such as a full disk.
pub(super) fn text(text: &str) -> anyhow::Result<()> {
    write(&mut io::stdout().lock(), text.as_bytes())
}

/// Writes bytes to `to`; for tests apart from [`text`].
fn write(to: &mut impl Write, bytes: &[u8]) -> anyhow::Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Gone.into()),
        Err(error) => Err(anyhow::Error::from(error).context("failed to write to standard output")),
    }
}

/// What follows from output that could not be written.
///
/// # Errors
/// [`Gone`] for a reader that went away; else what the system says.
pub(super) fn failed<T>(error: io::Error) -> anyhow::Result<T> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Err(Gone.into());
    }
    Err(anyhow::Error::from(error).context("failed to write to standard output"))
}

/// Writes one message to standard error. If that fails there is nobody left to tell.
pub(super) fn error(message: &str) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}
