//! `completions SHELL`

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit, out};

pub(super) fn run(shell: Shell) -> anyhow::Result<Exit> {
    // Into memory first: clap_complete panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "worker-gate", &mut script);
    out::text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
