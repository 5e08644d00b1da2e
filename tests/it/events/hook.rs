//! A little HTTP server that takes what is posted to it, and answers as a test wants it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::support::process::free_port;

/// What a POST is answered with.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Status(u16),
    /// 200, but only after this time.
    Slowly(Duration),
    /// 302 to this address.
    To(String),
    /// The connection ends without a word.
    HangUp,
}

/// One POST that came.
#[derive(Debug, Clone)]
pub(super) struct Post {
    /// The first line and the headers.
    pub(super) head: String,
    pub(super) body: String,
    /// Whether it was answered with 200.
    pub(super) taken: bool,
}

impl Post {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// The server; it ends when dropped.
pub(super) struct Hook {
    port: u16,
    posts: Arc<Mutex<Vec<Post>>>,
    stop: Arc<AtomicBool>,
}

impl Hook {
    /// A server on a port of its own. What it answers to the first POST, the second and so on, is for the test to say.
    #[track_caller]
    pub(super) fn start(answer: impl FnMut(usize) -> Answer + Send + 'static) -> Self {
        Self::at(free_port(), answer)
    }

    /// The same on a port that may have been another's before.
    #[track_caller]
    pub(super) fn at(port: u16, answer: impl FnMut(usize) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (posts, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let answer = Arc::new(Mutex::new(answer));
        {
            let (posts, stop) = (Arc::clone(&posts), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((connection, _)) => {
                            let (posts, answer) = (Arc::clone(&posts), Arc::clone(&answer));
                            // Whoever posts may go away in between.
                            thread::spawn(move || drop(serve(connection, &posts, &answer)));
                        }
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            });
        }
        Self { port, posts, stop }
    }

    pub(super) fn url(&self, path: &str) -> String {
        url(self.port, path)
    }

    /// Everything that was posted so far.
    pub(super) fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    /// What was posted and answered with 200.
    pub(super) fn taken(&self) -> Vec<Post> {
        self.posts().into_iter().filter(|post| post.taken).collect()
    }

    /// The `seq` of each event that was taken.
    pub(super) fn seqs(&self) -> Vec<u64> {
        self.taken().iter().map(|post| post.json()["seq"].as_u64().unwrap()).collect()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub(super) fn url(port: u16, path: &str) -> String {
    format!("http://127.0.0.1:{port}{path}")
}

fn serve<F: FnMut(usize) -> Answer>(
    connection: TcpStream,
    posts: &Mutex<Vec<Post>>,
    answer: &Mutex<F>,
) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8(body).unwrap();
    let number = posts.lock().unwrap().len();
    let answer = (answer.lock().unwrap())(number);
    let taken = matches!(answer, Answer::Status(200) | Answer::Slowly(_));
    // Before the answer: whoever has it may look here at once.
    posts.lock().unwrap().push(Post { head, body, taken });
    let (status, header) = match answer {
        Answer::HangUp => return Ok(()),
        Answer::Status(status) => (status, String::new()),
        Answer::Slowly(time) => {
            thread::sleep(time);
            (200, String::new())
        }
        Answer::To(address) => (302, format!("Location: {address}\r\n")),
    };
    let mut connection = connection;
    write!(connection, "HTTP/1.1 {status} X\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n")
}
