//! A TCP proxy between a gate and its broker, which can be told to misbehave.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    select,
    sync::watch,
};

use super::{
    runtime::{on, spawn},
    wait::until,
};

/// What the proxy does with bytes and with those who connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Bytes pass both ways.
    Forward,
    /// Connections are accepted and kept, and nothing passes, not even the news that one side hung up. What was sent
    /// meanwhile passes later.
    Stall,
    /// Nobody listens, and what is connected has been cut.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Connections of an earlier generation are cut.
    generation: u32,
}

/// A proxy on a port of its own, which it keeps; it ends when dropped.
pub(crate) struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    listening: watch::Receiver<bool>,
    open: Arc<AtomicU32>,
}

impl Proxy {
    /// A forwarding proxy for a port of the loopback address.
    pub(crate) fn to(target: u16) -> Self {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
        let listener = on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, states) = watch::channel(State { mode: Mode::Forward, generation: 0 });
        let (tell, listening) = watch::channel(true);
        let open = Arc::new(AtomicU32::new(0));
        spawn(listen(listener, target, states, tell, Arc::clone(&open)));
        Self { port, state, listening, open }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many connections it holds.
    pub(crate) fn connections(&self) -> u32 {
        self.open.load(Ordering::Acquire)
    }

    /// Changes what it does; when this returns, it does.
    #[track_caller]
    pub(crate) fn set(&self, mode: Mode) {
        self.state.send_modify(|state| {
            state.generation += u32::from(mode == Mode::Refuse);
            state.mode = mode;
        });
        let what = format!("the proxy is set to {mode:?}");
        until(Duration::from_secs(10), &what, || *self.listening.borrow() == (mode != Mode::Refuse));
    }

    /// Cuts every connection with a reset, and goes on as it was.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
        until(Duration::from_secs(10), "every connection is cut", || self.connections() == 0);
    }
}

async fn listen(
    listener: TcpListener,
    target: SocketAddr,
    mut states: watch::Receiver<State>,
    tell: watch::Sender<bool>,
    open: Arc<AtomicU32>,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    loop {
        let state = *states.borrow_and_update();
        if state.mode == Mode::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        // Nobody waits for this news any more when the proxy has been dropped.
        let _ = tell.send(listener.is_some());
        select! {
            changed = states.changed() => if changed.is_err() { return },
            accepted = accept(listener.as_ref()) => {
                if let Ok((client, _)) = accepted {
                    open.fetch_add(1, Ordering::AcqRel);
                    let (states, open) = (states.clone(), Arc::clone(&open));
                    spawn(async move {
                        // Either side may end it, in any way: that is what a proxy is for.
                        let _ = carry(client, target, state.generation, states).await;
                        open.fetch_sub(1, Ordering::AcqRel);
                    });
                }
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// One connection, from accept to its end.
async fn carry(
    client: TcpStream,
    target: SocketAddr,
    generation: u32,
    mut states: watch::Receiver<State>,
) -> io::Result<()> {
    // A reset, not an orderly end, is what the other side shall see of a cut.
    client.set_zero_linger()?;
    client.set_nodelay(true)?;
    if !may_pass(&mut states, generation).await {
        return Ok(());
    }
    let server = TcpStream::connect(target).await?;
    server.set_zero_linger()?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let there = pump(client_read, server_write, generation, states.clone());
    let back = pump(server_read, client_write, generation, states.clone());
    // Whichever side ends first ends both: AMQP and Redis do not use half-closed connections.
    select! {
        ended = there => ended,
        ended = back => ended,
        // Also when the proxy is dropped, and when a pump waits for a side that no longer reads.
        _ = states.wait_for(|state| state.generation != generation) => Ok(()),
    }
}

async fn pump(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    generation: u32,
    mut states: watch::Receiver<State>,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    while may_pass(&mut states, generation).await {
        // Neither loses anything when the other one wins: `changed` is a flag, and `read` has read nothing then.
        let length = select! {
            biased;
            changed = states.changed() => if changed.is_ok() { continue } else { break },
            length = from.read(&mut bytes) => length?,
        };
        if length == 0 || !may_pass(&mut states, generation).await {
            break;
        }
        to.write_all(&bytes[..length]).await?;
    }
    Ok(())
}

/// Waits out a stall; false once the connection has been cut or the proxy is gone.
async fn may_pass(states: &mut watch::Receiver<State>, generation: u32) -> bool {
    let decided = |state: &State| state.generation != generation || state.mode != Mode::Stall;
    states.wait_for(decided).await.is_ok_and(|state| state.generation == generation)
}
