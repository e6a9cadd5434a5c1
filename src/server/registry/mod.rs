//! The registry listener (contract section 3): the distribution API over the local repositories in the store.
//!
//! A blob is readable through a repository only if it was pushed or mounted there: knowing a digest grants nothing
//! (hardening.md section 5). A push is answered 201 only when its bytes are hashed, synced and linked. The exact bytes
//! of a manifest are stored and served. Failures carry the spec's error bodies; this listener answers 503 where
//! something is amiss here, so that a container runtime goes on to its next host, and never 429, 502 or 504.
//!
//! `access` tells who may do what, `content` reads what is sent, `uploads` holds what is being pushed, `manifests` what is
//! done with manifests; this file tells who is asked.

pub mod access;
mod content;
mod failure;
mod manifests;
mod mirrored;
mod uploads;

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header::LINK, request::Parts};
use hyper::body::Incoming;
use serde::Serialize;

use self::{
    access::{Access, Caller, Need},
    content::Content,
    failure::Failure,
    uploads::Uploads,
};
use super::{
    body::Body,
    entity::{self, Role},
    listener::{Handler, Peer},
    query::Query,
    reply,
    route::{self, Route, RouteError},
};
use crate::{
    blocking,
    class::Class,
    digest::Digest,
    metrics,
    mirror::{Mirror, Upstream},
    oci::{Repository, error_body::ErrorCode},
    store::Store,
};

/// The most entries of one page of a list.
const MAX_PAGE: usize = 1000;

/// By this header some clients know a registry, also where it asks for credentials.
const VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("docker-distribution-api-version"), HeaderValue::from_static("registry/2.0"));

/// Serves the local repositories of a store.
pub struct Registry {
    store: Store,
    /// Whether there are local repositories; if not, every repository is unknown.
    local: bool,
    access: Arc<Access>,
    uploads: Uploads,
    /// Of large manifests that are pushed.
    turns: manifests::Turns,
    linked: Linked,
    mirror: Option<Mirror>,
    /// The upstream that every repository here is of.
    bound: Option<Arc<Upstream>>,
}

type Answer = Result<Response<Body>, Failure>;

impl Registry {
    /// Serves `store`. `local` is `registry.localRepositories`: whether repositories of this registry itself exist.
    pub fn new(store: Store, local: bool) -> Self {
        let (uploads, turns, linked) = (Uploads::default(), manifests::Turns::default(), Linked::default());
        Self { store, local, access: Arc::default(), uploads, turns, linked, mirror: None, bound: None }
    }

    /// With these users and rules for the local repositories.
    pub fn with_access(self, access: Access) -> Self {
        Self { access: Arc::new(access), ..self }
    }

    /// With the mirrored repositories of `mirror`.
    pub fn with_mirror(self, mirror: Mirror) -> Self {
        Self { mirror: Some(mirror), ..self }
    }

    /// With those of one upstream alone, without its name in the path: for clients that know no mirrors.
    pub fn bound_to(self, mirror: Mirror, upstream: Arc<Upstream>) -> Self {
        Self { mirror: Some(mirror), bound: Some(upstream), ..self }
    }

    async fn route(&self, parts: &Parts, body: &mut Content, peer: Peer) -> Answer {
        let query = Query::parse(parts.uri.query()).map_err(|e| Failure::bad_request(e.to_string()))?;
        let path = parts.uri.path();
        let reads = matches!(parts.method, Method::GET | Method::HEAD);
        if let Some(mirror) = &self.mirror
            && let Some(addressed) = mirrored::addressed(mirror, self.bound.as_ref(), path, &query, reads)?
        {
            return mirrored::answer(mirror, &addressed, parts, &query, peer).await;
        }
        let route = match route::parse(parts.uri.path()) {
            Ok(Route::Base) => return Box::pin(self.base(parts, peer)).await,
            Ok(route) => route,
            Err(error) => return Err(refused_route(error, reads)),
        };
        let upstream = query.get("ns").map_err(|e| Failure::bad_request(e.to_string()))?;
        if upstream.is_some() || !self.local {
            // Upstreams that are mirrored are read-only, and this is none of them.
            return Err(match reads {
                true => Failure::new(ErrorCode::NameUnknown, Class::NotFound),
                false => Failure::method_not_allowed("GET, HEAD"),
            });
        }
        self.local(route, parts, &query, body, peer).await
    }

    /// A request to a local repository, or about them.
    async fn local(&self, route: Route, parts: &Parts, query: &Query<'_>, body: &mut Content, peer: Peer) -> Answer {
        let caller = self.access.caller(&parts.headers, peer).await?;
        let readable = match Need::of(&route, &parts.method) {
            Some((repository, need)) => self.access.check(&caller, repository, need)?,
            None => true,
        };
        // What most requests are for goes without a move to the heap, and without the room that all else would need.
        let other: Pin<Box<dyn Future<Output = Answer> + Send>> = match route {
            Route::Blob(..) if !readable => return Err(Failure::new(ErrorCode::BlobUnknown, Class::NotFound)),
            Route::Blob(repository, digest) => return self.blob(parts, repository, digest).await,
            Route::Manifest(..) if !readable => return Err(manifests::unknown()),
            Route::Manifest(repository, selector) => Box::pin(self.manifest(parts, query, body, repository, selector)),
            Route::Base => Box::pin(self.base(parts, peer)),
            Route::Catalog => Box::pin(self.catalog(parts, query, caller)),
            Route::Tags(repository) => Box::pin(self.tags(parts, query, repository, readable)),
            Route::Referrers(repository, digest) => {
                Box::pin(self.referrers(parts, query, repository, digest, readable))
            }
            Route::Uploads(repository) => Box::pin(self.begin_upload(parts, query, body, repository, caller, peer)),
            Route::Upload(repository, id) => Box::pin(self.upload(parts, query, body, repository, id, &caller)),
        };
        other.await
    }

    async fn base(&self, parts: &Parts, peer: Peer) -> Answer {
        only_reads(parts)?;
        // Where all that there is here is one upstream's, that is meant.
        if !self.local
            && let Some(mirror) = &self.mirror
            && let Some(upstream) = mirror.only()
        {
            return mirrored::door(mirror, upstream, parts, peer).await;
        }
        if self.local {
            let caller = self.access.caller(&parts.headers, peer).await;
            caller.and_then(|caller| self.access.greet(&caller)).map_err(|failure| failure.header(VERSION))?;
        }
        let mut out = reply::bytes(StatusCode::OK, "application/json", "{}", None);
        out.headers_mut().insert(VERSION.0, VERSION.1);
        Ok(out)
    }

    async fn blob(&self, parts: &Parts, repository: Repository, digest: Digest) -> Answer {
        let unknown = || Failure::new(ErrorCode::BlobUnknown, Class::NotFound);
        match parts.method {
            Method::GET | Method::HEAD => {
                let link = (repository, digest);
                if !self.linked.contains(&link) {
                    let store = self.store.clone();
                    let (there, link) = blocking::io(move || (store.local(&link.0).has_blob(&link.1), link)).await;
                    if !there? {
                        return Err(unknown());
                    }
                    self.linked.insert(link);
                }
                // Pushed content has no other source: gone is gone, and 404 makes a client push it again.
                let blob = super::open(&self.store, &digest).await?.ok_or_else(unknown)?;
                Ok(entity::respond(&parts.method, &parts.headers, blob, &Role::Blob))
            }
            Method::DELETE => {
                let store = self.store.clone();
                let link = (repository, digest);
                self.linked.remove(&link);
                let (there, link) = blocking::io(move || (store.local(&link.0).delete_blob(&link.1), link)).await;
                // Once more: a read in between may have found the link just before it went.
                self.linked.remove(&link);
                if there? { Ok(reply::empty(StatusCode::ACCEPTED)) } else { Err(unknown()) }
            }
            _ => Err(Failure::method_not_allowed("GET, HEAD, DELETE")),
        }
    }

    async fn tags(&self, parts: &Parts, query: &Query<'_>, repository: Repository, readable: bool) -> Answer {
        #[derive(Serialize)]
        struct Tags {
            name: String,
            tags: Vec<String>,
        }
        only_reads(parts)?;
        let page = Page::parse(query)?;
        if !readable {
            return Err(Failure::new(ErrorCode::NameUnknown, Class::NotFound));
        }
        let store = self.store.clone();
        let (name, tags, known) = blocking::io(move || {
            let tags = store.local(&repository).tags()?;
            let known = !tags.is_empty() || store.local_repositories()?.contains(&repository);
            Ok::<_, Failure>((repository, tags, known))
        })
        .await?;
        if !known {
            return Err(Failure::new(ErrorCode::NameUnknown, Class::NotFound));
        }
        let (tags, next) = page.cut(tags.iter().map(|tag| tag.as_str()));
        let link = next.map(|next| format!("/v2/{name}/tags/list?{next}"));
        paged(&Tags { name: name.to_string(), tags }, link)
    }

    async fn catalog(&self, parts: &Parts, query: &Query<'_>, caller: Caller) -> Answer {
        #[derive(Serialize)]
        struct Catalog {
            repositories: Vec<String>,
        }
        only_reads(parts)?;
        self.access.check_list(&caller)?;
        let page = Page::parse(query)?;
        let (store, access) = (self.store.clone(), Arc::clone(&self.access));
        let mut names = blocking::io(move || store.local_repositories()).await?;
        names.retain(|name| access.may(&caller, name, Need::Read));
        let (repositories, next) = page.cut(names.iter().map(|name| name.as_str()));
        paged(&Catalog { repositories }, next.map(|next| format!("/v2/_catalog?{next}")))
    }
}

impl Handler for Registry {
    const LISTENER: metrics::Listener = metrics::Listener::Registry;

    async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let (parts, incoming) = request.into_parts();
        let mut body = Content::new(&parts, incoming);
        let answer = self.route(&parts, &mut body, peer).await;
        answer.unwrap_or_else(|failure| body.refused(failure))
    }

    fn refuse(status: StatusCode) -> Response<Body> {
        let failure = Failure::bad_request(status.canonical_reason().unwrap_or_default().into());
        failure.status(status).into_response()
    }
}

fn only_reads(parts: &Parts) -> Result<(), Failure> {
    match parts.method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Failure::method_not_allowed("GET, HEAD")),
    }
}

fn refused_route(error: RouteError, reads: bool) -> Failure {
    let text = error.to_string();
    let failure = match error {
        RouteError::Unknown | RouteError::TooLong => {
            Failure::new(ErrorCode::Unsupported, Class::Client).status(StatusCode::NOT_FOUND)
        }
        RouteError::Spelling | RouteError::Name => Failure::new(ErrorCode::NameInvalid, Class::Client),
        RouteError::Digest(source) => {
            return Failure::new(ErrorCode::DigestInvalid, Class::Client).message(source.to_string());
        }
        // What cannot be a tag is not there; the conformance suite asks for `.INVALID_MANIFEST_NAME`.
        RouteError::Tag(_) if reads => Failure::new(ErrorCode::ManifestUnknown, Class::NotFound),
        RouteError::Tag(_) => Failure::new(ErrorCode::ManifestInvalid, Class::Client),
        RouteError::Upload => Failure::new(ErrorCode::BlobUploadUnknown, Class::NotFound),
    };
    failure.message(text)
}

/// Which part of a list is wanted (distribution-spec 1.1, "Listing Tags").
struct Page {
    count: Option<usize>,
    last: Option<String>,
}

impl Page {
    fn parse(query: &Query<'_>) -> Result<Self, Failure> {
        let bad = |e: super::query::QueryError| Failure::bad_request(e.to_string());
        let count = match query.get("n").map_err(bad)? {
            None => None,
            Some(text) => match text.parse::<usize>() {
                Ok(count) => Some(count),
                Err(_) => return Err(Failure::bad_request(format!("n is not a number: {text:?}"))),
            },
        };
        Ok(Self { count, last: query.get("last").map_err(bad)?.map(str::to_string) })
    }

    /// This page of a sorted list, and the query of the next one where there is more.
    fn cut<'a>(&self, all: impl Iterator<Item = &'a str>) -> (Vec<String>, Option<String>) {
        let count = self.count.unwrap_or(MAX_PAGE).min(MAX_PAGE);
        let mut rest = all.filter(|name| self.last.as_deref().is_none_or(|last| *name > last));
        let page: Vec<String> = rest.by_ref().take(count).map(str::to_string).collect();
        let more = rest.next().is_some();
        // Names and tags hold nothing that would have to be escaped.
        let next = page.last().filter(|_| more).map(|last| format!("n={count}&last={last}"));
        (page, next)
    }
}

fn paged(list: &impl Serialize, next: Option<String>) -> Answer {
    let mut out = reply::json(StatusCode::OK, list, None);
    if let Some(value) = next.and_then(|next| HeaderValue::try_from(format!("<{next}>; rel=\"next\"")).ok()) {
        out.headers_mut().insert(LINK, value);
    }
    Ok(out)
}

/// Links that were found on disk a moment ago, so that a hot blob is served without asking the disk again. Removed
/// with the link; forgotten after a minute in case something else removes one.
struct Linked(RwLock<Found>);

struct Found {
    links: HashSet<(Repository, Digest)>,
    since: Instant,
}

impl Linked {
    const FOR: Duration = Duration::from_secs(60);
    const MAX: usize = 10_000;

    fn contains(&self, link: &(Repository, Digest)) -> bool {
        let found = self.0.read().unwrap_or_else(PoisonError::into_inner);
        found.links.contains(link) && found.since.elapsed() < Self::FOR
    }

    fn insert(&self, link: (Repository, Digest)) {
        let mut found = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if found.links.len() >= Self::MAX || found.since.elapsed() >= Self::FOR {
            found.links.clear();
            found.since = Instant::now();
        }
        found.links.insert(link);
    }

    fn remove(&self, link: &(Repository, Digest)) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).links.remove(link);
    }
}

impl Default for Linked {
    fn default() -> Self {
        Self(RwLock::new(Found { links: HashSet::new(), since: Instant::now() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(query: &str) -> (Vec<String>, Option<String>) {
        let query = Query::parse(Some(query)).unwrap();
        Page::parse(&query).ok().unwrap().cut(["a", "b", "c", "d"].into_iter())
    }

    #[test]
    fn lists_are_cut_into_pages() {
        for (query, page, next) in [
            ("", &["a", "b", "c", "d"][..], None),
            ("n=2", &["a", "b"], Some("n=2&last=b")),
            ("n=2&last=b", &["c", "d"], None),
            ("n=4", &["a", "b", "c", "d"], None),
            ("n=0", &[], None),
            ("last=bb", &["c", "d"], None),
            ("last=z", &[], None),
            ("n=1&last=0", &["a"], Some("n=1&last=a")),
        ] {
            assert_eq!(cut(query), (page.iter().map(|s| s.to_string()).collect(), next.map(str::to_string)), "{query}");
        }
        for bad in ["n=x", "n=-1", "n=1&n=2"] {
            assert!(Page::parse(&Query::parse(Some(bad)).unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_removed_link_is_not_remembered() {
        let linked = Linked::default();
        let link = ("a".parse().unwrap(), Digest::sha256(b""));
        assert!(!linked.contains(&link));
        linked.insert(link.clone());
        assert!(linked.contains(&link));
        linked.remove(&link);
        assert!(!linked.contains(&link));
    }
}
