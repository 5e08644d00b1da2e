//! The `worker-gate` program; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything opens a connection: with no process-wide provider, the first use of TLS would panic in its task.
    // An error only says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    worker_gate::cli::main()
}
