//! Why objects could not be applied, deleted or waited for.

use super::api::CallError;
use crate::{apply::object::Id, class::Class};

/// Why a pass over a cluster did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server does not know the kind.
    #[error("{id}: no matches for kind {:?} in version {:?}; is its CustomResourceDefinition installed?", .id.kind, .id.api_version())]
    UnknownKind {
        /// The object.
        id: Box<Id>,
    },
    /// The server refuses an object before anything of its stage is applied.
    #[error("{id} dry-run failed{}: {source}", shown(.source))]
    DryRun {
        /// The object.
        id: Box<Id>,
        /// Why.
        #[source]
        source: CallError,
    },
    /// There is no such thing to apply to: mostly, no such namespace.
    #[error("{id} not found: {source}")]
    NotFound {
        /// The object.
        id: Box<Id>,
        /// Why.
        #[source]
        source: CallError,
    },
    /// The server refuses.
    #[error("{id} {what} failed: {source}")]
    Call {
        /// The object.
        id: Box<Id>,
        /// What was tried: `apply`, `query`, `delete`, …
        what: &'static str,
        /// Why.
        #[source]
        source: CallError,
    },
    /// Several objects could not be deleted.
    #[error("delete failed, errors: {}", .failed.iter().map(|e| crate::class::chain(e)).collect::<Vec<_>>().join("; "))]
    Prune {
        /// One of each.
        failed: Vec<ApplyError>,
    },
    /// An object that is recreated does not go.
    #[error(
        "{id} immutable field detected, and the object is still being deleted after {seconds} s; its finalizers hold it"
    )]
    StillThere {
        /// The object.
        id: Box<Id>,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Not all are healthy.
    #[error("{}: [{}]", if *.timed_out { "timeout waiting for" } else { "failed early due to stalled resources" }, .unhealthy.join(", "))]
    Unhealthy {
        /// Whether there was no more time, in contrast to no more hope.
        timed_out: bool,
        /// `Deployment/ns/name status: 'InProgress': why`.
        unhealthy: Vec<String>,
    },
    /// The wait was given up, since something newer is to be applied.
    #[error("the health checks were given up for a newer pass")]
    Canceled,
}

fn shown(error: &CallError) -> String {
    match error {
        CallError::Refused { reason, .. } if !reason.is_empty() => format!(" ({reason})"),
        _ => String::new(),
    }
}

/// What of an error may be shown: of a Secret no value.
fn shown_of(id: &Id, error: CallError) -> CallError {
    if id.group.is_empty() && id.kind == "Secret" { error.without_values() } else { error }
}

impl ApplyError {
    pub(super) fn call(id: &Id, what: &'static str, source: CallError) -> Self {
        let source = shown_of(id, source);
        let id = Box::new(id.clone());
        if source.is_not_found() && what == "apply" {
            return Self::NotFound { id, source };
        }
        Self::Call { id, what, source }
    }

    pub(super) fn dry_run(id: &Id, source: CallError) -> Self {
        let source = shown_of(id, source);
        let id = Box::new(id.clone());
        if source.is_not_found() { Self::NotFound { id, source } } else { Self::DryRun { id, source } }
    }

    /// The group of an object whose kind is not served as it was known to be.
    pub fn unserved(&self) -> Option<&str> {
        match self {
            Self::DryRun { id, source } | Self::NotFound { id, source } | Self::Call { id, source, .. } => {
                source.is_unserved().then_some(&id.group)
            }
            _ => None,
        }
    }

    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::UnknownKind { .. } => Class::NotFound,
            Self::DryRun { source, .. } | Self::NotFound { source, .. } | Self::Call { source, .. } => source.class(),
            Self::Prune { failed } => failed.first().map_or(Class::Net, Self::class),
            Self::StillThere { .. } | Self::Unhealthy { .. } | Self::Canceled => Class::Limit,
        }
    }

    /// The condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Prune { .. } => "PruneFailed",
            Self::Unhealthy { .. } => "HealthCheckFailed",
            Self::Canceled => "HealthCheckCanceled",
            _ => "ReconciliationFailed",
        }
    }
}
