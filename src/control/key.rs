//! The secret that requests are signed with (`control.key_file`), where one is wanted.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, path::PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::hash::hex;

/// Fewer bytes could be guessed.
const SHORTEST: usize = 16;

/// A secret that every gate and every operator's host has.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("read {} (control.key_file)", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Everybody on the host can.
    #[error("use {} (control.key_file): everybody may read it (mode {mode:04o}); run: chmod o-rwx {}", .path.display(), .path.display())]
    Public {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It has too little in it.
    #[error(
        "use {} (control.key_file): it has {length} bytes, and a key has {SHORTEST} or more; run: head -c 32 /dev/urandom | \
         base64 > {}", .path.display(), .path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// How many bytes it has, without white space at either end.
        length: usize,
    },
}

impl Key {
    /// Reads a key file: its bytes, without white space at either end.
    ///
    /// # Errors
    /// When it cannot be read, may be read by everybody, or has fewer than 16 bytes.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let unreadable = |source| KeyError::Unreadable { path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o7777;
        if mode & 0o007 != 0 {
            return Err(KeyError::Public { path: path.to_owned(), mode });
        }
        let bytes = fs::read(path).map_err(unreadable)?;
        let key = bytes.trim_ascii();
        Self::new(key).ok_or_else(|| KeyError::Short { path: path.to_owned(), length: key.len() })
    }

    /// `None` if it is too short.
    fn new(key: &[u8]) -> Option<Self> {
        // HMAC itself takes keys of any length.
        (key.len() >= SHORTEST).then(|| Hmac::new_from_slice(key).ok()).flatten().map(Self)
    }

    /// The signature of a body.
    pub fn sign(&self, body: &[u8]) -> String {
        hex(&self.0.clone().chain_update(body).finalize().into_bytes())
    }

    /// Whether this is the signature of the body; takes as long for a wrong one as for a right one.
    pub fn is_signature(&self, body: &[u8], signature: &str) -> bool {
        unhex(signature).is_some_and(|tag| self.0.clone().chain_update(body).verify_slice(&tag).is_ok())
    }
}

/// Two keys are the same if they sign alike.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.is_signature(b"", &other.sign(b""))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<hidden>")
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key() -> Key {
        Key::new(b"0123456789abcdef").unwrap()
    }

    #[test]
    fn a_signature_is_of_one_body_and_by_one_key() {
        let signature = key().sign(b"{}");
        assert!(key().is_signature(b"{}", &signature));
        assert!(!key().is_signature(b"{ }", &signature));
        assert!(!Key::new(b"0123456789abcdeF").unwrap().is_signature(b"{}", &signature));
        for wrong in ["", "0", "zz", "ü1", &signature[2..], &format!("{signature}00")] {
            assert!(!key().is_signature(b"{}", wrong), "{wrong}");
        }
    }

    #[test]
    fn a_signature_is_what_others_compute() {
        // RFC 4231, test case 2, with a key that is long enough: printf 'what do ya want for nothing?' | openssl dgst
        // -sha256 -hmac JefeJefeJefeJefe
        let key = Key::new(b"JefeJefeJefeJefe").unwrap();
        assert_eq!(
            key.sign(b"what do ya want for nothing?"),
            "2ccd85dfc8d18cb5d84fef4b198554699fece6e8692c9147b0da983f5b7bd413"
        );
    }

    #[test]
    fn a_key_file_is_long_enough_and_not_for_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Key::read(&path)
        };
        let same = write(" 0123456789abcdef\n", 0o640).unwrap();
        assert_eq!(same.sign(b"x"), key().sign(b"x"));
        assert!(matches!(write("0123456789abcdef", 0o644), Err(KeyError::Public { mode: 0o644, .. })));
        assert!(matches!(write("0123456789abcde\n\n", 0o600), Err(KeyError::Short { length: 15, .. })));
        assert!(matches!(Key::read(&folder.path().join("none")), Err(KeyError::Unreadable { .. })));
    }
}
