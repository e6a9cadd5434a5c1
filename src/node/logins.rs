//! Logins at clouds: what they need of this process and of where its objects come from.

use std::{fmt, sync::Arc};

use crate::{
    objects::Backend,
    registry::login::{AccountToken, AccountTokens, Config, Environment},
};

/// What logins need: the process's own identities, and whoever issues tokens of ServiceAccounts.
pub(super) fn of(backend: &Arc<dyn Backend>, environment: Environment) -> Config {
    Config { environment, accounts: Some(Arc::new(Accounts(Arc::clone(backend)))) }
}

struct Accounts(Arc<dyn Backend>);

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accounts")
    }
}

impl AccountTokens for Accounts {
    fn token<'a>(&'a self, namespace: &'a str, name: &'a str, audiences: &'a [String]) -> AccountToken<'a> {
        Box::pin(async move {
            self.0.references().service_account_token(namespace, name, audiences).await.map_err(Into::into)
        })
    }
}
