//! The command line.

use std::{io::Write as _, path::PathBuf};

use anyhow::anyhow;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use jiff::Timestamp;
use keybridge_identity::AccountError;
use keybridge_ledger::{Ledger, LedgerError, LedgerOptions, parse};

use crate::{
    config::{Config, Overrides, Problem, Problems, Source},
    env::Env,
};

pub(crate) mod check;
mod follow;
pub(crate) mod interceptions;
pub(crate) mod ledger;
pub(crate) mod retention;
pub(crate) mod rollups;
pub(crate) mod spool;
pub(crate) mod tokens;
pub(crate) mod users;

/// A bridge between AI coding agents and LLM providers that identifies users, manages keys and records every request
#[derive(Debug, Parser)]
#[command(name = "keybridge", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Configuration file [default: keybridge.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Store of records, users and tokens, such as `sqlite://keybridge.db` [default: `store.url` of the configuration]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) store: Option<String>,
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
    /// Send sample requests to simulated providers and show what is recorded
    Demo(DemoOptions),
    /// Run only the simulated providers
    Sim(SimOptions),
    /// Check the configuration
    Check(CheckOptions),
    /// Manage users
    #[command(subcommand)]
    User(UserCommand),
    /// Manage bridge tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// List recorded requests, latest first
    #[command(args_conflicts_with_subcommands = true)]
    Interceptions(InterceptionsOptions),
    /// List sessions, latest first
    Sessions(SessionsOptions),
    /// Create the store or update its schema; `serve` does this too
    Migrate(MigrateOptions),
    /// Check the records for completeness
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Describe the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a shell completion script
    Completions { shell: Shell },
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Replace every configured provider by a built-in simulated one
    #[arg(long)]
    pub(crate) simulate: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Exit after the sample requests instead of serving until Ctrl-C
    #[arg(long)]
    pub(crate) exit: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SimOptions {
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) listen: std::net::SocketAddr,
    /// Append a JSON line to FILE for each response, for `ledger verify --against`
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// Also connect to the store, each provider and each MCP server
    #[arg(long)]
    pub(crate) online: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Create a user
    Create {
        /// Unique name
        name: String,
        /// Email address
        #[arg(long)]
        email: Option<String>,
        /// member (reads their own records), auditor (reads all records) or admin
        #[arg(long, default_value = "member")]
        role: keybridge_identity::Role,
    },
    /// List users
    List,
    /// Reject a user's tokens until the user is resumed
    Suspend {
        /// Name of the user
        name: String,
    },
    /// Accept a suspended user's tokens again
    Resume {
        /// Name of the user
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print it; it cannot be shown again
    Create {
        /// Name of the user
        #[arg(long)]
        user: String,
        /// Label, such as the machine it is for
        #[arg(long)]
        name: Option<String>,
        /// Time until the token expires, such as 90d [default: never]
        #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
        expires: Option<std::time::Duration>,
    },
    /// List tokens
    List {
        /// Only tokens of this user
        #[arg(long)]
        user: Option<String>,
    },
    /// Revoke a token
    Revoke {
        /// Id of the token, as shown by `token list`
        id: uuid::Uuid,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InterceptionsOptions {
    #[command(subcommand)]
    pub(crate) command: Option<InterceptionsCommand>,
    /// Only requests of this user
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Only requests to this provider
    #[arg(long)]
    pub(crate) provider: Option<String>,
    /// Only requests of this client session
    #[arg(long)]
    pub(crate) session: Option<String>,
    /// Only requests that started at or after this time: 1h (before now), 2026-01-31, today, RFC 3339 or Unix seconds
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) since: Option<Timestamp>,
    /// Only requests that started before this time: 10m (before now), 2026-01-31, today, RFC 3339 or Unix seconds
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "follow")]
    pub(crate) until: Option<Timestamp>,
    /// Maximum number of rows; with --follow, of requests that ended before, unless --since is given
    #[arg(long, default_value_t = keybridge_ledger::DEFAULT_LIMIT)]
    pub(crate) limit: u32,
    /// Keep running and print further requests when they end
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InterceptionsCommand {
    /// Show one request with its prompts, tokens, tool calls and thinking
    Show {
        /// Id of the interception
        id: uuid::Uuid,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SessionsOptions {
    /// Only sessions of this user
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Only sessions with a request at or after this time: 1d (before now), 2026-01-31, today, RFC 3339 or Unix seconds
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) since: Option<Timestamp>,
    /// Maximum number of rows
    #[arg(long, default_value_t = keybridge_ledger::DEFAULT_LIMIT)]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateOptions {
    /// Only list the migrations to be applied
    #[arg(long)]
    pub(crate) plan: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Count the records and check that none is missing or duplicated
    ///
    /// Exit codes: 0 nothing is wrong (there may be warnings), 1 something is missing or inconsistent, 2 the
    /// check could not be made.
    Verify {
        /// Compare with a provider's own log: JSON lines with `response_id` and `request_sha256`
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
    },
    /// Show what retention removed and would remove now
    Retention {
        /// Confirm that the clock of this machine is right, when `serve` refuses to apply retention
        #[arg(long)]
        confirm: bool,
    },
    /// Compare the roll-ups (sums by half hours, days and sessions) with the records, or sum these anew
    Rollups {
        /// Sum anew; what retention has removed records of stays as it is
        #[arg(long)]
        rebuild: bool,
        /// Only what has records at or after this time, a duration before now, such as 7d, or RFC 3339
        #[arg(long, value_name = "TIME", value_parser = time, requires = "rebuild")]
        since: Option<Timestamp>,
    },
    /// Show and return what waits in the spool or was set aside
    #[command(subcommand)]
    Spool(SpoolCommand),
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum SpoolCommand {
    /// List the files in `ledger.spool_dir`: entries, reasons, ages and the store they belong to
    List,
    /// Return what was set aside or left behind to the store; what it still refuses stays set aside, and the exit code is 1
    Replay {
        /// Also replay the files of another store, such as the one that this one was restored from: its id, as shown by `list`
        #[arg(long, value_name = "ID")]
        of_store: Option<uuid::Uuid>,
    },
    /// Print the entries of all files that no process uses, as JSON lines; they contain prompts
    Export,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the reference page, in Markdown
    Reference,
    /// Print the JSON schema of the configuration file
    Schema,
}

/// Why a command fails, which decides the exit code of the process.
#[derive(Debug)]
pub(crate) enum Exit {
    Failed(anyhow::Error),
    Config(Problems),
    /// The command cannot work with the store that it was given.
    Store(anyhow::Error),
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
    /// Loads and validates the configuration.
    pub(crate) fn load(&self, env: &Env) -> Result<Config, Exit> {
        self.source(env, None).load().map_err(Exit::Config)
    }

    /// Where the configuration comes from.
    pub(crate) fn source(&self, env: &Env, listen: Option<&str>) -> Source {
        let overrides = Overrides { listen: listen.map(str::to_owned), store: self.store.clone() };
        Source { file: self.config.clone(), env: env.clone(), overrides }
    }

    /// Opens the configured store for a command that reads or administers it.
    pub(crate) fn ledger(&self, env: &Env) -> Result<Ledger, Exit> {
        open_existing(&self.load(env)?)
    }
}

/// Opens a store that exists; nothing is created and no migration is applied.
pub(crate) fn open_existing(config: &Config) -> Result<Ledger, Exit> {
    Ledger::open_existing(&config.store_url, &read_options(config))
        .map_err(|error| store_error(&error))
}

/// Opens the store for its first user, before it was ever served: a store that the configuration or the
/// command line names is created.
pub(crate) fn open_or_create(config: &Config) -> Result<Ledger, Exit> {
    if !config.store_is_named {
        return open_existing(config);
    }
    let spool_dir = config.ledger.spool.as_ref().map(|spool| spool.dir.as_path());
    let (ledger, is_new) =
        Ledger::open_or_create(&config.store_url, &read_options(config), spool_dir)
            .map_err(|error| store_error(&error))?;
    if is_new {
        writeln!(std::io::stderr(), "created the store {}", Ledger::shown_url(&config.store_url))?;
    }
    Ok(ledger)
}

/// How a command uses the store: with the configured limits of reads, without a queue of its own.
fn read_options(config: &Config) -> LedgerOptions {
    LedgerOptions { reads: config.ledger.reads, ..LedgerOptions::default() }
}

/// Opens a store to serve from it; creates it and applies migrations where needed.
pub(crate) fn open_to_serve(config: &Config) -> Result<Ledger, Exit> {
    Ledger::open_with(&config.store_url, &config.ledger).map_err(|error| store_error(&error))
}

/// What to do about a store that cannot be opened.
pub(crate) fn store_error(error: &LedgerError) -> Exit {
    let path = match error {
        LedgerError::NoStore { .. } => {
            let advice = "start `keybridge serve` first, or check --config and --store";
            return Exit::Store(anyhow!("{error}: {advice}"));
        }
        LedgerError::OutOfDate { .. } => {
            return Exit::Store(anyhow!("{error}: run `keybridge migrate`"));
        }
        LedgerError::Spool(_) => "ledger.spool_dir",
        _ => "store.url",
    };
    Exit::Config(Problems(vec![Problem { path: path.into(), message: error.to_string() }]))
}

/// Parses a time of the command line.
fn time(text: &str) -> Result<Timestamp, parse::TimeError> {
    parse::time(text, Timestamp::now())
}
