//! `worker-gate image record` and `image verify`: from `built` to `verified`.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Coded, Context, Exit, out, prepare};
use crate::{
    identity::Identity,
    image::{self, Manifest, published::List, verify::Verdict},
    model::Failure,
};

/// `image …`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Gather what the image is made of into the manifest (image.manifest), with the state built
    Record(RecordArgs),
    /// Try every rule, and promote the manifest from built to verified; 1 if a rule does not hold
    Verify(VerifyArgs),
}

/// `image record …`
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The tag of the image below, such as python:3.11-slim
    #[arg(long, value_name = "TAG")]
    base_image: String,
    /// As the user of this worker [default: of the first one]
    #[arg(long, value_name = "W")]
    worker: Option<String>,
}

/// `image verify …`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Look versions up in this file instead of asking the registries: a package, such as npm:@openai/codex, and its versions on
    /// each line
    #[arg(long, value_name = "LIST")]
    offline: Option<PathBuf>,
    /// As the user of this worker [default: of the first one]
    #[arg(long, value_name = "W")]
    worker: Option<String>,
    /// One JSON array of rules
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: &Context, command: ImageCommand) -> anyhow::Result<Exit> {
    match command {
        ImageCommand::Record(args) => record(context, &args).await,
        ImageCommand::Verify(args) => verify(context, &args).await,
    }
}

async fn record(context: &Context, args: &RecordArgs) -> anyhow::Result<Exit> {
    let (settings, identities) = prepare::prepare(context)?;
    let identity = identity(&identities, args.worker.as_deref())?;
    let runner = prepare::runner(context, &settings)?;
    let now = jiff::Timestamp::now();
    match image::record::record(&settings, identity, &runner, &args.base_image, now).await {
        Ok(manifest) => {
            write(&manifest, &settings.image.manifest)?;
            let Manifest { base_image, node_version, codex_cli_version, spec_kit_version, .. } = &manifest;
            out::text(&format!(
                "{}: built on {base_image}, with Node.js {node_version}, codex_cli {codex_cli_version} and spec_kit \
                 {spec_kit_version}\n",
                settings.image.manifest.display()
            ))?;
            Ok(Exit::Done)
        }
        Err(missing) => {
            let mut text = "nothing was recorded\n".to_owned();
            for Failure { detail, remedy } in missing {
                // To a string nothing fails.
                let _ = writeln!(text, "missing  {detail}\n  -> {remedy}");
            }
            out::text(&text)?;
            Ok(Exit::Unfit)
        }
    }
}

async fn verify(context: &Context, args: &VerifyArgs) -> anyhow::Result<Exit> {
    let (settings, identities) = prepare::prepare(context)?;
    let identity = identity(&identities, args.worker.as_deref())?;
    let runner = prepare::runner(context, &settings)?;
    let path = &settings.image.manifest;
    let list = match &args.offline {
        Some(file) => {
            let failed = |error| anyhow!("failed to read {} (--offline): {error}", file.display());
            Some(List::read(file).map_err(|error| Coded::new(Exit::Usage, failed(error)))?)
        }
        None => None,
    };
    let manifest = match Manifest::read(path) {
        Ok(manifest) => manifest,
        Err(error) => {
            let text = format!("{}: failed to {}", path.display(), crate::chain::chain(&error));
            let remedy = "worker-gate image record --base-image TAG, as a step of the image's build";
            if args.json {
                out::text(&format!(
                    "{}\n",
                    json!([{ "rule": "manifest", "holds": false, "detail": text, "remedy": remedy }])
                ))?;
            } else {
                out::text(&format!("broken  manifest: {text}\n  -> {remedy}\n"))?;
            }
            return Ok(Exit::Unfit);
        }
    };
    let now = jiff::Timestamp::now();
    let verdict = image::verify::verify(&manifest, &settings, identity, &runner, list.as_ref(), now).await;
    out::text(&if args.json { rules(&verdict) } else { table(&verdict) })?;
    let Some(verified) = &verdict.verified else { return Ok(Exit::Unfit) };
    write(verified, path)?;
    if !args.json {
        out::text(&format!("{}: verified\n", path.display()))?;
    }
    Ok(Exit::Done)
}

fn write(manifest: &Manifest, path: &std::path::Path) -> anyhow::Result<()> {
    let written = manifest.write(path);
    written.map_err(|error| anyhow::Error::from(error).context(format!("failed to write {}", path.display())))
}

fn identity<'a>(identities: &'a [Identity], worker: Option<&str>) -> anyhow::Result<&'a Identity> {
    let is_its =
        |identity: &&Identity| worker.is_none_or(|worker| identity.workers.iter().any(|name| name.as_str() == worker));
    identities.iter().find(is_its).ok_or_else(|| {
        let text = anyhow!("there is no worker {:?} in the settings", worker.unwrap_or_default());
        Coded::new(Exit::Usage, text).into()
    })
}

fn rules(verdict: &Verdict) -> String {
    let rules = verdict.rules.iter().map(|rule| match &rule.broken {
        None => json!({ "rule": rule.name, "holds": true }),
        Some(Failure { detail, remedy }) => {
            json!({ "rule": rule.name, "holds": false, "detail": detail, "remedy": remedy })
        }
    });
    format!("{}\n", rules.collect::<serde_json::Value>())
}

fn table(verdict: &Verdict) -> String {
    let mut text = String::new();
    for rule in &verdict.rules {
        // To a string nothing fails.
        let _ = match &rule.broken {
            None => writeln!(text, "holds   {}", rule.name),
            Some(Failure { detail, remedy }) => writeln!(text, "broken  {}: {detail}\n  -> {remedy}", rule.name),
        };
    }
    text
}
