//! The command line: what can be asked, what is answered where, and the exit code.
//!
//! Answers for people and programs go to standard output, through `out` only; logs and errors go to standard error.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use crate::settings::{self, Loaded, Place, Problem, Problems, Reach, Source};

mod ask;
pub mod audit;
mod check;
mod completions;
mod config;
mod doctor;
pub mod events;
pub mod exit;
mod fleet;
pub mod image;
mod init;
mod line;
mod log;
pub mod order;
mod out;
mod prepare;
pub mod profile;
pub mod rehome;
mod run;
pub mod status;

pub use exit::{Coded, Exit};
use order::What;

/// Longer than the ten seconds between two looks at a watched file.
const KEEP_THREADS: Duration = Duration::from_secs(30);

/// Admission control for Celery workers at the message broker.
#[derive(Debug, Parser)]
#[command(name = "worker-gate", version, propagate_version = false, arg_required_else_help = true)]
#[command(after_help = exit::HELP)]
pub struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    command: Command,
}

/// Where settings come from.
#[derive(Debug, Args)]
struct SettingsArgs {
    /// The settings file [default: /etc/worker-gate/worker-gate.toml, then ./worker-gate.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// One setting, such as broker.heartbeat=5s; text is written bare, all else as in TOML. Can be given often
    #[arg(long, value_name = "KEY=VALUE", global = true, action = clap::ArgAction::Append)]
    set: Vec<String>,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The daemon: checks, and opens and shuts the ways to its workers
    Run,
    /// Run every check once and print the report; 1 if a required one did not pass, or the config or the image is not as it must be
    Check {
        /// One JSON array of worker records
        #[arg(long)]
        json: bool,
    },
    /// The managed config
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Every worker of every gate on this broker: admission, edge, reason, age of evidence, versions; 1 if one is not fit
    Status(status::StatusArgs),
    /// Keep workers from work until they are released, or for a time
    #[command(after_help = order::HELP)]
    Hold(order::HoldArgs),
    /// End what an operator held; a quarantine whose cause stands goes on
    #[command(after_help = order::HELP)]
    Release(order::OrderArgs),
    /// Run the checks of workers now
    #[command(after_help = order::HELP)]
    Recheck(order::OrderArgs),
    /// Subscribe to the fanout exchange: print what comes, or hand it to a program or a webhook
    #[command(after_help = events::args::HELP)]
    Events(events::args::EventsArgs),
    /// Read the audit log
    Audit {
        /// Verify its hash chain instead; 1 if it is broken
        #[arg(long, conflicts_with = "worker")]
        verify: bool,
        /// Only entries of this worker
        #[arg(long, value_name = "W")]
        worker: Option<String>,
        /// Only the tasks that quarantined workers had already started or prefetched, one a line
        #[arg(long, conflicts_with = "verify")]
        exposed: bool,
    },
    /// Look for ways round the gate and for weak settings, and say how to mend each; 1 if one is serious
    #[command(after_help = doctor::HELP)]
    Doctor(DoctorArgs),
    /// Give what is held for a worker that is gone for good to another one, in order and counted; 1 if the worker is not gone,
    /// or something is left
    Rehome(rehome::RehomeArgs),
    /// The image manifest: record it when an image is built, and verify it before the image is tagged
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Write a first settings file, from what the broker and the workers that run say; 1 if no worker answers
    #[command(after_help = init::HELP)]
    Init(init::InitArgs),
    /// The settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// A script for your shell that completes worker-gate's commands
    Completions {
        /// Whose script
        shell: clap_complete::Shell,
    },
}

/// `doctor …`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// One JSON array of findings
    #[arg(long)]
    json: bool,
    /// Print the rights that workers, producers and the gate need, as commands to run, and look at nothing else
    #[arg(long, conflicts_with_all = ["json", "lanes"])]
    grants: bool,
    /// A lane that no settings name any more: whether something waits in it, or is held for it. Can be given often
    #[arg(long = "lane", value_name = "QUEUE")]
    lanes: Vec<String>,
}

/// `profile …`
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Its state, hashes and enforced keys
    Show(ShowArgs),
    /// What apply would change
    Diff(WorkerArgs),
    /// Merge the enforced keys, and keep every other byte
    Apply(WorkerArgs),
}

/// Which worker is meant.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Only the profile of this worker [default: of all]
    #[arg(long, value_name = "W")]
    pub worker: Option<String>,
}

/// What is shown, and how.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    worker: WorkerArgs,
    /// JSON
    #[arg(long)]
    json: bool,
}

/// `config …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum ConfigCommand {
    /// Every setting that holds, with the layer that it came from
    Show,
    /// Every problem at once; 78 if there is one
    Check,
}

/// What commands know of the process's surroundings; read once.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where settings come from; `env` is the whole environment.
    pub source: Source,
}

impl Context {
    /// Reads the surroundings.
    fn new(args: SettingsArgs, env: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Problems> {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let source = Source {
            file: args.config,
            search: settings::load::SEARCH.map(PathBuf::from).to_vec(),
            env: environment(env)?,
            set: args.set,
            hostname: host.to_string_lossy().into_owned(),
        };
        Ok(Self { source })
    }

    /// Reads the settings.
    ///
    /// # Errors
    /// Everything that is wrong with them; it ends the program with [`Exit::Settings`].
    pub fn settings(&self) -> Result<Loaded, Problems> {
        settings::load(&self.source)
    }

    /// Reads what leads to the gates, for a command that has no worker of its own; there need not be a settings file.
    ///
    /// # Errors
    /// As for [`Self::settings`].
    pub fn reach(&self) -> Result<Reach, Problems> {
        settings::reach(&self.source).map(|(reach, _)| reach)
    }
}

/// The environment as text. A setting that is none is a problem; of other variables the bad bytes are replaced.
fn environment(env: impl Iterator<Item = (OsString, OsString)>) -> Result<BTreeMap<String, String>, Problems> {
    let mut read = BTreeMap::new();
    for (name, value) in env {
        let name = name.to_string_lossy().into_owned();
        let value = match value.into_string() {
            Ok(value) => value,
            Err(_) if name.starts_with("WORKER_GATE__") || name == "CELERY_BROKER_URL" => {
                return Err(Problems::from(Problem {
                    place: Some(Place::Environment(name)),
                    key: String::new(),
                    what: "the value is not UTF-8".to_owned(),
                    remedy: "write it as UTF-8".to_owned(),
                }));
            }
            Err(value) => value.to_string_lossy().into_owned(),
        };
        read.insert(name, value);
    }
    Ok(read)
}

/// The program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(gathered(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // Whoever asked has gone if this fails; there is nobody left to tell.
            let _ = error.print();
            return exit.into();
        }
    };
    // A gate must not wait for whoever reads its log. If there is no thread for that it will not start, and say so.
    let lines = if matches!(cli.command, Command::Run) { log::Lines::start(std::io::stderr()).ok() } else { None };
    exit::report(answer(cli, lines.as_ref()), lines.as_ref()).into()
}

/// Moves `--config` and `--set` behind the subcommand. clap takes global options on both sides of it, and of an option
/// that stands on both sides forgets the first one without a word.
fn gathered(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let (mut kept, mut moved) = (Vec::new(), Vec::new());
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next_if(|argument| argument != "--") {
        let text = argument.to_string_lossy();
        if text == "--config" || text == "--set" {
            moved.push(argument);
            moved.extend(arguments.next_if(|value| value != "--"));
        } else if text.starts_with("--config=") || text.starts_with("--set=") {
            moved.push(argument);
        } else {
            kept.push(argument);
        }
    }
    kept.into_iter().chain(moved).chain(arguments).collect()
}

fn answer(cli: Cli, lines: Option<&log::Lines>) -> anyhow::Result<Exit> {
    let context = Context::new(cli.settings, std::env::vars_os())?;
    log::start(&context.source.env, lines)?;
    dispatch(cli.command, &context)
}

/// The one place that knows which command is whose.
fn dispatch(command: Command, context: &Context) -> anyhow::Result<Exit> {
    match command {
        Command::Run => {
            let runtime = runtime()?;
            let answer = runtime.block_on(run::run(context));
            // A file system or a name server that does not answer must not hold up a gate that has stopped.
            runtime.shutdown_background();
            answer
        }
        Command::Check { json } => runtime()?.block_on(check::check(context, json)),
        Command::Profile(command) => profile_command(context, &command),
        Command::Status(args) => runtime()?.block_on(status::status(context, &args)),
        Command::Hold(args) => runtime()?.block_on(order::hold(context, &args)),
        Command::Release(args) => runtime()?.block_on(order::order(context, What::Release, &args)),
        Command::Recheck(args) => runtime()?.block_on(order::order(context, What::Recheck, &args)),
        Command::Events(args) => {
            // Two threads: where the output is read slowly, this one waits, and the link to the broker lives on.
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            let answer = runtime.block_on(events_command(context, args));
            // A webhook that does not answer must not hold up the end.
            runtime.shutdown_background();
            answer
        }
        Command::Audit { verify, worker, exposed } => audit_command(context, verify, worker.as_deref(), exposed),
        Command::Doctor(args) if args.grants => doctor::grants(context),
        Command::Doctor(args) => runtime()?.block_on(doctor::doctor(context, &args)),
        Command::Rehome(args) => runtime()?.block_on(rehome::rehome(context, args)),
        Command::Image(command) => runtime()?.block_on(image::run(context, command)),
        Command::Init(args) => runtime()?.block_on(init::init(context, args)),
        Command::Config(command) => config::run(command, context),
        Command::Completions { shell } => completions::run(shell),
    }
}

/// One thread: what runs on it does little but wait, and between an edit and the shut of an edge every change of threads shows.
/// Whatever may block has a thread of its own, which is kept from one look at the files to the next.
fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_current_thread().thread_keep_alive(KEEP_THREADS).enable_all().build()?)
}

async fn events_command(context: &Context, args: events::args::EventsArgs) -> anyhow::Result<Exit> {
    let reach = context.reach()?;
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let following = async {
        let subscription = args.subscription(&context.source.env)?;
        events::events(&reach.broker, &reach.events.exchange, subscription, &mut stdout, &mut stderr).await
    };
    match following.await {
        Ok(()) => Ok(Exit::Done),
        Err(events::EventsError::Output(error)) => out::failed(error),
        Err(error) => {
            let exit =
                if error.is_usage() { Exit::Usage } else { run::broker_exit(error.retry(), error.is_permission()) };
            Err(exit::failed(exit, &error))
        }
    }
}

fn profile_command(context: &Context, command: &ProfileCommand) -> anyhow::Result<Exit> {
    let (settings, identities) = prepare::prepare(context)?;
    let Some(profile) = &settings.profile else {
        out::text("no profile: profile.path is empty in the settings\n")?;
        return Ok(Exit::Done);
    };
    let (ProfileCommand::Show(ShowArgs { worker: args, .. })
    | ProfileCommand::Diff(args)
    | ProfileCommand::Apply(args)) = command;
    let asked = profile::Command {
        identities: &identities,
        worker: args.worker.as_deref(),
        profile,
        state_dir: &settings.gate.state_dir,
    };
    let said = match command {
        ProfileCommand::Show(args) => profile::show(asked, args.json),
        ProfileCommand::Diff(_) => profile::diff(asked),
        ProfileCommand::Apply(_) => profile::apply(asked, jiff::Timestamp::now()),
    };
    out::text(&said.stdout)?;
    if !said.stderr.is_empty() {
        out::error(said.stderr.trim_end());
    }
    Ok(said.exit)
}

fn audit_command(context: &Context, verify: bool, worker: Option<&str>, exposed: bool) -> anyhow::Result<Exit> {
    let settings = context.settings()?.settings;
    let path = settings.gate.state_dir.join(crate::report::audit::FILE_NAME);
    let mut stdout = std::io::stdout();
    let outcome = if verify {
        audit::verify(&path, &mut stdout)
    } else if exposed {
        audit::exposed(&path, worker, &mut stdout).map(|()| true)
    } else {
        audit::list(&path, worker, &mut stdout).map(|()| true)
    };
    match outcome {
        Ok(true) => Ok(Exit::Done),
        Ok(false) => Ok(Exit::Unfit),
        Err(audit::AuditCommandError::Output(error)) => out::failed(error),
        Err(audit::AuditCommandError::Read(error)) => Err(exit::failed(audit::exit_of(&error), &error)),
    }
}
