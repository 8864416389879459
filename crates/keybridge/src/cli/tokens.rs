//! `keybridge token`: works on the store directly.

use std::{collections::HashMap, io::Write};

use jiff::Timestamp;
use keybridge_identity::{Accounts, Token};
use keybridge_ledger::record::time_text;
use keybridge_telemetry::escape_controls;
use serde_json::json;

use super::{Cli, Exit, TokenCommand};
use crate::{
    env::Env,
    print::{Table, json_lines},
};

pub(crate) fn command(cli: &Cli, env: &Env, command: &TokenCommand) -> Result<(), Exit> {
    let accounts = Accounts::new(cli.ledger(env)?);
    match command {
        TokenCommand::Create { user, name, expires } => {
            let expires_at = expires
                .map(|expires| Timestamp::now().checked_add(expires))
                .transpose()
                .map_err(anyhow::Error::from)?;
            let (token, secret) = accounts.create_token(user, name.as_deref(), expires_at)?;
            let mut out = std::io::stdout().lock();
            if cli.json {
                let shown = json!({ "id": token.id, "token": secret.expose(), "hint": token.hint });
                writeln!(out, "{shown}")?;
            } else {
                writeln!(out, "{}", secret.expose())?;
                eprintln!(
                    "created token {} for {user}; store it now, it cannot be shown again",
                    token.id,
                    user = escape_controls(user)
                );
            }
            Ok(())
        }
        TokenCommand::List { user } => list(cli, &accounts, &accounts.tokens(user.as_deref())?),
        TokenCommand::Revoke { id } => list(cli, &accounts, &[accounts.revoke_token(*id)?]),
    }
}

fn list(cli: &Cli, accounts: &Accounts, tokens: &[Token]) -> Result<(), Exit> {
    if cli.json {
        return json_lines(tokens);
    }
    let names: HashMap<_, _> =
        accounts.users()?.into_iter().map(|user| (user.id, user.name)).collect();
    let time = |time: Option<Timestamp>| time.map(time_text).unwrap_or_default();
    let mut table = Table::new(["ID", "USER", "NAME", "HINT", "EXPIRES", "LAST USED", "REVOKED"]);
    for token in tokens {
        table.row(&[
            token.id.to_string(),
            names.get(&token.user_id).cloned().unwrap_or_default(),
            token.name.clone().unwrap_or_default(),
            token.hint.clone(),
            time(token.expires_at),
            time(token.last_used_at),
            time(token.revoked_at),
        ]);
    }
    table.print()
}
