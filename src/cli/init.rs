//! `worker-gate init`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use clap::Args;

use super::{Coded, Context, Exit, doctor::exit_of, exit, out, prepare};
use crate::{
    durable,
    init::{self, Edge, InitError, Wish},
    settings::{self, Reach, Source, load::SEARCH},
};

/// What `--help` says beside the flags.
pub(super) const HELP: &str = "\
The broker's URL comes from --broker, WORKER_GATE__BROKER__URL or CELERY_BROKER_URL. Others on the machine can read the first, \
password and all. A password is never written into the file. What --set says of gate and broker is.";

/// `init …`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The broker's URL, as Celery has it
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// Only workers whose names match; `*` and `?` stand for any characters. Can be given often [default: those of this host]
    #[arg(long = "worker", value_name = "GLOB")]
    workers: Vec<String>,
    /// The edge that each worker is to have [default: what suits its queue]
    #[arg(long, value_enum)]
    edge: Option<Edge>,
    /// Where to write; - for standard output [default: --config, else /etc/worker-gate/worker-gate.toml]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
}

pub(super) async fn init(context: &Context, args: InitArgs) -> anyhow::Result<Exit> {
    let file = args.output.or_else(|| context.source.file.clone()).unwrap_or_else(|| PathBuf::from(SEARCH[0]));
    let is_stdout = file.as_os_str() == "-";
    if !is_stdout && !args.force && file.symlink_metadata().is_ok() {
        let text = anyhow!("failed to write {}: it is there already; --force writes over it", file.display());
        return Err(Coded::new(Exit::Usage, text).into());
    }
    let mut source = context.source.clone();
    source.set.extend(args.broker.map(|url| format!("broker.url={url}")));
    // What a file says that is to be written anew does not count.
    let (Reach { broker, .. }, values) = settings::reach(&Source { file: None, search: Vec::new(), ..source.clone() })?;
    let crew = init::ask(&broker).await.map_err(|error| exit::failed(exit_of(&error), &error))?;
    let wish = Wish { workers: &args.workers, edge: args.edge, host: &context.source.hostname };
    let draft = init::draft(&crew, &broker, &values, &wish, &prepare::user(context)).map_err(|error| {
        // Whoever is to get a task is not there, or not as it would have to be.
        let exit = match error {
            InitError::Nobody { .. } | InitError::Others { .. } | InitError::NoWay { .. } => Exit::Unfit,
        };
        exit::failed(exit, &error)
    })?;
    let text = init::text(&draft);
    // As a gate will read it, which has no flags.
    source.set.retain(|flag| flag.starts_with("broker.url="));
    let loaded = settings::load_text(&source, &file, &text).map_err(|problems| {
        anyhow::Error::from(problems).context("failed to make settings that hold of what workers say")
    })?;
    let found = init::intakes(&loaded.settings).await.map_err(|error| exit::failed(exit_of(&error), &error))?;
    let is_usual = SEARCH.iter().any(|usual| Path::new(usual) == file) || is_stdout;
    let option = if is_usual { String::new() } else { format!(" --config {}", file.display()) };
    let steps = init::steps(&draft, &option, &found);
    if is_stdout {
        out::text(&text)?;
        out::error(steps.trim_end());
    } else {
        write(&file, &text)?;
        let (checks, workers) = (loaded.settings.checks.len(), loaded.settings.workers.len());
        out::text(&format!("{}: written; checks {checks}, workers {workers}\n{steps}", file.display()))?;
    }
    Ok(Exit::Done)
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let written =
        folder.map_or(Ok(()), fs::create_dir_all).and_then(|()| durable::replace(file, text.as_bytes(), 0o644));
    written.with_context(|| format!("failed to write {}", file.display()))
}
