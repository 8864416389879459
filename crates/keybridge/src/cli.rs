//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use keybridge_identity::AccountError;
use keybridge_ledger::{Ledger, LedgerError, LedgerOptions};

use crate::{
    config::{Config, Overrides, Problem, Problems, Source},
    env::Env,
};

pub(crate) mod check;
pub(crate) mod interceptions;
pub(crate) mod ledger;
pub(crate) mod tokens;
pub(crate) mod users;

/// Between AI coding agents and LLM providers: who asked, with whose key, and a complete trail.
#[derive(Debug, Parser)]
#[command(name = "keybridge", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Configuration file [default: keybridge.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print data as JSON, one value per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the bridge
    Serve(ServeOptions),
    /// Run a tour against simulated providers and show the trail it leaves
    Demo(DemoOptions),
    /// Run the simulated providers alone
    Sim(SimOptions),
    /// Validate the configuration
    Check(CheckOptions),
    /// Manage users
    #[command(subcommand)]
    User(UserCommand),
    /// Manage bridge tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Read the records
    #[command(args_conflicts_with_subcommands = true)]
    Interceptions(InterceptionsOptions),
    /// List sessions, latest first
    Sessions(SessionsOptions),
    /// Bring the store's schema up to date; `serve` does it by itself
    Migrate(MigrateOptions),
    /// Examine the trail
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Describe the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script
    Completions { shell: Shell },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Where records are kept, such as `sqlite://keybridge.db`
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Put the built-in simulated providers behind every provider
    #[arg(long)]
    pub(crate) simulate: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// End after the tour
    #[arg(long)]
    pub(crate) exit: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SimOptions {
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) listen: std::net::SocketAddr,
    /// Append a line of JSON for every answer that is handed out, for `ledger verify --against`
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// Also reach each provider and the store
    #[arg(long)]
    pub(crate) online: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user
    Create {
        name: String,
        #[arg(long)]
        email: Option<String>,
        /// member, auditor or admin
        #[arg(long, default_value = "member")]
        role: keybridge_identity::Role,
    },
    /// List users
    List,
    /// Refuse a user's tokens until resumed
    Suspend { name: String },
    /// Accept a user's tokens again
    Resume { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown once, on standard output
    Create {
        #[arg(long)]
        user: String,
        /// A label
        #[arg(long)]
        name: Option<String>,
        /// When it ends by itself, such as 90d
        #[arg(long, value_parser = crate::config::units::duration)]
        expires: Option<std::time::Duration>,
    },
    /// List tokens
    List {
        #[arg(long)]
        user: Option<String>,
    },
    /// Revoke a token by its id
    Revoke { id: uuid::Uuid },
}

#[derive(Debug, Args)]
pub(crate) struct InterceptionsOptions {
    #[command(subcommand)]
    pub(crate) command: Option<InterceptionsCommand>,
    /// Of this user
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Of this provider instance
    #[arg(long)]
    pub(crate) provider: Option<String>,
    /// Of this client session
    #[arg(long)]
    pub(crate) session: Option<String>,
    /// Begun within this time, such as 1h
    #[arg(long, value_parser = crate::config::units::duration)]
    pub(crate) since: Option<std::time::Duration>,
    /// Most rows
    #[arg(long, default_value_t = keybridge_ledger::DEFAULT_LIMIT)]
    pub(crate) limit: u32,
    /// Go on and print new ones as they end
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InterceptionsCommand {
    /// Show one with its prompts, tokens, tool calls and thoughts
    Show { id: uuid::Uuid },
}

#[derive(Debug, Args)]
pub(crate) struct SessionsOptions {
    /// Of this user
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// With a request within this time, such as 1d
    #[arg(long, value_parser = crate::config::units::duration)]
    pub(crate) since: Option<std::time::Duration>,
    /// Most rows
    #[arg(long, default_value_t = keybridge_ledger::DEFAULT_LIMIT)]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateOptions {
    /// Only show what is pending
    #[arg(long)]
    pub(crate) plan: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Recount the trail; exit code 1 when it is not what it must be
    Verify {
        /// Compare with the answers that a provider says it gave: JSON lines with `response_id` and
        /// `request_sha256`
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the reference page
    Reference,
    /// Print the JSON schema
    Schema,
}

/// Why a command ends without success, which decides its exit code.
#[derive(Debug)]
pub(crate) enum Exit {
    Failed(anyhow::Error),
    Config(Problems),
    Interrupted,
}

impl From<anyhow::Error> for Exit {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<LedgerError> for Exit {
    fn from(error: LedgerError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<AccountError> for Exit {
    fn from(error: AccountError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<std::io::Error> for Exit {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl Cli {
    /// The configuration of a command that reads the store or serves.
    pub(crate) fn load(&self, env: &Env, overrides: &Overrides) -> Result<Config, Exit> {
        self.source(env, overrides).load().map_err(Exit::Config)
    }

    /// Where the configuration comes from.
    pub(crate) fn source(&self, env: &Env, overrides: &Overrides) -> Source {
        Source { file: self.config.clone(), env: env.clone(), overrides: overrides.clone() }
    }

    /// The store of the configuration.
    pub(crate) fn ledger(&self, env: &Env) -> Result<Ledger, Exit> {
        let config = self.load(env, &Overrides::default())?;
        let options = LedgerOptions { reads: config.ledger.reads, ..LedgerOptions::default() };
        Ledger::open_with(&config.store_url, &options).map_err(|error| store_problem(&error))
    }

    /// Opens a store to serve from it.
    pub(crate) fn open_to_serve(config: &Config) -> Result<Ledger, Exit> {
        Ledger::open_with(&config.store_url, &config.ledger).map_err(|error| store_problem(&error))
    }
}

/// A store that cannot be used is a problem of the configuration.
fn store_problem(error: &LedgerError) -> Exit {
    let path =
        if matches!(error, LedgerError::Spool(_)) { "ledger.spool_dir" } else { "store.url" };
    Exit::Config(Problems(vec![Problem { path: path.into(), message: error.to_string() }]))
}
