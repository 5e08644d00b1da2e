//! Names with `*` and `?` in them, as shells write them: for many workers at once.

/// Whether a pattern means this name, as a whole. `*` stands for any characters, also for none, and `?` for exactly one; all
/// else for itself, as node names may have brackets and backslashes in them. Takes time in proportion to the product of both
/// lengths at the worst, whatever the pattern.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last star is, and how far into the text it reaches. Only the last one need ever be tried again: what came
    // before an earlier one was found as far to the left as it can be.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((at, reach)) = star else { return false };
                star = Some((at, reach + 1));
                p = at + 1;
                t = reach + 1;
            }
        }
    }
    pattern[p..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_means_whole_names() {
        for (pattern, text) in [
            ("codex-0@host-1", "codex-0@host-1"),
            ("codex-*", "codex-0@host-1"),
            ("codex-*", "codex-"),
            ("*@host-?", "codex-0@host-1"),
            ("*", ""),
            ("**", "x"),
            ("*a*b", "xaxbab"),
            ("a[0]\\*", "a[0]\\x"),
            ("?", "ü"),
            ("", ""),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("codex", "codex-0"),
            ("odex-0", "codex-0"),
            ("codex-?", "codex-"),
            ("codex-?", "codex-10"),
            ("*b", "abc"),
            ("a*b*c", "acb"),
            ("", "x"),
            ("CODEX-0", "codex-0"),
            ("[c]odex", "codex"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_more_time_than_both_lengths_allow() {
        let started = std::time::Instant::now();
        assert!(!matches(&"*a".repeat(500), &"a".repeat(499)));
        assert!(!matches(&format!("{}b", "*a".repeat(250)), &"a".repeat(4000)));
        assert!(started.elapsed() < std::time::Duration::from_secs(10));
    }

    /// The definition, without any cleverness.
    fn plainly(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), None) => plainly(rest, text),
            (Some(('*', rest)), Some((_, after))) => plainly(rest, text) || plainly(pattern, after),
            (Some((wanted, rest)), Some((char, after))) => (*wanted == '?' || wanted == char) && plainly(rest, after),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn it_is_what_it_is_by_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), plainly(&chars(&pattern), &chars(&text)));
        }
    }
}
