//! What an upstream wants to know of those who ask.

use http::HeaderValue;

use super::{PullError, Puller, Way};
use crate::registry::{Budget, Endpoint, Greeting};

impl Puller {
    /// The `WWW-Authenticate` of the upstream's 401 to somebody without credentials; none where it answers otherwise.
    pub async fn challenges(&self, way: &Way, budget: Budget) -> Result<Vec<HeaderValue>, PullError> {
        Ok(self.client.challenges(&way.endpoint, &way.repository, budget).await?)
    }

    /// How the upstream answers `GET /v2/` to somebody with this `Authorization`, or without.
    pub async fn greeting(
        &self,
        at: &Endpoint,
        authorization: Option<&HeaderValue>,
        budget: Budget,
    ) -> Result<Greeting, PullError> {
        Ok(self.client.greeting(at, authorization, budget).await?)
    }
}
