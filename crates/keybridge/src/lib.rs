//! The binary's library: command line, configuration and wiring.
//!
//! `main.rs` calls [`main`] and nothing else. Tests start the product through [`serve::Server`], wired
//! as it is shipped.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program prints: data on standard output, messages on standard error"
)]

use std::{borrow::Cow, process::ExitCode};

use clap::{CommandFactory, Parser};
use keybridge_telemetry::escape_controls;

use crate::{
    cli::{Cli, Command, ConfigCommand, Exit},
    env::Env,
};

mod admin_view;
mod applied_config;
mod care;
mod cli;
pub mod config;
mod demo;
pub mod env;
mod first_token;
mod offline;
mod open_files;
mod print;
mod process_metrics;
pub mod reload;
mod resident;
mod runtime;
pub mod serve;
mod signals;
pub mod simulate;
mod socket;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output, such as `head`, has closed it.
        Err(Exit::Failed(error)) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Exit::Failed(error)) => {
            print::error(&format!("{error:#}"));
            ExitCode::from(1)
        }
        Err(Exit::Store(error)) => {
            print::error(&format!("{error:#}"));
            ExitCode::from(2)
        }
        Err(Exit::Config(problems)) => {
            print::lines(&format!("error: {problems}"));
            ExitCode::from(2)
        }
        Err(Exit::Interrupted) => ExitCode::from(130),
    }
}

/// Prints what the parser of the command line says: help, the version, or an error.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    // An argument that it quotes may come from outside.
    if text.lines().any(|line| matches!(escape_controls(line), Cow::Owned(_))) {
        print::lines(&text);
    } else {
        // A closed pipe is no failure.
        let _printed = error.print();
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: &Cli) -> Result<(), Exit> {
    let env = Env::of_process();
    match &cli.command {
        Command::Serve(options) => serve::command(cli, &env, options),
        Command::Demo(options) => demo::command(cli, options),
        Command::Sim(options) => simulate::command(options),
        Command::Check(options) => cli::check::command(cli, &env, options),
        Command::User(command) => cli::users::command(cli, &env, command),
        Command::Token(command) => cli::tokens::command(cli, &env, command),
        Command::Interceptions(options) => cli::interceptions::command(cli, &env, options),
        Command::Sessions(options) => cli::interceptions::sessions(cli, &env, options),
        Command::Migrate(options) => cli::ledger::migrate(cli, &env, options),
        Command::Ledger(command) => cli::ledger::command(cli, &env, command),
        Command::Config { command: ConfigCommand::Reference } => {
            print::text(&config::reference::page())
        }
        Command::Config { command: ConfigCommand::Schema } => {
            print::text(&format!("{:#}\n", config::reference::schema()))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "keybridge", &mut script);
            print::text(&String::from_utf8_lossy(&script))
        }
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            if cli.json {
                return print::json_line(&serde_json::json!({ "version": version }));
            }
            print::text(&format!("keybridge {version}\n"))
        }
    }
}
