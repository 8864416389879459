//! keybridge: between AI coding agents and LLM providers.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the binary talks to its user: data on standard output, talk on standard error"
)]

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::{
    cli::{Cli, Command, ConfigCommand, Exit},
    env::Env,
};

mod cli;
mod config;
mod demo;
mod directory;
mod env;
mod print;
mod serve;
mod simulate;
mod telemetry;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = run(&cli);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Failed(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
        Err(Exit::Config(problems)) => {
            eprintln!("error: {problems}");
            ExitCode::from(2)
        }
        Err(Exit::Interrupted) => ExitCode::from(130),
    }
}

fn run(cli: &Cli) -> Result<(), Exit> {
    let env = Env::of_process();
    match &cli.command {
        Command::Serve(options) => serve::command(cli, &env, options),
        Command::Demo(options) => demo::command(cli, options),
        Command::Check(options) => cli::check::command(cli, &env, options),
        Command::User(command) => cli::users::command(cli, &env, command),
        Command::Token(command) => cli::tokens::command(cli, &env, command),
        Command::Interceptions(options) => cli::interceptions::command(cli, &env, options),
        Command::Sessions(options) => cli::interceptions::sessions(cli, &env, options),
        Command::Config { command: ConfigCommand::Reference } => {
            print!("{}", config::reference::page());
            Ok(())
        }
        Command::Config { command: ConfigCommand::Schema } => {
            println!("{:#}", config::reference::schema());
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(
                *shell,
                &mut Cli::command(),
                "keybridge",
                &mut std::io::stdout(),
            );
            Ok(())
        }
        Command::Version => {
            if cli.json {
                println!("{}", serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }));
            } else {
                println!("keybridge {}", env!("CARGO_PKG_VERSION"));
            }
            Ok(())
        }
    }
}
