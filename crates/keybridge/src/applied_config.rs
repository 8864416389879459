//! The configuration in force while the process serves, and the last reload.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use keybridge_console::{Configuration, LastReload as ReloadView, Setting, SettingOrigin};
use keybridge_ledger::record::time_text;
use uuid::Uuid;

use crate::{
    admin_view::problem,
    config::{
        Problem, Problems,
        settings::{self, Origin, Settings},
    },
    reload::Reloaded,
};

/// The configuration in force, without secrets.
#[derive(Debug)]
pub(crate) struct AppliedConfig {
    started_at: Timestamp,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    restart_needed: Vec<&'static str>,
    last_reload: Option<LastReload>,
}

/// A reload.
#[derive(Debug)]
pub(crate) struct LastReload {
    at: Timestamp,
    requested_by: String,
    /// What is wrong with the configuration, if it was not applied.
    result: Result<Vec<Problem>, Vec<Problem>>,
}

impl LastReload {
    /// A reload that has just ended.
    pub(crate) fn now(requested_by: &str, result: &Result<Reloaded, Problems>) -> Self {
        let result = match result {
            Ok(reloaded) => Ok(reloaded.warnings.clone()),
            Err(problems) => Err(problems.0.clone()),
        };
        Self { at: Timestamp::now(), requested_by: requested_by.into(), result }
    }
}

impl AppliedConfig {
    /// The configuration of a start.
    pub(crate) fn new(settings: Settings) -> Self {
        let state = State { settings, restart_needed: Vec::new(), last_reload: None };
        Self { started_at: Timestamp::now(), state: Mutex::new(state) }
    }

    /// The settings of a reload are in force, except for those that need a restart.
    pub(crate) fn replace(&self, mut settings: Settings, restart_needed: &[&'static str]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        settings.keep(&state.settings, restart_needed);
        state.settings = settings;
        state.restart_needed = restart_needed.to_vec();
    }

    /// Remembers a reload, whether it succeeded or not.
    pub(crate) fn note_reload(&self, reload: LastReload) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).last_reload = Some(reload);
    }

    /// What the API shows of it.
    pub(crate) fn view(&self, replica: Uuid) -> Configuration {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Configuration {
            version: env!("CARGO_PKG_VERSION"),
            replica: replica.to_string(),
            started_at: time_text(self.started_at),
            file: state.settings.file.clone(),
            settings: state.settings.settings.iter().cloned().map(setting).collect(),
            restart_needed: state.restart_needed.clone(),
            last_reload: state.last_reload.as_ref().map(reload_view),
        }
    }
}

fn setting(setting: settings::Setting) -> Setting {
    let settings::Setting { name, value, origin } = setting;
    let (origin, variable) = match origin {
        Origin::Default => (SettingOrigin::Default, None),
        Origin::File => (SettingOrigin::File, None),
        Origin::Environment(variable) => (SettingOrigin::Environment, Some(variable)),
        Origin::CommandLine => (SettingOrigin::CommandLine, None),
    };
    Setting { name, value, origin, variable }
}

fn reload_view(reload: &LastReload) -> ReloadView {
    let (warnings, problems) = match &reload.result {
        Ok(warnings) => (warnings.clone(), Vec::new()),
        Err(problems) => (Vec::new(), problems.clone()),
    };
    ReloadView {
        at: time_text(reload.at),
        requested_by: reload.requested_by.clone(),
        applied: reload.result.is_ok(),
        problems: problems.into_iter().map(problem).collect(),
        warnings: warnings.into_iter().map(problem).collect(),
    }
}
