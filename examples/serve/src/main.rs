//! An OpenAI-compatible HTTP server on [`amnesic`]: an example of embedding it. See README.md.
//!
//! What lives here: HTTP, JSON, and the translation between OpenAI's interface and the engine's. What never will: a
//! log of content, a cache across requests, anything that is written to a disk.
#![forbid(unsafe_code)]

mod app;
mod body;
mod chat;
mod completions;
mod connection;
mod embeddings;
mod error;
mod fields;
mod head;
mod ignored;
mod log;
mod logprobs;
mod messages;
mod models;
mod obfuscation;
mod options;
mod peer;
mod reply;
mod rerank;
mod running;
mod server;
mod settings;
mod texts;
mod tokenize;
mod tokens;
mod tools;

use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;

use app::App;
use log::say;
use options::{HELP, Options};

// Bodies, JSON values and events lie in buffers of hyper, serde_json and this program: this overwrites them when they are
// freed.
amnesic::install_scrubbing_allocator!();

/// The exit code of a wrong command line.
const USAGE: u8 = 2;
/// Threads that wait for the engine to take a request in or to scrub one.
const WAITING_THREADS: usize = 64;

fn main() -> ExitCode {
    log::panics_tell_only_places();
    match Options::parse(std::env::args_os(), options::key()) {
        Ok(Some(options)) => run(options).unwrap_or_else(|error| {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }),
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("error: {error} (see --help)"));
            ExitCode::from(USAGE)
        }
    }
}

fn run(options: Options) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // a model takes long to load, and an address that cannot be had is told at once
    let listener =
        TcpListener::bind(options.address).map_err(|error| format!("{}: {error}", options.address))?;
    let session = options.open()?;
    say(&format!("{} on {}", options.name, session.device()));
    let remote = !options.address.ip().is_loopback();
    let app = App::new(session, options.name, log::unix_secs() as u64, options.timeout);
    let app = Arc::new(app.key(options.key).remote(remote).literal_text(options.literal_text));

    let served = amnesic::privacy::protected(|| run_server(&app, listener))?;

    let app = Arc::into_inner(app).ok_or("a request has not ended: the session cannot be closed")?;
    let poisoned = app.is_poisoned();
    say(&app.session.close()?.to_string());
    served?;
    Ok(if poisoned { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// All that is read and written goes through this thread, which allocates on the heap for secrets.
fn run_server(app: &Arc<App>, listener: TcpListener) -> std::io::Result<()> {
    let clean = || {
        if server::has_connection_ended() {
            amnesic::privacy::clean_stack();
        }
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(WAITING_THREADS).on_thread_park(clean).build()?;
    let served = runtime.block_on(server::serve(app, listener));
    runtime.shutdown_timeout(server::GRACE); // what is left of connections and waiting threads goes
    served
}
