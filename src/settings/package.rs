//! Packages by whose registry has them.

use std::fmt;

/// A package of npm's or of PyPI's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Package {
    /// `npm:NAME`
    Npm(String),
    /// `pypi:NAME`
    Pypi(String),
}

impl Package {
    /// `npm:NAME` or `pypi:NAME`; `None` for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (registry, name) = text.split_once(':')?;
        // A name that begins with a dash would be an option of npm's or pip's.
        let is_name = !name.is_empty() && !name.starts_with('-') && !name.contains(char::is_whitespace);
        match registry {
            "npm" if is_name => Some(Self::Npm(name.to_owned())),
            "pypi" if is_name => Some(Self::Pypi(name.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Npm(name) => write!(f, "npm:{name}"),
            Self::Pypi(name) => write!(f, "pypi:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_names_its_registry() {
        assert_eq!(Package::parse("npm:@openai/codex"), Some(Package::Npm("@openai/codex".into())));
        assert_eq!(Package::parse("pypi:specify-cli").unwrap().to_string(), "pypi:specify-cli");
        for none in ["", "codex", "npm:", "npm:--registry=x", "gem:codex", "pypi:a b"] {
            assert_eq!(Package::parse(none), None, "{none}");
        }
    }
}
