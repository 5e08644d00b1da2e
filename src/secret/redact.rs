//! Text with secrets taken out.

use std::{borrow::Cow, collections::BTreeSet, sync::LazyLock};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use regex::{Captures, Regex};

use super::{Secret, search::Search};

/// What stands where a secret stood.
const HIDDEN: &str = "<hidden>";

/// Shorter values would black out half of every sentence, and are no secrets worth the name.
const SHORTEST: usize = 4;

/// What a URL may hold as it is (RFC 3986, section 2.3); the two sets are how most and the most careful encoders do it.
const URL_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Who may fill a file with values to look for gets no more of the gate's memory than twenty times this, in bytes. A config
/// has some kilobytes of text, which stand here in up to three forms.
const MOST: usize = 1 << 20;

/// Takes secrets out of text that came from outside: the values that the gate knows, and what looks like one.
///
/// Time is linear in the text, whatever the text is: commands choose it, and a check must not be able to stall the gate. No
/// text becomes longer than a small multiple of itself either.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    /// In every form that is looked for.
    known: BTreeSet<Secret>,
    search: Search,
    /// There was too much to look for.
    hides_all: bool,
}

impl Redactor {
    /// A redactor that knows these values besides the shapes it always knows. Values shorter than four bytes are not
    /// looked for.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        Self::knowing(forms(secrets), false)
    }

    /// One that knows these values as well, which somebody else has chosen than who wrote the settings. Where they are more
    /// than a mebibyte it hides every text as a whole.
    #[must_use]
    pub fn and<'a>(&self, secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut more = forms(secrets);
        if more.iter().map(|form| form.reveal().len()).sum::<usize>() > MOST {
            return Self { hides_all: true, ..self.clone() };
        }
        more.extend(self.known.iter().cloned());
        Self::knowing(more, self.hides_all)
    }

    fn knowing(known: BTreeSet<Secret>, hides_all: bool) -> Self {
        let search = Search::new(known.iter().map(Secret::reveal));
        Self { known, search, hides_all }
    }

    /// The text without secrets, ANSI escapes and control characters. Line breaks stay (a carriage return becomes one),
    /// tabs become blanks.
    pub fn redact(&self, text: &str) -> String {
        // Escapes go first: a colour in the middle of a key would hide it from what follows.
        let text = plain(text);
        if self.hides_all && !text.trim().is_empty() {
            return HIDDEN.to_owned();
        }
        let mut text = self.without_known(text);
        for shape in SHAPES.iter() {
            if let Cow::Owned(without) = shape.replace_all(&text, keep_lead) {
                text = without;
            }
        }
        text
    }

    /// Each word of a command without secrets, also where only the word before it (`--token`) tells that it is one.
    pub fn redact_words(&self, words: &[String]) -> Vec<String> {
        let alone: Vec<String> = words.iter().map(|word| self.redact(word)).collect();
        let mut shown = alone.clone();
        for (at, both) in words.windows(2).enumerate() {
            if self.redact(&both.join(" ")) != format!("{} {}", alone[at], alone[at + 1]) {
                HIDDEN.clone_into(&mut shown[at + 1]);
            }
        }
        shown
    }

    /// All of them at once: one after the other, the mark of the first would be searched for the second.
    fn without_known(&self, text: String) -> String {
        let covered = self.search.covered(&text);
        if covered.is_empty() {
            return text;
        }
        let mut without = String::with_capacity(text.len());
        let mut shown = 0;
        for part in covered {
            without.push_str(&text[shown..part.start]);
            without.push_str(HIDDEN);
            shown = part.end;
        }
        without.push_str(&text[shown..]);
        without
    }
}

/// In which forms these values are looked for.
fn forms<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> BTreeSet<Secret> {
    let mut forms = BTreeSet::new();
    let mut add = |form: String| {
        if form.len() >= SHORTEST {
            forms.insert(Secret::new(form));
        }
    };
    for secret in secrets {
        let value = secret.reveal();
        // What is searched is plain as well.
        let shown = plain(value);
        add(shown.trim().to_owned());
        // Tools print a key file line by line, and a URL with its password percent-encoded.
        for line in shown.lines() {
            add(line.trim().to_owned());
        }
        for set in [URL_UNRESERVED, NON_ALPHANUMERIC] {
            add(utf8_percent_encode(value, set).to_string());
        }
        add(shown);
    }
    forms
}

/// What a pattern captured as `lead` tells what the secret was for; it stays.
fn keep_lead(found: &Captures<'_>) -> String {
    let part = |name| found.name(name).map_or("", |part| part.as_str());
    format!("{}{HIDDEN}{}", part("lead"), part("tail"))
}

/// Only ASCII classes, spelled out: the crate is built without Unicode tables.
const PATTERNS: &[&str] = &[
    // PEM, also one that was cut off.
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
    // The password of a URL, or its whole user part where there is no colon: forges take a token there.
    r#"(?<lead>[A-Za-z][A-Za-z0-9+.-]*://[^ \t\n/?#@:"'<>]*:)[^ \t\n/?#"'<>]*(?<tail>@)"#,
    r#"(?<lead>[A-Za-z][A-Za-z0-9+.-]*://)[^ \t\n/?#:"'<>]+(?<tail>@)"#,
    // Authorization: Basic ..., Bearer ...
    r"(?<lead>(?i-u:\bbearer|\bbasic)[ \t]+)[A-Za-z0-9._~+/=*-]{8,}",
    // JSON Web Tokens.
    r"(?-u:\b)eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?",
    // OpenAI and Anthropic keys, also masked ones: their first and last letters are nobody's business either.
    r"(?-u:\b)sk-[A-Za-z0-9_*.\u{2026}\u{2022}-]{6,}",
    // GitHub, GitLab, npm, PyPI, AWS, Slack, Google.
    r"(?-u:\b)(?:gh[a-z]_|github_pat_|glpat-|npm_|pypi-)[A-Za-z0-9_*-]{6,}",
    r"(?-u:\b)(?:AKIA|ASIA)[A-Z0-9]{8,}",
    r"(?-u:\b)xox[a-z]-[A-Za-z0-9-]{6,}",
    r"(?-u:\b)AIza[A-Za-z0-9_-]{20,}",
    // NAME_KEY=value, "token": "value", --password value.
    r#"(?<lead>(?i-u:key|token|password|passwd|pwd|secret|credentials?)(?:_[A-Za-z0-9_]*)?["']?[ \t]*=[ \t]*)(?:"[^"\n]*"|'[^'\n]*'|[^ \t\n&;]+)"#,
    r#"(?<lead>(?i-u:key|token|password|passwd|pwd|secret|credentials?)(?:_[A-Za-z0-9_]*)?["']?[ \t]*:[ \t]*)(?:"[^"\n]*"?|'[^'\n]*'?)"#,
    r"(?<lead>(?i-u:password|passwd|passphrase|passcode)[ \t]*:[ \t]*)[^ \t\n]+",
    r"(?<lead>--?(?:[A-Za-z0-9]+-)*(?i-u:key|token|password|passwd|secret)[ \t]+)[^ \t\n-][^ \t\n]*",
];

#[expect(clippy::expect_used, reason = "the patterns are constants, and a test compiles each of them")]
static SHAPES: LazyLock<Vec<Regex>> =
    LazyLock::new(|| PATTERNS.iter().map(|pattern| Regex::new(pattern).expect("a valid pattern")).collect());

/// The text as a plain terminal would show it: no escapes, no control characters but line breaks, and none of the
/// invisible characters that turn a line's direction or hide parts of it.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_escape(&mut chars),
            '\u{9b}' => skip_until(&mut chars, |c| ('@'..='~').contains(&c)),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' => plain.push('\n'),
            '\t' => plain.push(' '),
            c if c.is_control() || is_invisible(c) => {}
            c => plain.push(c),
        }
    }
    plain
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// ECMA-48: `ESC [` runs to a final byte, `ESC ] P X ^ _` to a string terminator, all else is one character more.
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.next_if(|c| !c.is_control()) {
        Some('[') => skip_until(chars, |c| ('@'..='~').contains(&c)),
        Some(']' | 'P' | 'X' | '^' | '_') => skip_string(chars),
        Some('(' | ')' | '*' | '+' | '#' | '%' | ' ') => drop(chars.next_if(|c| !c.is_control())),
        Some(_) | None => {}
    }
}

/// A sequence that is never finished ends with its line, so that it cannot swallow the rest of the text.
fn skip_until(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, last: impl Fn(char) -> bool) {
    while let Some(c) = chars.next_if(|&c| c != '\n') {
        if last(c) {
            return;
        }
    }
}

fn skip_string(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(c) = chars.next_if(|&c| c != '\n') {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                chars.next_if(|&c| c == '\\');
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(SHAPES.len(), PATTERNS.len());
    }

    #[test]
    fn what_looks_like_a_secret_is_hidden_and_the_rest_stays() {
        let redactor = Redactor::default();
        for (text, expected) in [
            ("Logged in using an API key - sk-proj-ab12cd34ef", "Logged in using an API key - <hidden>"),
            ("key sk-abc***xyz is masked", "key <hidden> is masked"),
            ("key sk-proj-***WXYZ", "key <hidden>"),
            ("push with ghp_abcdefABCDEF0123456789", "push with <hidden>"),
            ("gho_abcdef0123 github_pat_11AA_bbcc22", "<hidden> <hidden>"),
            ("Authorization: Bearer abc.def-123456", "Authorization: Bearer <hidden>"),
            ("authorization: basic dXNlcjpwYXNz", "authorization: basic <hidden>"),
            ("amqp://guest:gu@est@host:5672//", "amqp://guest:<hidden>@host:5672//"),
            ("redis://:pw@h/0 and https://tok@forge/x", "redis://:<hidden>@h/0 and https://<hidden>@forge/x"),
            ("https://forge/x?mail=a@b", "https://forge/x?mail=a@b"),
            ("OPENAI_API_KEY=abc TZ=UTC", "OPENAI_API_KEY=<hidden> TZ=UTC"),
            ("db_password = \"a b c\" # note", "db_password = <hidden> # note"),
            ("TOKEN='x y' SECRET_ID=1&n=2", "TOKEN=<hidden> SECRET_ID=<hidden>&n=2"),
            (r#"{"api_key": "a b", "n": 1}"#, r#"{"api_key": <hidden>, "n": 1}"#),
            ("tool --token abc --verbose", "tool --token <hidden> --verbose"),
            ("Password: hunter2", "Password: <hidden>"),
            ("jwt eyJhbGciOi.eyJzdWIi.c2ln.", "jwt <hidden>."),
            ("AKIAIOSFODNN7EXAMPLE xoxb-1234-abcdef", "<hidden> <hidden>"),
            ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nok", "<hidden>\nok"),
            ("-----BEGIN PRIVATE KEY-----\nabc\nde", "<hidden>"),
            // Nothing secret here.
            ("task-runner disk-usage risk-assessment", "task-runner disk-usage risk-assessment"),
            ("unexpected token: end of file", "unexpected token: end of file"),
            ("codex-cli 0.169.0", "codex-cli 0.169.0"),
            ("Not logged in", "Not logged in"),
        ] {
            assert_eq!(redactor.redact(text), expected, "{text}");
            assert_eq!(redactor.redact(expected), expected, "a second pass changes nothing");
        }
    }

    #[test]
    fn known_values_are_hidden_in_every_form_the_gate_knows_of() {
        let secrets =
            [Secret::new("pa/ss word"), Secret::new("pa/ss"), Secret::new("abc"), Secret::new("line-one\nline-two\n")];
        let redactor = Redactor::new(&secrets);
        assert_eq!(redactor.redact("it is pa/ss word!"), "it is <hidden>!");
        assert_eq!(redactor.redact("at pa%2Fss%20word! or pa%2Fss"), "at <hidden>! or <hidden>");
        assert_eq!(redactor.redact("line-one%0Aline-two%0A line%2Done%0Aline%2Dtwo%0A"), "<hidden> <hidden>");
        assert_eq!(redactor.redact("a: line-two, b: line-one"), "a: <hidden>, b: <hidden>");
        assert_eq!(redactor.redact("abc is too short to be looked for"), "abc is too short to be looked for");
        assert_eq!(redactor.redact("p\u{1b}[31ma/ss\u{200b} word"), "<hidden>", "escapes do not break it up");
        assert!(!format!("{redactor:?}").contains("pa/ss"));
    }

    #[test]
    fn of_secrets_that_overlap_or_touch_nothing_is_left_and_what_hides_one_is_not_searched_for_the_next() {
        let redactor =
            |secrets: &[&str]| Redactor::new(&secrets.iter().map(|text| Secret::new(*text)).collect::<Vec<_>>());
        assert_eq!(redactor(&["abcde", "defgh", "ghijk"]).redact("x abcdefghijk y"), "x <hidden> y");
        assert_eq!(redactor(&["abcd", "efgh"]).redact("abcdefgh abcd"), "<hidden> <hidden>");
        assert_eq!(redactor(&["value", "hidden", "<hid"]).redact("value hidden <hid"), "<hidden> <hidden> <hidden>");
        assert_eq!(redactor(&["a\tb c"]).redact("a\tb c"), "<hidden>");
    }

    #[test]
    fn a_file_full_of_values_costs_neither_time_nor_memory() {
        // Marks of marks of marks: this once made gigabytes of a few bytes.
        let values: Vec<_> = ["<hid", "dden", "en>i", "den>", "hidd", "idde", "zzzz"].map(Secret::new).into();
        let redactor = Redactor::default().and(&values);
        assert!(redactor.redact(&"zzzz <hidden>".repeat(100)).len() <= 100 * "<hidden> <hidden>".len());
        let n = 20_000;
        let many: Vec<_> = (0..n).map(|n| Secret::new(format!("v{n:05}"))).collect();
        let nested: Vec<_> = (4..700).map(|n| Secret::new("a".repeat(n))).collect();
        let text = format!("{} {}", "v00000 v99999 ".repeat(2_000), "a".repeat(n));
        let started = Instant::now();
        let redacted = Redactor::default().and(&many).and(&nested).redact(&text);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(redacted, format!("{} <hidden>", "<hidden> v99999 ".repeat(2_000)));
        // More than that is not looked for, and nothing is shown.
        let redactor = redactor.and(&[Secret::new("x".repeat(MOST + 1))]);
        assert_eq!((redactor.redact("abc\n").as_str(), redactor.redact(" \n").as_str()), ("<hidden>", " \n"));
    }

    #[test]
    fn escapes_and_control_characters_are_removed() {
        let redactor = Redactor::default();
        for (text, expected) in [
            ("\u{1b}[1;31mred\u{1b}[0m \u{1b}(Bplain", "red plain"),
            ("\u{1b}]0;title\u{7}text\u{1b}]8;;http://x\u{1b}\\link", "textlink"),
            ("10%\r20%\r\ndone\u{8}\u{0}\tx", "10%\n20%\ndone x"),
            ("a\u{202e}b\u{feff}c\u{2028}d", "abc\nd"),
            ("\u{1b}]never ends\nnext line", "\nnext line"),
            ("\u{1b}", ""),
            ("grüße 漢字", "grüße 漢字"),
        ] {
            assert_eq!(redactor.redact(text), expected, "{text:?}");
        }
    }

    #[test]
    fn hostile_text_takes_no_longer_than_its_length_explains() {
        let redactor = Redactor::new(&[Secret::new("aaaaaaab")]);
        let n = 128 * 1024;
        for unit in [
            "a",
            "key=",
            "key='",
            "key_",
            "http://",
            "a:@",
            "-----BEGIN PRIVATE KEY-----",
            "eyJaaaa.",
            "\u{1b}[",
            "\u{1b}]",
            "key: \"",
            "bearer ",
            "--a-",
        ] {
            let text = unit.repeat(n / unit.len());
            let started = Instant::now();
            drop(redactor.redact(&text));
            // Unoptimised, the slowest of these takes some 0.1 s; what is quadratic takes minutes.
            assert!(started.elapsed() < Duration::from_secs(5), "{unit:?} took {:?}", started.elapsed());
        }
    }
}
