//! Calls to the API server about objects of any kind: paths, bodies, what comes back.
//!
//! Objects are written as JSON and read as metadata alone wherever that is enough: the server then sends no Secret's data,
//! and a list of a thousand objects is small.

use http::{Method, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use tokio::sync::watch;

use super::seen::Metadata;
pub use crate::objects::api::{CallError, Identity};
use crate::{
    apply::managers::MANAGER,
    objects::{
        Leadership,
        api::{Calls, read, segment},
    },
};

/// Objects in one page of a list.
const PAGE: usize = 1000;

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// A kind as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// As in paths.
    pub plural: String,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// The path of a collection, or of all of them.
    fn collection(&self, namespace: &str) -> String {
        let mut path = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if self.namespaced && !namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(&segment(namespace));
        }
        path.push('/');
        path.push_str(&self.plural);
        path
    }

    fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.collection(namespace), segment(name))
    }

    /// Whether it is the kind of Secrets, which are never listed.
    pub fn is_secret(&self) -> bool {
        self.group.is_empty() && self.kind == "Secret"
    }
}

/// What applying came to.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Whether there was none before.
    pub created: bool,
    /// As it is now.
    pub metadata: Metadata,
}

/// The way to the API server; clones share it.
#[derive(Clone, Debug)]
pub struct Api(Calls);

impl Api {
    pub fn new(client: kube::Client, leadership: watch::Receiver<Leadership>) -> Self {
        Self(Calls::new(client).while_leading(leadership))
    }

    /// A document, as Larder itself.
    pub async fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        let headers = [(header::ACCEPT, "application/json")];
        let (_, body) = self.0.call(&Method::GET, path, &Identity::default(), &headers, &[]).await?;
        read(&body)
    }

    /// A whole object; `None` if there is none. That its kind is not served at that path is an error, here and below.
    pub async fn object(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, CallError> {
        self.get(who, &of.object(namespace, name), "application/json").await
    }

    /// An object's metadata; `None` if there is none.
    pub async fn metadata(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Metadata>, CallError> {
        let found: Option<Partial> = self.get(who, &of.object(namespace, name), METADATA).await?;
        Ok(found.map(|partial| partial.metadata))
    }

    /// An object's metadata with all that managers own, as JSON.
    pub async fn managers(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, CallError> {
        self.get(who, &of.object(namespace, name), METADATA).await
    }

    async fn get<T: DeserializeOwned>(&self, who: &Identity, path: &str, accept: &str) -> Result<Option<T>, CallError> {
        match self.0.call(&Method::GET, path, who, &[(header::ACCEPT, accept)], &[]).await {
            Ok((_, body)) => read(&body).map(Some),
            Err(error) if error.is_not_found() && !error.is_unserved() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The metadata of all objects with a label, in one namespace or, where it is empty, in all.
    pub async fn list(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        label: &str,
        mut each: impl FnMut(Metadata),
    ) -> Result<(), CallError> {
        let mut token = String::new();
        loop {
            let path = format!("{}?labelSelector={}&limit={PAGE}{token}", of.collection(namespace), segment(label));
            let (_, body) = self.0.call(&Method::GET, &path, who, &[(header::ACCEPT, METADATA_LIST)], &[]).await?;
            let page: Page = read(&body)?;
            page.items.into_iter().flatten().for_each(|partial| each(partial.metadata));
            match page.metadata.r#continue {
                Some(next) if !next.is_empty() => token = format!("&continue={}", segment(&next)),
                _ => return Ok(()),
            }
        }
    }

    /// Server-side apply, with force: conflicts are ours to win.
    pub async fn apply(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
        body: &[u8],
        dry_run: bool,
    ) -> Result<Applied, CallError> {
        let dry = if dry_run { "&dryRun=All" } else { "" };
        let path = format!("{}?fieldManager={MANAGER}&force=true{dry}", of.object(namespace, name));
        let headers = [(header::ACCEPT, METADATA), (header::CONTENT_TYPE, "application/apply-patch+yaml")];
        let (status, body) = self.0.call(&Method::PATCH, &path, who, &headers, body).await?;
        let partial: Partial = read(&body)?;
        Ok(Applied { created: status == StatusCode::CREATED, metadata: partial.metadata })
    }

    /// A JSON patch.
    pub async fn patch(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), CallError> {
        let path = format!("{}?fieldManager={MANAGER}", of.object(namespace, name));
        let headers = [(header::ACCEPT, METADATA), (header::CONTENT_TYPE, "application/json-patch+json")];
        self.0.call(&Method::PATCH, &path, who, &headers, patch.to_string().as_bytes()).await.map(drop)
    }

    /// Deletes exactly the object that was looked at, and what it owns in the background. That it is gone is no error.
    pub async fn delete(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
        seen: &Metadata,
    ) -> Result<(), CallError> {
        let options = json!({
            "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background",
            "preconditions": {"uid": seen.uid, "resourceVersion": seen.resource_version},
        });
        let headers = [(header::ACCEPT, METADATA), (header::CONTENT_TYPE, "application/json")];
        let path = of.object(namespace, name);
        match self.0.call(&Method::DELETE, &path, who, &headers, options.to_string().as_bytes()).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() && !error.is_unserved() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[derive(Deserialize)]
struct Partial {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    /// `null` where nothing of a page has the label: the last of several often is such a one.
    items: Option<Vec<Partial>>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(default)]
    r#continue: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_hold_nothing() {
        for (text, items) in [
            (r#"{"metadata": {"resourceVersion": "7"}, "items": null}"#, 0),
            (r#"{"metadata": {}, "items": []}"#, 0),
            (r#"{"metadata": {"continue": "x"}}"#, 0),
            (r#"{"metadata": {}, "items": [{"metadata": {"name": "a"}}]}"#, 1),
        ] {
            let page: Page = read(text.as_bytes()).unwrap();
            assert_eq!(page.items.into_iter().flatten().count(), items, "{text}");
        }
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let resource = |group: &str, plural: &str, namespaced| Resource {
            group: group.into(),
            version: "v1".into(),
            kind: "K".into(),
            plural: plural.into(),
            namespaced,
        };
        for (of, namespace, name, path) in [
            (resource("", "configmaps", true), "n", "a", "/api/v1/namespaces/n/configmaps/a"),
            (resource("apps", "deployments", true), "n", "a.b", "/apis/apps/v1/namespaces/n/deployments/a.b"),
            (resource("", "namespaces", false), "", "a", "/api/v1/namespaces/a"),
            (
                resource("rbac.authorization.k8s.io", "clusterroles", false),
                "ignored",
                "system:a/../b",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Aa%2F..%2Fb",
            ),
        ] {
            assert_eq!(of.object(namespace, name), path);
        }
        assert_eq!(resource("", "configmaps", true).collection(""), "/api/v1/configmaps");
    }
}
