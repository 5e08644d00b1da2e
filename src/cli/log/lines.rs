//! Lines on their way to standard error, for a program that must not wait for whoever reads them.
//!
//! A thread of its own writes them. What a reader that has stalled leaves no room for is dropped, and the log says how many
//! lines are missing, where they are missing. `tracing-appender` has such a thread, too; when its queue is full as the program
//! ends, it prints, and that may wait for ever for the same reader.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// So many bytes wait, and at most as many are being written: a thousand workers that change together say some 300 KB. Only
/// while nobody reads does it cost memory, of a process that is to stay below 20 MB.
const ROOM: usize = 512 * 1024;
/// How long the end of the program waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes lines without waiting. Dropping it waits for those that it has taken, though not for long.
#[derive(Debug)]
pub(in crate::cli) struct Lines(Arc<Shared>);

impl Lines {
    /// Starts the thread that writes them to `to`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(in crate::cli) fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let lines = Self(Arc::clone(&shared));
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_down(to))?;
        Ok(lines)
    }

    /// Where the log's lines go.
    pub(super) fn writer(&self) -> BoxMakeWriter {
        BoxMakeWriter::new(Arc::clone(&self.0))
    }

    /// Adds the line that says how the program ends. There is room for it in any case.
    pub(in crate::cli) fn add_last(&self, line: &str) {
        let mut state = self.0.state();
        state.own_up();
        state.waiting.extend_from_slice(line.as_bytes());
        state.waiting.push(b'\n');
        self.0.changed.notify_all();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        drop(self.0.changed.wait_timeout_while(self.0.state(), PATIENCE, |state| !state.is_done()));
    }
}

/// Between those who log and the thread that writes.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines.
    waiting: Vec<u8>,
    /// Lines for which there was no room; they would have come after those that wait.
    dropped: u64,
    is_writing: bool,
}

impl State {
    /// Takes a line, if there is room. After one that was dropped all are, until the log can say so in its place.
    fn add(&mut self, line: &[u8]) {
        if self.dropped > 0 || self.waiting.len() + line.len() > ROOM {
            self.dropped += 1;
        } else {
            self.waiting.extend_from_slice(line);
        }
    }

    /// Says how many lines are missing here.
    fn own_up(&mut self) {
        if self.dropped > 0 {
            let missing = format!(
                "worker-gate: log lines that nobody read in time, and that are missing here: {}\n",
                self.dropped
            );
            self.waiting.extend_from_slice(missing.as_bytes());
            self.dropped = 0;
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.dropped == 0
    }

    fn is_done(&self) -> bool {
        self.is_idle() && !self.is_writing
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's work, for as long as the process lives.
    fn write_down(&self, mut to: impl Write) {
        loop {
            let waited = self.changed.wait_while(self.state(), |state| state.is_idle());
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            state.own_up();
            state.is_writing = true;
            let lines = mem::take(&mut state.waiting);
            drop(state);
            // If it fails there is nobody left to tell.
            let _ = to.write_all(&lines);
            self.state().is_writing = false;
            self.changed.notify_all();
        }
    }
}

/// tracing-subscriber writes each line in one go.
impl Write for &Shared {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.state().add(line);
        self.changed.notify_all();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, PipeReader, pipe},
        time::Instant,
    };

    use super::*;

    /// More than wait, are being written and are in the pipe, at 128 bytes each.
    const MANY: usize = 20_000;

    fn line(number: usize) -> String {
        format!("{number:0127}\n")
    }

    /// Lines to a pipe, and this many of them in it.
    fn filled(many: usize) -> (Lines, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        let lines = Lines::start(writer).unwrap();
        for number in 0..many {
            (&*lines.0).write_all(line(number).as_bytes()).unwrap();
        }
        (lines, reader)
    }

    #[test]
    fn lines_keep_their_order_and_those_that_nobody_read_in_time_are_counted_where_they_are_missing() {
        let begun = Instant::now();
        let (lines, reader) = filled(MANY);
        assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for the reader");
        let (mut reader, mut next, mut missing) = (BufReader::new(reader).lines().map(Result::unwrap), 0, 0);
        while next < MANY {
            let told = reader.next().unwrap();
            let dropped = told.strip_prefix("worker-gate: ").map(|told| told.rsplit_once(": ").unwrap().1);
            let dropped = dropped.map_or(0, |number| number.parse().unwrap());
            if dropped == 0 {
                assert_eq!(told, line(next).trim_end());
            }
            (next, missing) = (next + dropped.max(1), missing + dropped);
        }
        assert!((1_000..MANY - 1_000).contains(&missing), "{missing}");
        (&*lines.0).write_all(line(MANY).as_bytes()).unwrap();
        assert_eq!(reader.next().unwrap(), line(MANY).trim_end());
    }

    #[test]
    fn the_end_waits_until_the_last_line_is_written() {
        let (lines, reader) = filled(1_000);
        lines.add_last("the end");
        let reading = thread::spawn(move || {
            thread::sleep(PATIENCE / 10);
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            lines.take_while(|line| line != "the end").count()
        });
        drop(lines);
        assert_eq!(reading.join().unwrap(), 1_000);
    }

    #[test]
    fn the_end_waits_not_for_long_for_a_reader_that_has_stalled() {
        let (lines, _reader) = filled(MANY);
        lines.add_last("the end");
        let begun = Instant::now();
        drop(lines);
        assert!((PATIENCE..PATIENCE * 3).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}
