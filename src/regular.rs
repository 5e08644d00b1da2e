//! Regular files, where somebody may have put a pipe that hangs its reader or a device that has no end.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::fcntl::OFlag;

/// Opens one for reading, and nothing else.
///
/// # Errors
/// The system's, and that it is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// Reads a whole one of at most so many bytes.
///
/// # Errors
/// As [`open`]; and [`io::ErrorKind::FileTooLarge`].
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // It may grow meanwhile, so the limit counts what is read.
    open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, too_large(most)));
    }
    Ok(bytes)
}

fn too_large(most: u64) -> String {
    const MEBIBYTE: u64 = 1 << 20;
    match most % MEBIBYTE {
        0 => format!("it is larger than {} MiB", most / MEBIBYTE),
        _ => format!("it is larger than {most} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_what_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "abcd").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"abcd");
        let error = read(&path, 3).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::FileTooLarge, "it is larger than 3 bytes")
        );
        assert_eq!(too_large(1 << 20), "it is larger than 1 MiB");
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::NotFound);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        for path in [&path, Path::new("/dev/zero"), folder.path()] {
            assert_eq!(read(path, 4).unwrap_err().to_string(), "it is not a regular file", "{}", path.display());
        }
    }
}
