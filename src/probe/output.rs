//! What a command prints: the head is kept, the rest is read and counted.

use std::os::fd::OwnedFd;

use nix::sys::stat::fstat;
use tokio::{io::AsyncReadExt, net::unix::pipe};

/// Kept of each stream, in bytes. Version and error messages are far shorter; a flood must not fill memory.
pub(crate) const KEPT: usize = 64 * 1024;

/// One stream of a command.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Captured {
    /// At most [`KEPT`] bytes from its beginning.
    head: Vec<u8>,
    /// All that was read, in bytes.
    pub(crate) total: u64,
}

impl Captured {
    fn take(&mut self, chunk: &[u8]) {
        let room = KEPT.saturating_sub(self.head.len());
        self.head.extend_from_slice(&chunk[..chunk.len().min(room)]);
        self.total = self.total.saturating_add(chunk.len() as u64);
    }

    /// Whether more was printed than was kept.
    pub(crate) fn is_cut(&self) -> bool {
        self.total > self.head.len() as u64
    }

    /// What was kept, as text. Of a cut stream the last line is left out, and of one without lines the last 4 KiB: a
    /// secret that the cut went through would not be recognized, and its first half would be shown.
    pub(crate) fn text(&self) -> String {
        let mut kept = self.head.as_slice();
        if self.is_cut() {
            let last_line = kept.iter().rposition(|&byte| byte == b'\n');
            kept = &kept[..last_line.unwrap_or(kept.len().saturating_sub(4096))];
        }
        String::from_utf8_lossy(kept).into_owned()
    }
}

/// Both streams of one command while it runs.
pub(crate) struct Pipes {
    out: Stream,
    err: Stream,
    /// One for both, as only one is read at a time; as large as a pipe, so that a flood costs few wake-ups.
    buffer: Vec<u8>,
}

struct Stream {
    /// `None` after its end, or after an error, which for a pipe means the same.
    pipe: Option<pipe::Receiver>,
    inode: u64,
    captured: Captured,
}

impl Stream {
    fn new(fd: OwnedFd) -> std::io::Result<Self> {
        let inode = fstat(&fd)?.st_ino;
        Ok(Self { pipe: Some(pipe::Receiver::from_owned_fd(fd)?), inode, captured: Captured::default() })
    }

    async fn read(&mut self, buffer: &mut [u8]) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.read(buffer).await {
            Ok(n) if n > 0 => self.captured.take(&buffer[..n]),
            Ok(_) | Err(_) => self.pipe = None,
        }
    }
}

/// Waits for the stream to have something; never, if it has ended.
async fn readable(pipe: Option<&pipe::Receiver>) {
    match pipe {
        // An error shows again in the read that follows.
        Some(pipe) => drop(pipe.readable().await),
        None => std::future::pending().await,
    }
}

impl Pipes {
    /// Takes over the reading ends.
    pub(crate) fn new(out: OwnedFd, err: OwnedFd) -> std::io::Result<Self> {
        Ok(Self { out: Stream::new(out)?, err: Stream::new(err)?, buffer: vec![0; 64 * 1024] })
    }

    /// Reads once from whichever stream has something; pending for ever after both have ended. Cancel-safe: what was
    /// read has been kept.
    pub(crate) async fn progress(&mut self) {
        let stream = tokio::select! {
            () = readable(self.out.pipe.as_ref()) => &mut self.out,
            () = readable(self.err.pipe.as_ref()) => &mut self.err,
        };
        stream.read(&mut self.buffer).await;
    }

    /// Whether nobody has a writing end any more.
    pub(crate) fn have_ended(&self) -> bool {
        self.out.pipe.is_none() && self.err.pipe.is_none()
    }

    /// The inodes of the pipes that are still open, by which /proc tells who holds them.
    pub(crate) fn open_inodes(&self) -> Vec<u64> {
        [&self.out, &self.err].into_iter().filter(|stream| stream.pipe.is_some()).map(|stream| stream.inode).collect()
    }

    /// Closes what is still open and hands over what was printed: stdout, then stderr.
    pub(crate) fn into_captured(self) -> (Captured, Captured) {
        (self.out.captured, self.err.captured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_kept_and_the_rest_is_counted() {
        let mut captured = Captured::default();
        captured.take(b"first\nsecond\n");
        assert_eq!((captured.text().as_str(), captured.is_cut()), ("first\nsecond\n", false));
        captured.take(&vec![b'x'; KEPT]);
        assert_eq!((captured.head.len(), captured.total), (KEPT, KEPT as u64 + 13));
        assert_eq!(captured.text(), "first\nsecond", "the line that was cut is not shown");
    }

    #[test]
    fn a_cut_stream_without_lines_loses_its_end() {
        let mut captured = Captured::default();
        captured.take(&vec![b'x'; KEPT + 1]);
        assert_eq!(captured.text().len(), KEPT - 4096);
    }
}
