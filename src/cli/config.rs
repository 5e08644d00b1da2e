//! `config show` and `config check`

use std::fmt::Write;

use super::{ConfigCommand, Context, Exit, out};
use crate::settings::{Loaded, ShownValue};

pub(super) fn run(command: ConfigCommand, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.settings()?;
    match command {
        ConfigCommand::Show => out::text(&table(&loaded.values))?,
        ConfigCommand::Check => out::text(&verdict(&loaded))?,
    }
    Ok(Exit::Done)
}

/// One value a line, as TOML, with its layer as a comment. Long values push only their own comment to the right.
fn table(values: &[ShownValue]) -> String {
    const WIDEST: usize = 60;
    let lines: Vec<_> = values.iter().map(|shown| (format!("{} = {}", shown.key, shown.value), &shown.layer)).collect();
    let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= WIDEST).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut text, (line, layer)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line:width$}  # {layer}");
        text
    })
}

fn verdict(loaded: &Loaded) -> String {
    let from = match &loaded.file {
        Some(path) => path.display().to_string(),
        None => "no settings file".to_owned(),
    };
    let settings = &loaded.settings;
    format!("settings right: {from}; checks {}, workers {}\n", settings.checks.len(), settings.workers.len())
}
