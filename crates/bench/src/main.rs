//! What `benches/run.py` measures with: a minimal provider, a relay of bytes, and a load generator. Each
//! is cheaper than what is measured with it, and does nothing else.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "results go to whoever runs the benchmark, and it is real time that is measured"
)]

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

mod answers;
mod client;
mod load;
mod mock;
mod relay;
mod store;

/// Parts of keybridge's benchmarks; `scripts/bench` runs them.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer like a provider, as the header `x-bench` of each request says
    Mock {
        /// Address and port to listen on
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Relay bytes between clients and one address
    Relay {
        /// Address and port to listen on
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Where they go
        #[arg(long)]
        to: SocketAddr,
    },
    /// Ask and measure: prints a line of JSON when ready and waits for a line, then one with the result
    Load(load::Options),
    /// Print the body of a request, for another load generator
    Prompt {
        /// About how long it shall be
        #[arg(long, default_value_t = 1_000)]
        bytes: usize,
    },
    /// Record requests and print how fast that was
    Store(store::Options),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Mock { listen } => on_one_thread(mock::serve(listen)),
        Command::Relay { listen, to } => on_one_thread(relay::serve(listen, to)),
        Command::Load(options) => load::run(&options),
        Command::Prompt { bytes } => {
            println!("{}", load::prompt("/v1/messages", bytes));
            Ok(())
        }
        Command::Store(options) => store::run(&options),
    }
}

fn on_one_thread(serving: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serving)
}
