//! The man pages and the shell completions: they are the command line's own, and work where they are installed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::CommandFactory;
use clap_mangen::Man;
use worker_gate::cli::Cli;

use crate::support::{
    gate::GATE,
    process::{self, run},
    scratch::Scratch,
};

/// What an installation has below its prefix in `share`.
pub(crate) const SHARE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/wheel/data/share");
/// Set, it has the files written instead of compared.
const RENEW: &str = "WORKER_GATE_RENEW";

/// The places in which the shells look by themselves.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/worker-gate"),
    ("zsh", "zsh/site-functions/_worker-gate"),
    ("fish", "fish/vendor_completions.d/worker-gate.fish"),
];

/// Every file with what it has to hold, by its path below `share`.
fn made() -> BTreeMap<PathBuf, String> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut made = BTreeMap::new();
    add_pages(&command, &mut made);
    for (shell, file) in COMPLETIONS {
        let mut command = Command::new(GATE);
        command.args(["completions", shell]);
        made.insert(PathBuf::from(file), run(command));
    }
    made
}

/// The page of this command and those of the commands below it.
fn add_pages(command: &clap::Command, made: &mut BTreeMap<PathBuf, String>) {
    let page =
        Man::new(command.clone()).source(concat!("worker-gate ", env!("CARGO_PKG_VERSION"))).manual("worker-gate");
    let mut bytes = Vec::new();
    page.render(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    // The generator leaves the empty date out, so that the next word would stand in its place; it asks for a blank line in a way
    // that readers warn of; and its heading for what follows the options says nothing.
    let text =
        text.replacen(" 1  \"", " 1 \"\" \"", 1).replace(".br\n\n.br\n", ".sp\n").replace(".SH EXTRA", ".SH NOTES");
    made.insert(Path::new("man/man1").join(page.get_filename()), text);
    command.get_subcommands().for_each(|command| add_pages(command, made));
}

/// The same of what is there.
fn there() -> BTreeMap<PathBuf, String> {
    fn add(dir: &Path, there: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(&path, there);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                there.insert(path.strip_prefix(SHARE).unwrap().to_owned(), text);
            }
        }
    }
    let mut there = BTreeMap::new();
    add(Path::new(SHARE), &mut there);
    there
}

#[test]
fn man_pages_and_completions_are_renewed_when_the_command_line_changes() {
    let made = made();
    if std::env::var_os(RENEW).is_some() {
        let _ = fs::remove_dir_all(SHARE);
        for (file, text) in &made {
            let path = Path::new(SHARE).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    let there = there();
    let files = made.keys().chain(there.keys());
    let mut stale: Vec<_> = files.filter(|file| made.get(*file) != there.get(*file)).collect();
    stale.sort();
    stale.dedup();
    assert!(stale.is_empty(), "stale in {SHARE}: {stale:?}\nrenew them with: {RENEW}=1 scripts/test --test it renewed");
    assert!(made.contains_key(Path::new("man/man1/worker-gate-profile-apply.1")), "{:?}", made.keys());
}

#[test]
fn the_man_pages_have_nothing_that_their_readers_warn_of() {
    let pages = Path::new(SHARE).join("man/man1");
    let files: Vec<_> = fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 20, "{files:?}");
    // A page that is made from the command line has no date of its own, and mandoc misses it.
    let lint = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(&files).output().unwrap();
    let said = String::from_utf8(lint.stdout).unwrap();
    let warnings: Vec<_> = said.lines().filter(|line| !line.contains("missing date")).collect();
    assert!(warnings.is_empty() && lint.stderr.is_empty(), "{warnings:#?}");
    for file in &files {
        let mut man = Command::new("man");
        let output = man.args(["--warnings", "-E", "UTF-8", "-l"]).arg(file).env("MANWIDTH", "100").output().unwrap();
        let page = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{file:?}: {:?}", output.stderr);
        assert!(page.contains("SYNOPSIS") && page.contains("--config"), "{page}");
    }
}

/// Runs a text in a shell that has read nothing of its user's.
#[track_caller]
fn shell(shell: &[&str], text: &str) -> Vec<String> {
    let home = Scratch::new("home");
    let mut command = process::command(shell[0]);
    command.args(&shell[1..]).arg(text).env("HOME", home.path()).env("SHARE", SHARE).env("TERM", "dumb");
    run(command).lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    // As bash does it on TAB: the function that is registered for the command gets the word and the one before it.
    let complete = |words: &str| {
        let text = format!(
            "set -eu; . \"$SHARE/bash-completion/completions/worker-gate\"\n\
             how=($(complete -p worker-gate)); [ \"${{how[-1]}}\" = worker-gate ]\n\
             for ((n = 0; n < ${{#how[@]}}; n++)); do [ \"${{how[n]}}\" != -F ] || by=${{how[n + 1]}}; done\n\
             COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()\n\
             \"$by\" worker-gate \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        shell(&["bash", "--norc", "-c"], &text)
    };
    assert_eq!(complete("worker-gate sta"), ["status"]);
    assert_eq!(complete("worker-gate profile a"), ["apply"]);
    assert_eq!(complete("worker-gate status --qu"), ["--quarantined"]);
}

#[test]
fn fish_completes_commands_and_options() {
    let complete = |line: &str| {
        let text = format!("source $SHARE/fish/vendor_completions.d/worker-gate.fish; complete -C '{line}'");
        let lines = shell(&["fish", "--no-config", "-c"], &text);
        lines.iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(complete("worker-gate sta"), ["status"]);
    assert_eq!(complete("worker-gate profile a"), ["apply"]);
    assert_eq!(complete("worker-gate status --qu"), ["--quarantined"]);
}

#[test]
fn zsh_completes_commands_and_options() {
    // zsh completes only in its line editor, which wants a terminal: zpty is one. The editor listens when its prompt is there.
    let complete = |line: &str| {
        let text = format!(
            "zmodload zsh/zpty; zpty editor zsh -f -i\n\
             start='fpath=($SHARE/zsh/site-functions $fpath); autoload -U compinit; compinit -u -D'\n\
             zpty -w editor \"$start; PS1=rea''dy\"\n\
             zpty -r editor said '*ready*'\n\
             zpty -w -n editor $'{line}\\t'; zpty -w -n editor $'\\x01: <\\x05>\\n'\n\
             zpty -r editor said '*<*>*'; print -r -- $said; zpty -d editor"
        );
        shell(&["zsh", "-f", "-c"], &text).join("\n")
    };
    for (typed, completed) in [
        ("worker-gate sta", "worker-gate status"),
        ("worker-gate profile a", "worker-gate profile apply"),
        ("worker-gate status --qu", "worker-gate status --quarantined"),
    ] {
        let said = complete(typed);
        assert!(said.contains(completed), "{said:?}");
    }
}
