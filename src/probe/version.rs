//! Reads a version from what a tool prints, and compares it.

use std::sync::LazyLock;

use regex::Regex;
use semver::{Prerelease, Version, VersionReq};

/// `1.2`, `v1.2.3`, `1.2.3-rc.1+build`, and Python's `1.2.3rc1` and `1.2.3.dev4`. A third number may be missing, as in
/// `git version 2.39`, and a fourth one is not looked at. It does not begin in the middle of a name or of a number.
const PATTERN: &str = r"(?x)
    (?:\A|[^0-9A-Za-z_.])
    v?([0-9]+)\.([0-9]+)(?:\.([0-9]+))?(?:\.[0-9]+)*
    (?:
        -([0-9A-Za-z.-]+)
        | ([A-Za-z][0-9A-Za-z.]*)
        | [._]((?i-u:(?:dev|rc|alpha|beta|preview|pre)(?:[0-9]+|\b)|[abc][0-9]+)[0-9A-Za-z.]*)
    )?";

#[expect(clippy::expect_used, reason = "the pattern is a constant, and every test here compiles it")]
static TOKEN: LazyLock<Regex> = LazyLock::new(|| Regex::new(PATTERN).expect("a valid pattern"));

/// The first version in the text, filled up to three numbers; `None` if there is none, or if it cannot be understood: what
/// comes after it is the version of something else.
pub(crate) fn find(text: &str) -> Option<Version> {
    let found = TOKEN.captures(text)?;
    let number = |index| found.get(index).map_or(Some(0), |digits| digits.as_str().parse().ok());
    let suffix = (4..=6).find_map(|index| found.get(index)).map_or("", |suffix| suffix.as_str());
    let mut version = Version::new(number(1)?, number(2)?, number(3)?);
    // The full stop of a sentence is not part of it.
    version.pre = Prerelease::new(suffix.trim_end_matches(['.', '-'])).ok()?;
    Some(version)
}

/// Why a version is not allowed, and what to do; `None` if it is.
pub(crate) fn unmet(found: &Version, required: &VersionReq) -> Option<(String, String)> {
    if required.matches(found) {
        return None;
    }
    let detail = format!("is version {found}, and {required} is required");
    let release = Version::new(found.major, found.minor, found.patch);
    if !found.pre.is_empty() && required.matches(&release) {
        let detail = format!("{detail}: a pre-release meets only a rule that names a pre-release of the same version");
        return Some((detail, format!("install {release} or another release, or set require = \">={found}\"")));
    }
    Some((detail, format!("install a version that meets {required}, or change the check's version.require")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_version_is_read_in_the_ways_tools_write_it() {
        for (text, expected) in [
            ("codex-cli 0.169.0\n", Some("0.169.0")),
            ("v18.19.1", Some("18.19.1")),
            ("git version 2.39", Some("2.39.0")),
            ("specify 1.2.3.", Some("1.2.3")),
            ("celery 5.3.0rc1 (emerald-rush)", Some("5.3.0-rc1")),
            ("codex-cli 0.170.0-alpha.3", Some("0.170.0-alpha.3")),
            ("tool 1.2.3-beta.1+build.5", Some("1.2.3-beta.1")),
            ("OpenSSL 3.0.15 3 Sep 2024", Some("3.0.15")),
            ("Version 2024.01.05", Some("2024.1.5")),
            ("specify 0.2.0.dev5", Some("0.2.0-dev5")),
            ("specify 0.2.dev5+g12ab, of 1.2.3", Some("0.2.0-dev5")),
            ("1.2.3rc1.dev5 1.2.3b2", Some("1.2.3-rc1.dev5")),
            ("1.2.3.4_RC1", Some("1.2.3-RC1")),
            ("1.2.3.post1 and 1.2.3.deviant", Some("1.2.3")),
            ("tool-1.2.3.tar.gz", Some("1.2.3")),
            ("(v1.2.3)", Some("1.2.3")),
            // It is not known which of two is meant, or what comes first is no version.
            ("99999999999999999999.1 then 1.2.3", None),
            ("tool 1.2.3-01 (lib 4.5.6)", None),
            ("pkg_1.2.3", None),
            ("go1.22.3 x86_64.1.2", None),
            ("a.1.2.3", None),
            ("python3 and nothing else", None),
            ("version 7", None),
            ("", None),
        ] {
            assert_eq!(find(text).map(|v| v.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_version_is_held_against_the_rule() {
        let told = |found: &str, rule: &str| {
            unmet(&Version::parse(found).unwrap(), &VersionReq::parse(rule).unwrap()).map(|(detail, _)| detail)
        };
        assert_eq!(told("0.169.0", ">=0.1"), None);
        assert_eq!(told("1.2.3", ">=1.2, <2"), None);
        assert_eq!(told("2.0.0", ">=1.2, <2").as_deref(), Some("is version 2.0.0, and >=1.2, <2 is required"));
        assert_eq!(told("0.9.9", ">=1.0").as_deref(), Some("is version 0.9.9, and >=1.0 is required"));
    }

    #[test]
    fn a_pre_release_that_fails_only_for_being_one_is_told_so() {
        let told = |found: &str, rule: &str| {
            unmet(&Version::parse(found).unwrap(), &VersionReq::parse(rule).unwrap()).unwrap()
        };
        let (detail, remedy) = told("0.170.0-alpha.3", ">=0.1");
        assert!(detail.contains("a pre-release meets only"), "{detail}");
        assert!(remedy.contains("\">=0.170.0-alpha.3\""), "{remedy}");
        assert!(VersionReq::parse(">=0.170.0-alpha.3").unwrap().matches(&Version::parse("0.170.0-alpha.3").unwrap()));
        assert!(!told("0.1.0-rc.1", ">=2").0.contains("pre-release"), "the release would not do either");
    }
}
