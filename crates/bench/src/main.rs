//! The tools of `benches/run.py`: a minimal provider, a relay of bytes, and a load generator, each of which is
//! cheaper than what is measured with it and does nothing else; and what fills stores.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "results and progress are printed, and real time is measured"
)]

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

mod client;
mod load;
mod mock;
mod relay;
mod responses;
mod seed;
mod store;

/// Parts of keybridge's benchmarks; `scripts/bench` runs them.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Respond like a provider, as the header `x-bench` of each request requires
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
        /// Address to connect to
        #[arg(long)]
        to: SocketAddr,
    },
    /// Send requests and measure: prints a line of JSON when ready, waits for a line, then prints the result
    Load(load::Options),
    /// Print the body of a request, for another load generator
    Prompt {
        /// Approximate size of the body
        #[arg(long, default_value_t = 1_000)]
        bytes: usize,
    },
    /// Record requests and print the rate
    Store(store::Options),
    /// Fill a new store with generated interceptions
    Seed(seed::Options),
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
        Command::Seed(options) => seed::run(&options),
    }
}

fn on_one_thread(serving: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serving)
}
