//! What an upstream wants to know of those who ask.

use http::HeaderValue;

use super::{PullError, Puller, Way};
use crate::registry::Budget;

impl Puller {
    /// The `WWW-Authenticate` of the upstream's 401 to somebody without credentials; none where it answers otherwise.
    pub async fn challenges(&self, way: &Way, budget: Budget) -> Result<Vec<HeaderValue>, PullError> {
        Ok(self.client.challenges(&way.endpoint, &way.repository, budget).await?)
    }
}
