//! What is being pushed: blobs on their way in (distribution-spec 1.1, "Pushing blobs").
//!
//! An upload's bytes go to a file without a name, hashed as they come; its session lives in memory. A crash, or an
//! hour without a request, ends it without a trace. One request at a time writes to a session; a client that breaks
//! off in the middle finds what had arrived and may go on from there. Nothing is readable before the digest was
//! compared and the bytes were synced.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE},
    request::Parts,
};
use tokio::sync::OwnedMutexGuard;

use super::{
    Answer, Registry,
    access::{Caller, Need},
    content::Content,
    failure::{Failure, received_range},
};
use crate::{
    blocking,
    class::Class,
    digest::{Algorithm, Digest},
    oci::{Repository, error_body::ErrorCode},
    server::{body::Body, entity::DOCKER_CONTENT_DIGEST, listener::Peer, query::Query, reply, route::UploadId},
    store::{Durability, Ingest, Scratch, StoreError},
};

/// How many uploads there may be at once; each holds a file descriptor.
const MAX_SESSIONS: usize = 256;
/// From when on an upload without a request gives way to another, where there are too many.
const IDLE: Duration = Duration::from_secs(10);
/// How long an upload is kept without a request.
const EXPIRY: Duration = Duration::from_secs(3600);
/// How much of a body is gathered before it goes to the disk, in bytes: few enough hops between threads, and a bound
/// on what an upload holds in memory.
const GATHER: usize = 1 << 20;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// The uploads that have begun and not ended.
#[derive(Default)]
pub(super) struct Uploads(Arc<Mutex<HashMap<UploadId, Session>>>);

#[derive(Clone)]
struct Session {
    repository: Repository,
    owner: Owner,
    /// `None` once it has ended; locked while a request writes to it.
    scratch: Arc<tokio::sync::Mutex<Option<Scratch>>>,
    /// Bytes taken so far; readable while a request writes.
    received: Arc<AtomicU64>,
    touched: Instant,
}

/// Who began an upload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Owner {
    /// The user; only the same one may go on with it.
    user: Option<Arc<str>>,
    /// From where; a client may go on from elsewhere.
    address: IpAddr,
}

impl Uploads {
    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<UploadId, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session, which ends by itself after [`EXPIRY`] without a request.
    fn begin(&self, repository: Repository, owner: Owner, scratch: Scratch) -> Result<UploadId, Failure> {
        let id = UploadId::random();
        let session = Session {
            repository,
            owner,
            scratch: Arc::new(tokio::sync::Mutex::new(Some(scratch))),
            received: Arc::default(),
            touched: Instant::now(),
        };
        let mut sessions = self.sessions();
        if sessions.len() >= MAX_SESSIONS && !make_room(&mut sessions) {
            let failure = Failure::new(ErrorCode::Unavailable, Class::Limit);
            return Err(failure.message(format!("{MAX_SESSIONS} uploads are under way; try again later")));
        }
        sessions.insert(id, session);
        drop(sessions);
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            let mut wait = EXPIRY;
            loop {
                tokio::time::sleep(wait).await;
                let Some(sessions) = weak.upgrade() else { return };
                let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(session) = sessions.get(&id) else { return };
                let writing = session.scratch.try_lock().is_err();
                wait = if writing { EXPIRY } else { EXPIRY.saturating_sub(session.touched.elapsed()) };
                if wait.is_zero() {
                    sessions.remove(&id);
                    return;
                }
            }
        });
        Ok(id)
    }

    /// The session, if it is one of this repository and this caller.
    fn find(&self, repository: &Repository, id: UploadId, caller: &Caller) -> Result<Session, Failure> {
        let mut sessions = self.sessions();
        match sessions.get_mut(&id) {
            Some(session) if session.repository == *repository && session.owner.user.as_ref() == caller.user() => {
                session.touched = Instant::now();
                Ok(session.clone())
            }
            _ => Err(Failure::new(ErrorCode::BlobUploadUnknown, Class::NotFound)),
        }
    }

    fn end(&self, id: UploadId) {
        self.sessions().remove(&id);
    }
}

/// Ends the upload that has waited longest for a request, of all of whoever has the most, so that one client's
/// forgotten uploads shut out no other. `false` where none has waited for [`IDLE`].
fn make_room(sessions: &mut HashMap<UploadId, Session>) -> bool {
    let mut count: HashMap<&Owner, usize> = HashMap::new();
    for session in sessions.values() {
        *count.entry(&session.owner).or_default() += 1;
    }
    let idle =
        sessions.iter().filter(|(_, session)| session.touched.elapsed() >= IDLE && session.scratch.try_lock().is_ok());
    let longest = idle.max_by_key(|(_, session)| (count.get(&session.owner), session.touched.elapsed()));
    let Some(id) = longest.map(|(id, _)| *id) else { return false };
    sessions.remove(&id).is_some()
}

/// Where an upload's bytes go.
trait Sink: Send + 'static {
    fn write(&mut self, data: &[u8]) -> Result<(), StoreError>;
}

impl Sink for Ingest {
    fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        Ingest::write(self, data)
    }
}

/// A session while one request writes to it. The lock goes with the bytes to the thread that writes them, so a client
/// that goes away in the middle leaves the session as it is after that write.
struct Writing {
    scratch: OwnedMutexGuard<Option<Scratch>>,
    received: Arc<AtomicU64>,
}

impl Sink for Writing {
    fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let Some(scratch) = self.scratch.as_mut() else { return Ok(()) };
        match scratch.write(data) {
            Ok(()) => {
                self.received.fetch_add(data.len() as u64, Relaxed);
                Ok(())
            }
            Err(error) => {
                // Part of `data` may have been taken: nobody can go on from here.
                *self.scratch = None;
                Err(error)
            }
        }
    }
}

impl Registry {
    /// POST: mounts a blob, takes a whole one, or begins an upload.
    pub(super) async fn begin_upload(
        &self,
        parts: &Parts,
        query: &Query<'_>,
        body: &mut Content,
        repository: Repository,
        caller: Caller,
        peer: Peer,
    ) -> Answer {
        if parts.method != Method::POST {
            return Err(Failure::method_not_allowed("POST"));
        }
        let bad = |e: crate::server::query::QueryError| Failure::bad_request(e.to_string());
        if let Some(digest) = query.get("mount").map_err(bad)? {
            let digest = parse_digest(digest)?;
            // From where it is not, or where this caller may not read it, the spec has the client upload it.
            let from = query.get("from").map_err(bad)?;
            if self.mount(from, repository.clone(), digest, caller.clone()).await? {
                return created(&repository, digest);
            }
        } else if let Some(digest) = query.get("digest").map_err(bad)? {
            let digest = parse_digest(digest)?;
            let store = self.store.clone();
            let length = content_length(&parts.headers)?;
            let ingest = blocking::io(move || store.receive(digest, length)).await?;
            let ingest = pump(body, ingest).await?;
            let (store, name) = (self.store.clone(), repository.clone());
            blocking::io(move || {
                let _lease = store.lease(digest);
                ingest.commit(Durability::Now)?;
                store.local(&name).link_blob(&digest)
            })
            .await?;
            return created(&repository, digest);
        }
        if let Some(name) = query.get("digest-algorithm").map_err(bad)?
            && !Algorithm::ALL.iter().any(|algorithm| algorithm.name() == name)
        {
            let failure = Failure::new(ErrorCode::DigestInvalid, Class::Client);
            return Err(failure.message(format!("digests of algorithm {name:?} are not taken")));
        }
        let store = self.store.clone();
        let scratch = blocking::io(move || store.scratch()).await?;
        let owner = Owner { user: caller.user().cloned(), address: peer.address };
        let id = self.uploads.begin(repository.clone(), owner, scratch)?;
        progress(StatusCode::ACCEPTED, &repository, id, 0)
    }

    /// An upload that has begun: its state, more of it, its end.
    pub(super) async fn upload(
        &self,
        parts: &Parts,
        query: &Query<'_>,
        body: &mut Content,
        repository: Repository,
        id: UploadId,
        caller: &Caller,
    ) -> Answer {
        if !matches!(parts.method, Method::GET | Method::HEAD | Method::PATCH | Method::PUT | Method::DELETE) {
            return Err(Failure::method_not_allowed("GET, PATCH, PUT, DELETE"));
        }
        let session = self.uploads.find(&repository, id, caller)?;
        match parts.method {
            Method::PATCH => {
                let writing = self.take(parts, body, id, &session).await?;
                drop(writing);
                progress(StatusCode::ACCEPTED, &repository, id, session.received.load(Relaxed))
            }
            Method::PUT => {
                let digest = query.get("digest").map_err(|e| Failure::bad_request(e.to_string()))?;
                let Some(digest) = digest else {
                    let failure = Failure::new(ErrorCode::DigestInvalid, Class::Client);
                    return Err(failure.message("the last request of an upload names its digest: ?digest="));
                };
                let digest = parse_digest(digest)?;
                let mut writing = self.take(parts, body, id, &session).await?;
                // From here on there is one outcome or another, but no session.
                self.uploads.end(id);
                let Some(scratch) = writing.scratch.take() else {
                    return Err(Failure::new(ErrorCode::BlobUploadUnknown, Class::NotFound));
                };
                let (store, name) = (self.store.clone(), repository.clone());
                blocking::io(move || {
                    let _lease = store.lease(digest);
                    scratch.commit_as(&digest, Durability::Now)?;
                    store.local(&name).link_blob(&digest)
                })
                .await?;
                created(&repository, digest)
            }
            Method::DELETE => {
                self.uploads.end(id);
                Ok(reply::empty(StatusCode::NO_CONTENT))
            }
            _ => progress(StatusCode::NO_CONTENT, &repository, id, session.received.load(Relaxed)),
        }
    }

    /// Links a blob of another local repository here, if it is there and the caller may read it; where none is named,
    /// of any. What a mirror holds is no local repository's (hardening.md section 5.1).
    async fn mount(&self, from: Option<&str>, to: Repository, digest: Digest, caller: Caller) -> Result<bool, Failure> {
        let from: Option<Repository> = match from.map(str::parse) {
            None => None,
            Some(Ok(from)) => Some(from),
            Some(Err(_)) => return Ok(false),
        };
        let (store, access) = (self.store.clone(), Arc::clone(&self.access));
        blocking::io(move || {
            let _lease = store.lease(digest);
            if !store.has(&digest)? {
                return Ok(false);
            }
            let sources = match from {
                Some(from) => vec![from],
                None => store.local_repositories()?,
            };
            for source in sources {
                if access.may(&caller, &source, Need::Read) && store.local(&source).has_blob(&digest)? {
                    store.local(&to).link_blob(&digest)?;
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }

    /// Adds a request's body to a session.
    async fn take(
        &self,
        parts: &Parts,
        body: &mut Content,
        id: UploadId,
        session: &Session,
    ) -> Result<Writing, Failure> {
        let Ok(scratch) = Arc::clone(&session.scratch).try_lock_owned() else {
            let failure = Failure::new(ErrorCode::BlobUploadInvalid, Class::Client).status(StatusCode::CONFLICT);
            return Err(failure.message("another request is writing to this upload"));
        };
        if scratch.is_none() {
            return Err(Failure::new(ErrorCode::BlobUploadUnknown, Class::NotFound));
        }
        let received = session.received.load(Relaxed);
        let length = content_length(&parts.headers)?;
        if let Some(range) = parts.headers.get(CONTENT_RANGE) {
            check_range(range, received, length)?;
        }
        match pump(body, Writing { scratch, received: Arc::clone(&session.received) }).await {
            Ok(writing) => Ok(writing),
            Err(failure) => {
                // A failed write has ended the session; a client that broke off has not.
                if session.scratch.try_lock().is_ok_and(|scratch| scratch.is_none()) {
                    self.uploads.end(id);
                }
                Err(failure)
            }
        }
    }
}

pub(super) fn parse_digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|e: crate::digest::DigestError| {
        Failure::new(ErrorCode::DigestInvalid, Class::Client).message(e.to_string())
    })
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    match headers.get(CONTENT_LENGTH) {
        None => Ok(None),
        Some(value) => match value.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(length) => Ok(Some(length)),
            None => Err(Failure::new(ErrorCode::SizeInvalid, Class::Client)),
        },
    }
}

/// Compares a chunk's `Content-Range` (`<first>-<last>`) with what has arrived, and with the chunk's length.
fn check_range(range: &HeaderValue, received: u64, length: Option<u64>) -> Result<(), Failure> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let parsed = range.to_str().ok().and_then(|text| text.split_once('-'));
    let Some((Some(first), Some(last))) = parsed.map(|(first, last)| (number(first), number(last))) else {
        let failure = Failure::new(ErrorCode::BlobUploadInvalid, Class::Client);
        return Err(failure.message("Content-Range is not of the form <first>-<last>"));
    };
    if first != received || last < first {
        let failure = Failure::new(ErrorCode::BlobUploadInvalid, Class::Client);
        let failure = failure.status(StatusCode::RANGE_NOT_SATISFIABLE);
        let failure = failure.message(format!("the next byte of this upload is {received}, not {first}"));
        return Err(failure.received(received));
    }
    match length {
        Some(length) if length != last - first + 1 => Err(Failure::new(ErrorCode::SizeInvalid, Class::Client)),
        _ => Ok(()),
    }
}

/// Writes a body to `sink`, on threads that may wait for the disk, a mebibyte at a time.
async fn pump<S: Sink>(body: &mut Content, mut sink: S) -> Result<S, Failure> {
    loop {
        let mut gathered = Vec::new();
        let mut bytes = 0;
        let next = loop {
            match body.next().await {
                Ok(Some(data)) => {
                    bytes += data.len();
                    gathered.push(data);
                    if bytes >= GATHER {
                        break Ok(true);
                    }
                }
                Ok(None) => break Ok(false),
                Err(failure) => break Err(failure),
            }
        };
        if !gathered.is_empty() {
            sink = blocking::io(move || {
                for data in gathered {
                    sink.write(&data)?;
                }
                Ok::<_, StoreError>(sink)
            })
            .await?;
        }
        if !next? {
            return Ok(sink);
        }
    }
}

fn location(out: &mut Response<Body>, path: String) {
    if let Ok(value) = HeaderValue::try_from(path) {
        out.headers_mut().insert(LOCATION, value);
    }
}

fn created(repository: &Repository, digest: Digest) -> Answer {
    let mut out = reply::empty(StatusCode::CREATED);
    location(&mut out, format!("/v2/{repository}/blobs/{digest}"));
    if let Ok(value) = HeaderValue::try_from(digest.to_string()) {
        out.headers_mut().insert(DOCKER_CONTENT_DIGEST, value);
    }
    Ok(out)
}

/// How far an upload is, and where it goes on.
fn progress(status: StatusCode, repository: &Repository, id: UploadId, received: u64) -> Answer {
    let mut out = reply::empty(status);
    location(&mut out, format!("/v2/{repository}/blobs/uploads/{id}"));
    for (name, value) in [(RANGE, received_range(received)), (UPLOAD_UUID, id.to_string())] {
        if let Ok(value) = HeaderValue::try_from(value) {
            out.headers_mut().insert(name, value);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_uploads_of_one_client_make_room_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(folder.path()).unwrap();
        let now = Instant::now();
        let session = |user: &str, idle: Duration| Session {
            repository: "a".parse().unwrap(),
            owner: Owner { user: Some(user.into()), address: IpAddr::from([127, 0, 0, 1]) },
            scratch: Arc::new(tokio::sync::Mutex::new(Some(store.scratch().unwrap()))),
            received: Arc::default(),
            touched: now.checked_sub(idle).unwrap_or(now),
        };
        let (one, busy) = (UploadId::random(), UploadId::random());
        let mut sessions = HashMap::from([
            // Of whoever has few, though it waits longest.
            (one, session("bob", IDLE * 9)),
            (busy, session("alice", IDLE * 8)),
        ]);
        let mut idle: Vec<UploadId> = Vec::new();
        for n in [2, 5, 3] {
            idle.push(UploadId::random());
            sessions.insert(idle[idle.len() - 1], session("alice", IDLE * n));
        }
        sessions.insert(UploadId::random(), session("alice", Duration::ZERO));
        let writing = Arc::clone(&sessions[&busy].scratch);
        let _writing = writing.try_lock().unwrap();
        for n in [1, 2, 0] {
            assert!(sessions.contains_key(&idle[n]) && make_room(&mut sessions));
            assert!(!sessions.contains_key(&idle[n]), "{n} waited longest");
        }
        assert_eq!(sessions.len(), 3);
        assert!(make_room(&mut sessions), "alice has two more, but none that waits");
        assert!(!sessions.contains_key(&one) && sessions.contains_key(&busy));
        assert!(!make_room(&mut sessions), "nothing has waited long enough");
    }

    #[test]
    fn a_chunk_must_begin_where_the_last_one_ended() {
        let status = |range: &'static str, received, length| {
            check_range(&HeaderValue::from_static(range), received, length)
                .map_err(|failure| failure.into_response().status().as_u16())
                .err()
        };
        for (range, received, length, expected) in [
            ("0-9", 0, Some(10), None),
            ("0-9", 0, None, None),
            ("10-19", 10, Some(10), None),
            ("0-9", 10, Some(10), Some(416)),
            ("20-29", 10, Some(10), Some(416)),
            ("10-9", 10, Some(0), Some(416)),
            ("0-9", 0, Some(11), Some(400)),
            ("0-", 0, None, Some(400)),
            ("-9", 0, None, Some(400)),
            ("+0-9", 0, None, Some(400)),
            ("bytes 0-9/*", 0, None, Some(400)),
            ("0-99999999999999999999999", 0, None, Some(400)),
        ] {
            assert_eq!(status(range, received, length), expected, "{range} after {received}");
        }
    }
}
