//! `completions SHELL`

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit, out};

pub(super) fn run(shell: Shell) -> anyhow::Result<Exit> {
    // Into memory first: clap_complete panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "worker-gate", &mut script);
    // For bash, clap_complete 4.6.11 writes the hyphen of the program's name in two ways, and nothing is completed behind a
    // command (clap's issue 6421). No other shell's script has this word.
    let script = String::from_utf8_lossy(&script).replace("worker__subcmd__gate", "worker__gate");
    out::text(&script)?;
    Ok(Exit::Done)
}
