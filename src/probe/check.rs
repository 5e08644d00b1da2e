//! Runs one check: its commands in turn until one fails, and the version rule.

use std::{borrow::Cow, path::Path, sync::Arc, time::Duration};

use nix::unistd::User;
use semver::Version;
use tokio::task::spawn_blocking;

use super::{
    command::{Ended, Runner},
    version,
};
use crate::{
    brief::beginning,
    identity::Identity,
    model::{CheckResult, CheckStatus, Failure, Outcome},
    secret::{Redactor, Secret},
    settings::Check,
};

/// Of what a failing command printed, this many characters from the end go into the message.
const SHOWN: usize = 500;

/// Of a command's words, so many bytes go into the message.
const TYPED: usize = 400;

/// What sudo looks up programs in when its sudoers says nothing else.
const SUDO_PATH: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Reads what a command may quote, on a thread where it may block.
pub(crate) type Quoted = Arc<dyn Fn() -> Vec<Secret> + Send + Sync>;

/// Runs the check's commands as the identity. Bounded: each command by the check's timeout and some seconds for ending
/// it. Does not wait for its turn; that is the caller's business.
///
/// `quoted` is what a command that fails may quote of the identity's own files, and nobody else is to read.
pub(crate) async fn run(check: &Check, identity: &Identity, runner: &Runner, quoted: Option<&Quoted>) -> CheckResult {
    let mut result = CheckResult {
        status: CheckStatus::Passed,
        outcome: None,
        duration: Duration::ZERO,
        version: None,
        fingerprint: None,
        message: None,
    };
    for (index, argv) in check.run.iter().enumerate() {
        let ended = runner.run(identity, argv, check.timeout).await;
        result.duration += ended.duration;
        let rule = check.version.as_ref().filter(|rule| rule.command == index);
        let found = rule.and_then(|_| find_version(&ended));
        // What follows the number may be anything.
        let shown = found.as_ref().map(|found| runner.redactor().redact(&found.to_string()));
        result.version = shown.or(result.version);

        let passed = ended.outcome == Outcome::ExitCode(0) && (rule.is_none() || found.is_some());
        let redactor = if passed { Cow::Borrowed(runner.redactor()) } else { Cow::Owned(wary(runner, quoted).await) };
        let says = Says { argv, ended: &ended, redactor: &redactor, own: runner.redactor() };
        let problem = if ended.outcome == Outcome::ExitCode(0) {
            rule.and_then(|rule| {
                if let Some(found) = &found {
                    let told = version::unmet(found, &rule.require)?;
                    return Some((says.own.redact(&told.0), says.own.redact(&told.1)));
                }
                let detail = format!("printed no version, and {} is required{}", rule.require, says.printed());
                Some((detail, says.by_hand(identity, runner)))
            })
        } else {
            let known = ended.remedy.as_ref().map(|remedy| says.own.redact(remedy));
            let remedy = known.unwrap_or_else(|| says.by_hand(identity, runner));
            Some((format!("{}{}", says.own.redact(&ended.detail), says.printed()), remedy))
        };
        if let Some((detail, remedy)) = problem {
            let [detail, remedy] = [detail, remedy].map(|text| single_line(&text));
            result.status = CheckStatus::Failed;
            result.message = Some(Failure { detail: format!("`{}` {detail}", says.typed()), remedy });
        }
        result.outcome = Some(ended.outcome);
        if result.message.is_some() {
            break;
        }
    }
    result
}

/// A redactor that also knows what the command may quote; made where it may take its time.
async fn wary(runner: &Runner, quoted: Option<&Quoted>) -> Redactor {
    let Some(quoted) = quoted.cloned() else { return runner.redactor().clone() };
    let known = runner.clone();
    match spawn_blocking(move || known.redactor().and(&quoted())).await {
        Ok(redactor) => redactor,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is being shut down.
        Err(_) => runner.redactor().clone(),
    }
}

/// On stdout or, if there is none, on stderr.
fn find_version(ended: &Ended) -> Option<Version> {
    version::find(&format!("{}\n{}", ended.stdout.text(), ended.stderr.text()))
}

/// What is told of a command that has ended, without secrets.
struct Says<'a> {
    argv: &'a [String],
    ended: &'a Ended,
    /// For what it printed.
    redactor: &'a Redactor,
    /// For all else, which is from the settings and the system. It may stand in a file of the worker's as well, and is no
    /// secret for that.
    own: &'a Redactor,
}

impl Says<'_> {
    /// The end of what the command printed, as the rest of a sentence: its stdout, then its stderr, since either may hold
    /// the cause. Empty if it printed nothing.
    fn printed(&self) -> String {
        let ended = self.ended;
        // Redacted first and shortened then: half a secret has no shape to know it by.
        let text = self.redactor.redact(&format!("{}\n{}", ended.stdout.text(), ended.stderr.text()));
        let mut shown = String::new();
        for line in text.lines().rev().map(single_line).filter(|line| !line.is_empty()) {
            if shown.is_empty() {
                shown = last_chars(&line, SHOWN);
            } else if shown.chars().count() + line.chars().count() + 3 <= SHOWN {
                shown = format!("{line} | {shown}");
            } else {
                break;
            }
        }
        let total = ended.stdout.total + ended.stderr.total;
        let is_cut = ended.stdout.is_cut() || ended.stderr.is_cut();
        match (shown.is_empty(), is_cut) {
            (true, _) => String::new(),
            (false, false) => format!(": {shown}"),
            (false, true) => format!(" and printed {total} bytes, of which the beginning was kept: {shown}"),
        }
    }

    /// The words as one would type them in a shell, not endless.
    fn typed(&self) -> String {
        let words: Vec<String> = self.own.redact_words(self.argv).iter().map(|word| quoted(word)).collect();
        let typed = single_line(&self.own.redact(&words.join(" ")));
        let shown = beginning(&typed, TYPED);
        if shown.len() < typed.len() { format!("{shown}\u{2026}") } else { typed }
    }

    /// How to see the failure for oneself: the same command as the same user with the same home and PATH.
    fn by_hand(&self, identity: &Identity, runner: &Runner) -> String {
        let login_home = User::from_uid(identity.uid).ok().flatten().map(|user| user.dir);
        let is_usual_folder = self
            .ended
            .program
            .as_deref()
            .and_then(Path::parent)
            .is_none_or(|folder| SUDO_PATH.iter().any(|usual| folder == Path::new(usual)));
        let mut words = Vec::new();
        if !runner.is_own_user(identity) {
            words.extend(["sudo".to_owned(), "-u".to_owned(), quoted(&identity.user), "-H".to_owned()]);
        }
        let mut variables = Vec::new();
        if login_home.as_ref() != Some(&identity.home) {
            variables.push(quoted(&format!("HOME={}", identity.home.display())));
        }
        if !is_usual_folder {
            variables.push(quoted(&format!("PATH={}", identity.path)));
        }
        if !variables.is_empty() {
            words.push("env".to_owned());
            words.append(&mut variables);
        }
        // Redacted with the quotes round it, the last word would take them along.
        words = words.iter().map(|word| self.own.redact(word)).collect();
        words.push(self.typed());
        let names: Vec<&str> = identity.env.keys().map(String::as_str).collect();
        let with =
            if names.is_empty() { String::new() } else { format!(", with {} as in workers.env,", names.join(", ")) };
        format!("run `{}`{with} and mend what it says", words.join(" "))
    }
}

fn last_chars(text: &str, limit: usize) -> String {
    let too_many = text.chars().count().saturating_sub(limit);
    let tail: String = text.chars().skip(too_many).collect();
    if too_many == 0 { tail } else { format!("\u{2026}{tail}") }
}

/// Lines joined, blanks collapsed.
fn single_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./~-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests;
