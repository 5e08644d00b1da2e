//! Logs, on standard error.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
};

use anyhow::anyhow;
use tracing_subscriber::{EnvFilter, fmt::writer::BoxMakeWriter};

use super::{Coded, Exit};

mod lines;

pub(super) use lines::Lines;

/// What to log, in the order in which it is looked for; the syntax is that of tracing-subscriber's `EnvFilter`.
const VARIABLES: [&str; 2] = ["WORKER_GATE_LOG", "RUST_LOG"];

/// Starts logging at `info`, or as the environment says; by way of `lines`, if there are any.
pub(super) fn start(env: &BTreeMap<String, String>, lines: Option<&Lines>) -> anyhow::Result<()> {
    let given = VARIABLES.iter().find_map(|name| Some((name, env.get(*name).filter(|text| !text.is_empty())?)));
    let filter = match given {
        // lapin logs each end of a channel as an error of its own; what matters of it stands in our lines.
        None => EnvFilter::new("info,lapin=off"),
        Some((name, text)) => EnvFilter::try_new(text).map_err(|error| {
            Coded::new(Exit::Settings, anyhow!("environment {name}: {error}; write for example info,worker_gate=debug"))
        })?,
    };
    let colour = io::stderr().is_terminal() && env.get("NO_COLOR").is_none_or(String::is_empty);
    let writer = lines.map_or_else(|| BoxMakeWriter::new(io::stderr), Lines::writer);
    // An error says that a program that embeds this one logs already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colour).try_init();
    Ok(())
}
