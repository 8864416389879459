//! `keybridge user`: works on the store directly.

use keybridge_identity::{Accounts, NewUser, User, UserStatus};
use keybridge_ledger::record::time_text;

use super::{Cli, Exit, UserCommand, open_or_create};
use crate::{
    env::Env,
    print::{Table, json_lines},
};

pub(crate) fn command(cli: &Cli, env: &Env, command: &UserCommand) -> Result<(), Exit> {
    let ledger = match command {
        UserCommand::Create { .. } => open_or_create(&cli.load(env)?)?,
        _ => cli.ledger(env)?,
    };
    let accounts = Accounts::new(ledger);
    let users = match command {
        UserCommand::Create { name, email, role } => {
            let user = NewUser { name: name.clone(), email: email.clone(), role: *role };
            vec![accounts.create_user(&user)?]
        }
        UserCommand::List => accounts.users()?,
        UserCommand::Suspend { name } => {
            vec![accounts.set_user_status(name, UserStatus::Suspended)?]
        }
        UserCommand::Resume { name } => vec![accounts.set_user_status(name, UserStatus::Active)?],
    };
    if cli.json { json_lines(&users) } else { table(&users).print() }
}

fn table(users: &[User]) -> Table {
    let mut table = Table::new(["NAME", "ROLE", "STATUS", "EMAIL", "CREATED"]);
    for user in users {
        table.row(&[
            user.name.clone(),
            user.role.to_string(),
            user.status.to_string(),
            user.email.clone().unwrap_or_default(),
            time_text(user.created_at),
        ]);
    }
    table
}
