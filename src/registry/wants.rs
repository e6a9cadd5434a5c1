//! What a registry wants to know of those who ask, in its own words: for whoever passes that on to the one who can tell.

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};

use super::{Budget, Client, Endpoint, Inner, call::Call, error::RegistryError, exchange::Send, within};
use crate::{metrics::RequestKind, oci::Repository};

/// The most challenges that are passed on, and the longest of them, in bytes.
const MAX_CHALLENGES: usize = 8;
const MAX_CHALLENGE: usize = 4 << 10;

/// How a registry answered `GET /v2/` (distribution-spec 1.1, end-1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The status; 200 welcomes.
    pub status: StatusCode,
    /// Its `WWW-Authenticate`.
    pub challenges: Vec<HeaderValue>,
}

impl Client {
    /// Greets the registry with somebody's own `Authorization`, or without: that goes to the registry alone, never to
    /// where it redirects.
    pub async fn greeting(
        &self,
        at: &Endpoint,
        authorization: Option<&HeaderValue>,
        budget: Budget,
    ) -> Result<Greeting, RegistryError> {
        within(budget, at, self.0.greeting(at, authorization, budget)).await
    }

    /// The `WWW-Authenticate` of a repository's 401 to somebody without credentials; none where it answers otherwise.
    pub async fn challenges(
        &self,
        at: &Endpoint,
        repository: &Repository,
        budget: Budget,
    ) -> Result<Vec<HeaderValue>, RegistryError> {
        within(budget, at, self.0.challenges(at, repository, budget)).await
    }
}

impl Inner {
    async fn challenges(
        &self,
        at: &Endpoint,
        repository: &Repository,
        budget: Budget,
    ) -> Result<Vec<HeaderValue>, RegistryError> {
        let session = self.session(at).await?;
        // Which tag does not matter: registries ask who it is before they look.
        let rest = format_args!("manifests/latest");
        let call = Call::new(RequestKind::ManifestHead, Method::HEAD, repository, rest, budget);
        let mut target = self.base(&session, &call).await?;
        target.path_and_query.clone_from(&call.path);
        let send =
            Send { kind: call.kind, method: &call.method, headers: HeaderMap::new(), body: &call.body, private: true };
        let (parts, body) = self.follow(&session, &call, send, target).await?;
        body.discard().await;
        if parts.status != StatusCode::UNAUTHORIZED {
            return Ok(Vec::new());
        }
        Ok(challenges(&parts.headers))
    }

    async fn greeting(
        &self,
        at: &Endpoint,
        authorization: Option<&HeaderValue>,
        budget: Budget,
    ) -> Result<Greeting, RegistryError> {
        let session = self.session(at).await?;
        let call = Call::base(budget);
        let target = self.base(&session, &call).await?;
        let headers = authorization.map(|value| (AUTHORIZATION, value.clone())).into_iter().collect();
        let send = Send { kind: call.kind, method: &call.method, headers, body: &call.body, private: true };
        let (parts, body) = self.follow(&session, &call, send, target).await?;
        body.discard().await;
        Ok(Greeting { status: parts.status, challenges: challenges(&parts.headers) })
    }
}

fn challenges(headers: &HeaderMap) -> Vec<HeaderValue> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter(|value| value.len() <= MAX_CHALLENGE);
    values.take(MAX_CHALLENGES).cloned().collect()
}
