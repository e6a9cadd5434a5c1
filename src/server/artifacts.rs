//! The artifact listener (contract section 4): the published artifacts, by their paths, and nothing else.
//!
//! A path is looked up as it came, but for an encoded `+`, in the map of what statuses name: there is no directory, no
//! file name and no normalisation that could lead anywhere else, so every other spelling of a path is not there.

use std::borrow::Cow;

use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CACHE_CONTROL, LOCATION},
};
use hyper::body::Incoming;

use super::{
    body::Body,
    entity::{self, Role},
    listener::{Handler, Peer},
    reply,
};
use crate::{artifact::publish::Published, class::Class, digest::Digest, metrics, store::Store};

/// The name under which an object's newest artifact is found.
const LATEST: &str = "latest.tar.gz";
/// The longest path that is looked up, in bytes.
const MAX_PATH: usize = 4 << 10;

/// Serves what is published from the store.
pub struct Artifacts {
    store: Store,
    published: Published,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Root,
    Artifact(Digest),
    /// The file beside `latest.tar.gz`.
    Latest(String),
    Nothing,
}

impl Artifacts {
    /// Serves the artifacts in `published` with the bytes in `store`.
    pub fn new(store: Store, published: Published) -> Self {
        Self { store, published }
    }

    async fn artifact(&self, request: &Request<Incoming>, digest: Digest) -> Response<Body> {
        match super::open(&self.store, &digest).await {
            Ok(Some(blob)) => entity::respond(request.method(), request.headers(), blob, &Role::Artifact),
            Ok(None) => {
                tracing::warn!(%digest, path = request.uri().path(), "a published artifact is not held");
                if let Some(path) = decoded(request.uri().path()).strip_prefix('/') {
                    self.published.miss(path);
                }
                not_here(Class::Disk)
            }
            Err(error) => {
                let class = error.class();
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a published artifact cannot be read");
                not_here(class)
            }
        }
    }
}

impl Handler for Artifacts {
    const LISTENER: metrics::Listener = metrics::Listener::Artifacts;

    async fn handle(&self, request: Request<Incoming>, _: Peer) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let refusal = reply::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD", Some(Class::Client));
            return reply::method_not_allowed(refusal, "GET, HEAD");
        }
        match target(&self.published, request.uri().path()) {
            Target::Artifact(digest) => self.artifact(&request, digest).await,
            Target::Latest(file) => redirect(&file),
            Target::Root => reply::text(StatusCode::OK, "Larder serves artifacts here.", None),
            // Known to be named by none is another thing than not known to be named.
            Target::Nothing if self.published.is_partial() => {
                let text = "which artifacts there are is not known now: the API server is away";
                reply::retry_later(reply::text(StatusCode::SERVICE_UNAVAILABLE, text, Some(Class::Net)))
            }
            Target::Nothing => {
                reply::text(StatusCode::NOT_FOUND, "no status names an artifact here", Some(Class::NotFound))
            }
        }
    }
}

fn target(published: &Published, path: &str) -> Target {
    if path == "/" {
        return Target::Root;
    }
    if path.len() > MAX_PATH {
        return Target::Nothing;
    }
    let path = decoded(path);
    let Some(path) = path.strip_prefix('/') else { return Target::Nothing };
    if let Some(digest) = published.get(path) {
        return Target::Artifact(digest);
    }
    let latest = path.strip_suffix(LATEST).and_then(|p| p.strip_suffix('/')).and_then(|dir| published.latest(dir));
    match latest.as_deref().and_then(|path| path.rsplit('/').next()) {
        Some(file) => Target::Latest(file.to_string()),
        None => Target::Nothing,
    }
}

/// A path with the `+` of a chart's version as it is: some clients encode it. Nothing else is decoded.
fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains("%2") {
        return Cow::Borrowed(path);
    }
    Cow::Owned(path.replace("%2B", "+").replace("%2b", "+"))
}

/// Leads to the file in the same directory; relative, so that it also holds behind a proxy that adds a prefix.
fn redirect(file: &str) -> Response<Body> {
    let Ok(location) = HeaderValue::try_from(file) else {
        return reply::text(StatusCode::NOT_FOUND, "no status names an artifact here", Some(Class::NotFound));
    };
    let mut out = reply::empty(StatusCode::FOUND);
    out.headers_mut().insert(LOCATION, location);
    out.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    out
}

fn not_here(class: Class) -> Response<Body> {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    reply::retry_later(reply::text(status, "the artifact is known but cannot be read here now", Some(class)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_published_paths_lead_anywhere() {
        let published = Published::default();
        let digest = Digest::sha256(b"a");
        let path = format!("ocirepository/default/app/{}.tar.gz", digest.hex());
        published.insert(&path, digest);
        published.set_latest(&path);
        assert_eq!(target(&published, &format!("/{path}")), Target::Artifact(digest));
        let file = format!("{}.tar.gz", digest.hex());
        assert_eq!(target(&published, "/ocirepository/default/app/latest.tar.gz"), Target::Latest(file));
        assert_eq!(target(&published, "/"), Target::Root);
        for nothing in [
            "".to_string(),
            "*".to_string(),
            path.clone(),
            format!("//{path}"),
            format!("/{path}/"),
            format!("/./{path}"),
            format!("/x/../{path}"),
            format!("/{}", path.replace('/', "%2f")),
            format!("/{}", path.replace("app", "a%70p")),
            format!("/{path}%00"),
            "/ocirepository/default/app".to_string(),
            "/ocirepository/default/app/".to_string(),
            "/ocirepository/default/other/latest.tar.gz".to_string(),
            "/latest.tar.gz".to_string(),
            "/%2e%2e/..%2f%2fetc/passwd".to_string(),
            format!("/{}", "a".repeat(5000)),
        ] {
            assert_eq!(target(&published, &nothing), Target::Nothing, "{nothing}");
        }
        published.remove(&path);
        assert_eq!(target(&published, &format!("/{path}")), Target::Nothing);
        assert_eq!(target(&published, "/ocirepository/default/app/latest.tar.gz"), Target::Nothing);
    }
}
