//! Why a pass failed, as the conditions tell it: condition, reason and message are Flux's (flux.md section 1.4).

use std::time::Duration;

use crate::{
    artifact::build::ArtifactError,
    class::{Class, chain},
    objects::condition::kinds,
    pull::{PullError, Wanted},
    store::StoreError,
};

/// Why a pass failed, as the conditions tell it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub(super) condition: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) class: Class,
    retry_after: Option<Duration>,
}

impl Failure {
    /// A failure under `condition`.
    pub fn new(condition: &'static str, reason: &'static str, class: Class, message: impl Into<String>) -> Self {
        Self { condition, reason, message: message.into(), class, retry_after: None }
    }

    /// The class of failure.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether what was found is not signed as the object asks.
    pub(super) fn is_verification(&self) -> bool {
        super::verification::is_verification(self.reason)
    }

    /// The same, not to be tried again before the registry said so.
    pub(super) fn after(self, error: &PullError) -> Self {
        Self { retry_after: error.registry().and_then(|e| e.retry_after()), ..self }
    }

    /// Whether only another spec helps, or another chart (flux.md section 3).
    pub(super) fn is_stalled(&self) -> bool {
        self.reason == "ValuesFilesError"
    }

    /// When the registry asked to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(super) fn pulling(error: &PullError, wanted: &Wanted, chart: bool) -> Self {
        let class = error.class();
        let (condition, reason) = match (error.registry(), error) {
            (Some(registry), _) if registry.is_authentication_setup() => (kinds::FETCH_FAILED, "AuthenticationFailed"),
            _ if chart && class != Class::Disk => (kinds::BUILD_FAILED, "ChartPullError"),
            (_, PullError::Version(_) | PullError::Tags(_)) => (kinds::FETCH_FAILED, "ReadOperationFailed"),
            _ if class == Class::Disk => (kinds::STORAGE_OPERATION_FAILED, "ArchiveOperationFailed"),
            _ => (kinds::FETCH_FAILED, "OCIArtifactPullFailed"),
        };
        let message = match reason {
            "ReadOperationFailed" => format!("failed to determine the artifact tag: {}", chain(error)),
            _ => format!("failed to pull artifact ({wanted}): {}", chain(error)),
        };
        Self::new(condition, reason, class, message).after(error)
    }

    pub(super) fn building(error: &ArtifactError, chart: bool) -> Self {
        let class = error.class();
        let (condition, reason) = match class {
            _ if chart && class != Class::Disk => (kinds::BUILD_FAILED, "ChartPullError"),
            Class::Disk => (kinds::STORAGE_OPERATION_FAILED, "ArchiveOperationFailed"),
            _ => (kinds::FETCH_FAILED, "OCIArtifactLayerOperationFailed"),
        };
        Self::new(condition, reason, class, format!("failed to make the artifact: {}", chain(error)))
    }

    pub(super) fn storing(error: &StoreError) -> Self {
        let message = format!("failed to store the artifact: {}", chain(error));
        Self::new(kinds::STORAGE_OPERATION_FAILED, "ArchiveOperationFailed", error.class(), message)
    }
}
