//! Uploads: a blob by POST and one PUT, a manifest by PUT (distribution-spec 1.1, "Pushing").

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderValue, Method, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};

use super::{
    Budget, Endpoint, Inner,
    call::{Call, Session},
    error::RegistryError,
    manifest::stated_digest,
    target::Target,
};
use crate::{
    digest::Digest,
    metrics::RequestKind,
    oci::{Repository, Selector},
};

/// An upload whose PUT fails is begun again this often: its session may be gone.
const UPLOADS: u32 = 3;

impl Inner {
    /// `push`: with the scope of a push, so that one token serves the whole of it.
    pub(super) async fn has_blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        digest: &Digest,
        push: bool,
        budget: Budget,
    ) -> Result<bool, RegistryError> {
        let session = self.session(at).await?;
        let mut call =
            Call::new(RequestKind::BlobHead, Method::HEAD, repository, format_args!("blobs/{digest}"), budget);
        call.push = push;
        let known = |status| matches!(status, StatusCode::OK | StatusCode::NOT_FOUND);
        let (parts, _, _) = self.perform(&session, &call, known, None).await?;
        Ok(parts.status == StatusCode::OK)
    }

    pub(super) async fn push_blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        digest: &Digest,
        data: Bytes,
        budget: Budget,
    ) -> Result<(), RegistryError> {
        if self.has_blob(at, repository, digest, true, budget).await? {
            return Ok(());
        }
        let session = self.session(at).await?;
        let mut begun = 1;
        loop {
            let upload = self.begin_upload(&session, repository, budget).await?;
            let mut call =
                Call::new(RequestKind::Push, Method::PUT, repository, format_args!("blobs/uploads/"), budget);
            call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            call.elsewhere = Some(with_digest(upload, digest));
            call.body = data.clone();
            // The registry may have it from an attempt whose answer was lost.
            match self.perform(&session, &call, |status| status == StatusCode::CREATED, None).await {
                Ok((_, body, _)) => {
                    body.discard().await;
                    return Ok(());
                }
                Err(RegistryError::Status { status, .. })
                    if begun < UPLOADS
                        && matches!(status, StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE) =>
                {
                    if self.has_blob(at, repository, digest, true, budget).await? {
                        return Ok(());
                    }
                    begun += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn begin_upload(
        &self,
        session: &Arc<Session>,
        repository: &Repository,
        budget: Budget,
    ) -> Result<Target, RegistryError> {
        let call = Call::new(RequestKind::Push, Method::POST, repository, format_args!("blobs/uploads/"), budget);
        let (parts, body, _) = self.perform(session, &call, |status| status == StatusCode::ACCEPTED, None).await?;
        let target = body.target().clone();
        body.discard().await;
        let location = parts.headers.get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        let upload = location.and_then(|location| target.join(location)).ok_or_else(|| RegistryError::Protocol {
            what: format!("POST {target}"),
            why: "the upload has no usable Location".to_owned(),
        })?;
        if target.https && !upload.https {
            // Registries behind a proxy that ends TLS often name themselves by http; the same host by https is meant.
            if upload.host == target.host {
                return Ok(Target { path_and_query: upload.path_and_query, ..target });
            }
            return Err(RegistryError::Forbidden {
                what: format!("POST {target}"),
                why: format!("it leads the upload from https to {upload}"),
            });
        }
        Ok(upload)
    }

    pub(super) async fn push_manifest(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        media_type: &str,
        data: Bytes,
        budget: Budget,
    ) -> Result<(), RegistryError> {
        let session = self.session(at).await?;
        let mut call = Call::new(RequestKind::Push, Method::PUT, repository, format_args!("manifests/{what}"), budget);
        let media_type = HeaderValue::from_str(media_type).map_err(|_| RegistryError::Protocol {
            what: format!("PUT {}", call.path),
            why: "the media type holds characters that no header may have".to_owned(),
        })?;
        call.headers.insert(CONTENT_TYPE, media_type);
        call.body = data;
        let created = |status| matches!(status, StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED);
        let (parts, body, _) = self.perform(&session, &call, created, None).await?;
        let target = body.target().clone();
        body.discard().await;
        let Some(stated) = stated_digest(&parts.headers, &target)? else { return Ok(()) };
        let actual = Digest::of(stated.algorithm(), &call.body);
        if actual == stated {
            return Ok(());
        }
        Err(RegistryError::Digest {
            what: format!("PUT {target}"),
            told: "Docker-Content-Digest",
            expected: Box::new(actual),
            actual: Box::new(stated),
        })
    }
}

fn with_digest(mut upload: Target, digest: &Digest) -> Target {
    upload.path_and_query.push(if upload.path_and_query.contains('?') { '&' } else { '?' });
    upload.path_and_query.push_str(&format!("digest={digest}"));
    upload
}
