//! Checks credentials, seldom the slow way.
//!
//! What a header was found to say is remembered for a minute under its hash with a key of this process, so a request
//! with credentials that were seen before costs one hash and one lookup, and no password is kept. A new header is
//! checked once for all who send it at that moment; bcrypt runs on few cores at once, and who would have to wait behind
//! too many is told to come back (503, never 429). When the files change, what was remembered goes.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;
use tokio::sync::Semaphore;

use super::{
    TOKEN_USER,
    authorization::{self, Credentials},
    htpasswd::{HtpasswdError, Users},
};
use crate::{blocking, class, flight::Flight, secret::Secret};

/// How long a verdict is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How many verdicts of a kind are remembered; past that all of the kind are forgotten.
const MAX_REMEMBERED: usize = 4096;
/// How often the files are looked at, at most: when requests come.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file may change again within one tick of its clock: one that is not older than this is read again.
const SETTLED: Duration = Duration::from_secs(2);
/// The most passwords that wait to be checked, and the most of them from one address.
const MAX_WAITING: usize = 256;
const MAX_WAITING_PER_ADDRESS: usize = 64;
/// The largest file read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server::registry) enum Verdict {
    /// Nothing: an empty name and an empty password, as some clients send without credentials.
    Anonymous,
    /// That somebody is this user.
    User(Arc<str>),
    /// Something that is not right.
    Wrong,
}

/// Too many passwords wait to be checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy;

/// Why a file of users or a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {setting} from {path}")]
    Read {
        /// The setting.
        setting: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The users are not taken.
    #[error("registry.htpasswd {path}")]
    Users {
        /// The file.
        path: String,
        /// Where and why.
        #[source]
        source: HtpasswdError,
    },
    /// The token is not taken.
    #[error("registry.token {path}: a token is one line of printable ASCII characters without spaces")]
    Token {
        /// The file.
        path: String,
    },
}

type Key = [u8; 32];

pub(in crate::server::registry) struct Passwords {
    htpasswd: Option<PathBuf>,
    token: Option<PathBuf>,
    /// Of this process alone: what is remembered is of no use elsewhere.
    key: Key,
    files: RwLock<Arc<Files>>,
    born: Instant,
    /// When the files were looked at last, in milliseconds since `born`.
    looked: AtomicU64,
    /// The last look's failures, so that each is logged once.
    failed: Mutex<Vec<String>>,
    remembered: RwLock<Remembered>,
    flights: Flight<Key, Result<Verdict, Busy>>,
    /// How many passwords are checked at once.
    places: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
}

/// What the files held, each when it was last good.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    users: Users,
    token: Option<blake3::Hash>,
    /// Of the users' file, and of the token's.
    stamps: [Option<Stamp>; 2],
}

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
    settled: bool,
}

impl Stamp {
    fn of(file: &std::fs::Metadata) -> Self {
        let changed = (file.ctime(), file.ctime_nsec());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let age = i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(changed.0);
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            changed,
            modified: (file.mtime(), file.mtime_nsec()),
            settled: age > SETTLED.as_secs() as i64,
        }
    }
}

#[derive(Default)]
struct Remembered {
    right: HashMap<Key, (Verdict, Instant), BuildHasherDefault<KeyHasher>>,
    /// Apart, so that guesses push out no user.
    wrong: HashMap<Key, Instant, BuildHasherDefault<KeyHasher>>,
    /// Grows when the files change: verdicts on what they said before are not remembered.
    generation: u64,
}

/// A key is a keyed hash: any part of it is as good as a hash of it.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// How many passwords wait or are being checked, and for whom.
#[derive(Default)]
struct Waiting {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One of them; not waiting any longer when dropped.
struct Waits {
    waiting: Arc<Mutex<Waiting>>,
    address: IpAddr,
}

impl Waits {
    fn begin(waiting: &Arc<Mutex<Waiting>>, address: IpAddr) -> Result<Self, Busy> {
        let mut all = locked(waiting);
        let here = all.by_address.get(&address).copied().unwrap_or(0);
        if all.all >= MAX_WAITING || here >= MAX_WAITING_PER_ADDRESS {
            return Err(Busy);
        }
        all.all += 1;
        all.by_address.insert(address, here + 1);
        Ok(Self { waiting: Arc::clone(waiting), address })
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut all = locked(&self.waiting);
        all.all -= 1;
        if let Some(here) = all.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                all.by_address.remove(&self.address);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Passwords {
    /// Reads the files; waits for the disk.
    pub(super) fn open(htpasswd: Option<PathBuf>, token: Option<PathBuf>) -> Result<Self, FileError> {
        let mut key = Key::default();
        let random = rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty());
        random.map_err(|e| FileError::Read {
            setting: "random numbers",
            path: "the system".into(),
            source: e.into(),
        })?;
        let (users, of_users) = read_users(htpasswd.as_deref())?;
        let (known, of_token) = read_token(token.as_deref())?;
        let files = Files { users, token: known, stamps: [of_users, of_token] };
        if htpasswd.is_some() && files.users.is_empty() {
            tracing::warn!("registry.htpasswd has no user in it");
        }
        Ok(Self::new(htpasswd, token, files, key))
    }

    fn new(htpasswd: Option<PathBuf>, token: Option<PathBuf>, files: Files, key: Key) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            htpasswd,
            token,
            key,
            files: RwLock::new(Arc::new(files)),
            born: Instant::now(),
            looked: AtomicU64::new(0),
            failed: Mutex::default(),
            remembered: RwLock::default(),
            flights: Flight::default(),
            // Half of the cores: the rest goes on unpacking and serving while somebody guesses.
            places: Arc::new(Semaphore::new((cores / 2).max(1))),
            waiting: Arc::default(),
        }
    }

    fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is such a user, the token's holder among them.
    pub(super) fn knows(&self, name: &str) -> bool {
        let files = self.files();
        files.users.contains(name) || (name == TOKEN_USER && files.token.is_some())
    }

    /// What an `Authorization` header says.
    pub(super) async fn verify(self: &Arc<Self>, header: &HeaderValue, from: IpAddr) -> Result<Verdict, Busy> {
        let now = Instant::now();
        self.look(now).await;
        let key = *blake3::keyed_hash(&self.key, header.as_bytes()).as_bytes();
        if let Some(verdict) = self.remembered(&key, now) {
            return Ok(verdict);
        }
        Box::pin(self.flights.run(key, || self.check(key, header, from))).await
    }

    fn remembered(&self, key: &Key, now: Instant) -> Option<Verdict> {
        let remembered = self.remembered.read().unwrap_or_else(PoisonError::into_inner);
        let fresh = |since: Instant| now.saturating_duration_since(since) < REMEMBERED;
        match remembered.right.get(key) {
            Some((verdict, since)) if fresh(*since) => Some(verdict.clone()),
            _ => remembered.wrong.get(key).filter(|since| fresh(**since)).map(|_| Verdict::Wrong),
        }
    }

    async fn check(&self, key: Key, header: &HeaderValue, from: IpAddr) -> Result<Verdict, Busy> {
        let generation = self.remembered.read().unwrap_or_else(PoisonError::into_inner).generation;
        let files = self.files();
        let holder = |token: &Secret| {
            // Hashes are compared in constant time.
            let right = files.token == Some(blake3::hash(token.expose().as_bytes()));
            if right { Verdict::User(TOKEN_USER.into()) } else { Verdict::Wrong }
        };
        let verdict = match authorization::parse(header.as_bytes()) {
            None => Verdict::Wrong,
            Some(Credentials::Bearer(token)) => holder(&token),
            Some(Credentials::Basic { user, password }) if user == TOKEN_USER => holder(&password),
            Some(Credentials::Basic { user, password }) if user.is_empty() && password.expose().is_empty() => {
                Verdict::Anonymous
            }
            Some(Credentials::Basic { user, password }) => {
                let waits = Waits::begin(&self.waiting, from)?;
                // Nobody closes the semaphore.
                let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Busy)?;
                let files = Arc::clone(&files);
                // What is under way keeps its place also when nobody waits for it any longer.
                let (right, user) = blocking::cpu(move || {
                    let right = files.users.verify(&user, password.expose());
                    drop((place, waits));
                    (right, user)
                })
                .await;
                if right { Verdict::User(user.into()) } else { Verdict::Wrong }
            }
        };
        self.remember(key, &verdict, generation);
        Ok(verdict)
    }

    fn remember(&self, key: Key, verdict: &Verdict, generation: u64) {
        let now = Instant::now();
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.generation != generation {
            return;
        }
        if *verdict == Verdict::Wrong {
            if remembered.wrong.len() >= MAX_REMEMBERED {
                remembered.wrong.clear();
            }
            remembered.wrong.insert(key, now);
        } else {
            if remembered.right.len() >= MAX_REMEMBERED {
                remembered.right.clear();
            }
            remembered.right.insert(key, (verdict.clone(), now));
        }
    }

    /// Reads the files again if they changed; one of all requests in [`LOOK_EVERY`] does, the others go on.
    async fn look(self: &Arc<Self>, now: Instant) {
        let since = u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX);
        let looked = self.looked.load(Relaxed);
        if since.saturating_sub(looked) < LOOK_EVERY.as_millis() as u64
            || self.looked.compare_exchange(looked, since, Relaxed, Relaxed).is_err()
        {
            return;
        }
        let this = Arc::clone(self);
        blocking::io(move || this.reread()).await;
    }

    fn reread(&self) {
        let before = self.files();
        let stamp =
            |path: &Option<PathBuf>| path.as_ref().and_then(|p| std::fs::metadata(p).ok()).map(|m| Stamp::of(&m));
        let settled = before.stamps.iter().flatten().all(|stamp| stamp.settled);
        if settled && before.stamps == [stamp(&self.htpasswd), stamp(&self.token)] {
            return;
        }
        // Each by itself: a mistake in one file is not to keep alive what the other has taken away.
        let (mut files, mut errors) = (Files::clone(&before), Vec::new());
        match read_users(self.htpasswd.as_deref()) {
            Ok((users, stamp)) => (files.users, files.stamps[0]) = (users, stamp),
            Err(error) => errors.push(class::chain(&error)),
        }
        match read_token(self.token.as_deref()) {
            Ok((token, stamp)) => (files.token, files.stamps[1]) = (token, stamp),
            Err(error) => errors.push(class::chain(&error)),
        }
        let same = files.users == before.users && files.token == before.token;
        let users = files.users.len();
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(files);
        if !same {
            let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
            let generation = remembered.generation + 1;
            *remembered = Remembered { generation, ..Remembered::default() };
            tracing::info!(users, "the registry's users or token changed");
        }
        let mut failed = locked(&self.failed);
        for error in errors.iter().filter(|error| !failed.contains(error)) {
            tracing::error!(error, "what the file said before stays; the other one counts as it is");
        }
        *failed = errors;
    }

    #[cfg(test)]
    pub(super) fn of(users: &str, token: Option<&str>) -> Result<Self, HtpasswdError> {
        let token = token.map(|token| blake3::hash(token.as_bytes()));
        let files = Files { users: Users::parse(users)?, token, stamps: [None, None] };
        Ok(Self::new(None, None, files, [7; 32]))
    }
}

/// Reads the users; without a file there are none.
fn read_users(htpasswd: Option<&Path>) -> Result<(Users, Option<Stamp>), FileError> {
    let (text, stamp) = match htpasswd {
        Some(path) => read_one("registry.htpasswd", path)?,
        None => (String::new(), None),
    };
    let users = Users::parse(&text)
        .map_err(|source| FileError::Users { path: htpasswd.unwrap_or(Path::new("")).display().to_string(), source })?;
    Ok((users, stamp))
}

/// Reads the token, if there is a file for it.
fn read_token(token: Option<&Path>) -> Result<(Option<blake3::Hash>, Option<Stamp>), FileError> {
    let Some(path) = token else { return Ok((None, None)) };
    let (text, stamp) = read_one("registry.token", path)?;
    let token = text.trim_ascii();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(FileError::Token { path: path.display().to_string() });
    }
    Ok((Some(blake3::hash(token.as_bytes())), stamp))
}

fn read_one(setting: &'static str, path: &Path) -> Result<(String, Option<Stamp>), FileError> {
    let read = || -> io::Result<(String, Option<Stamp>)> {
        let file = std::fs::File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.len() > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MAX_FILE} bytes")));
        }
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text)?;
        Ok((text, Some(Stamp::of(&metadata))))
    };
    read().map_err(|source| FileError::Read { setting, path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn line(user: &str, password: &str) -> String {
        format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    fn basic(user: &str, password: &str) -> HeaderValue {
        HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))).unwrap()
    }

    fn user(name: &str) -> Verdict {
        Verdict::User(name.into())
    }

    #[tokio::test]
    async fn who_has_the_password_or_the_token_is_the_user() {
        let both = Arc::new(Passwords::of(&line("alice", "wonder"), Some("t0k3n")).unwrap());
        let alone = Arc::new(Passwords::of(&line("alice", "wonder"), None).unwrap());
        for (header, with_token, without) in [
            (basic("alice", "wonder"), user("alice"), user("alice")),
            (basic("alice", "t0k3n"), Verdict::Wrong, Verdict::Wrong),
            (basic("alice", ""), Verdict::Wrong, Verdict::Wrong),
            (basic("bob", "wonder"), Verdict::Wrong, Verdict::Wrong),
            (basic("token", "t0k3n"), user("token"), Verdict::Wrong),
            (basic("token", ""), Verdict::Wrong, Verdict::Wrong),
            (basic("", ""), Verdict::Anonymous, Verdict::Anonymous),
            (HeaderValue::from_static("Bearer t0k3n"), user("token"), Verdict::Wrong),
            (HeaderValue::from_static("Bearer wonder"), Verdict::Wrong, Verdict::Wrong),
            (HeaderValue::from_static("Bearer"), Verdict::Wrong, Verdict::Wrong),
            (HeaderValue::from_static("x"), Verdict::Wrong, Verdict::Wrong),
        ] {
            // The second time it is remembered.
            for _ in 0..2 {
                assert_eq!(both.verify(&header, HERE).await.unwrap(), with_token, "{header:?}");
                assert_eq!(alone.verify(&header, HERE).await.unwrap(), without, "{header:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_remembered_goes_after_a_minute_and_guesses_push_out_no_user() {
        let passwords = Arc::new(Passwords::of(&line("alice", "wonder"), None).unwrap());
        let header = basic("alice", "wonder");
        passwords.verify(&header, HERE).await.unwrap();
        let key = *blake3::keyed_hash(&passwords.key, header.as_bytes()).as_bytes();
        let now = Instant::now();
        for n in 0..2 * MAX_REMEMBERED {
            let mut guess = Key::default();
            guess[..8].copy_from_slice(&n.to_le_bytes());
            passwords.remember(guess, &Verdict::Wrong, 0);
        }
        assert_eq!(passwords.remembered(&key, now), Some(user("alice")));
        assert_eq!(passwords.remembered(&key, now + REMEMBERED + Duration::from_secs(1)), None);
        let remembered = passwords.remembered.read().unwrap();
        assert!(remembered.wrong.len() <= MAX_REMEMBERED);
    }

    #[tokio::test]
    async fn files_that_change_are_read_again_and_what_is_wrong_in_them_leaves_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("users"), line("alice", "one") + &line("bob", "b")).unwrap();
        std::fs::write(at("token"), "first\n").unwrap();
        let passwords = Arc::new(Passwords::open(Some(at("users")), Some(at("token"))).unwrap());
        let is = async |header: HeaderValue, expected: Verdict| {
            assert_eq!(passwords.verify(&header, HERE).await.unwrap(), expected, "{header:?}");
        };
        is(basic("alice", "one"), user("alice")).await;
        is(basic("bob", "b"), user("bob")).await;
        is(basic("token", "first"), user("token")).await;
        std::fs::write(at("users"), line("alice", "two")).unwrap();
        std::fs::write(at("token"), "second").unwrap();
        passwords.reread();
        is(basic("alice", "one"), Verdict::Wrong).await;
        is(basic("alice", "two"), user("alice")).await;
        is(basic("bob", "b"), Verdict::Wrong).await;
        is(basic("token", "first"), Verdict::Wrong).await;
        is(basic("token", "second"), user("token")).await;
        for wrong in ["alice:$apr1$x$y\n", "\u{0}"] {
            std::fs::write(at("users"), wrong).unwrap();
            passwords.reread();
            is(basic("alice", "two"), user("alice")).await;
        }
        // A mistake in one of them keeps nothing alive that the other takes away.
        std::fs::write(at("token"), "rotated").unwrap();
        passwords.reread();
        is(basic("token", "second"), Verdict::Wrong).await;
        is(basic("token", "rotated"), user("token")).await;
        std::fs::remove_file(at("token")).unwrap();
        std::fs::write(at("users"), line("alice", "two") + &line("dave", "d")).unwrap();
        passwords.reread();
        is(basic("dave", "d"), user("dave")).await;
        std::fs::write(at("users"), line("alice", "two")).unwrap();
        passwords.reread();
        is(basic("dave", "d"), Verdict::Wrong).await;
        is(basic("token", "rotated"), user("token")).await;
        std::fs::remove_file(at("users")).unwrap();
        std::fs::write(at("token"), "").unwrap();
        passwords.reread();
        is(basic("alice", "two"), user("alice")).await;
        is(basic("token", ""), Verdict::Wrong).await;
        // As Kubernetes changes a mounted secret: a link swapped for another.
        std::fs::write(at("users.2"), line("carol", "c")).unwrap();
        std::os::unix::fs::symlink("users.2", at("users")).unwrap();
        std::fs::write(at("token"), "third").unwrap();
        passwords.reread();
        is(basic("carol", "c"), user("carol")).await;
        is(basic("alice", "two"), Verdict::Wrong).await;
    }

    #[test]
    fn a_file_that_cannot_be_used_is_an_error_that_names_it_and_not_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let (users, token) = (folder.path().join("users"), folder.path().join("token"));
        let open = |u: bool, t: bool| {
            let error = Passwords::open(u.then(|| users.clone()), t.then(|| token.clone())).err().unwrap();
            class::chain(&error)
        };
        assert!(open(true, false).starts_with(&format!("cannot read registry.htpasswd from {}: ", users.display())));
        std::fs::write(&users, "a:hunter2\n").unwrap();
        let error = open(true, false);
        assert!(error.contains("line 1: the hash of user \"a\"") && !error.contains("hunter2"), "{error}");
        for bad in ["", " \n", "hunter2 x", "hunter2\nx", "hunter2\u{e9}"] {
            std::fs::write(&token, bad).unwrap();
            let error = open(false, true);
            assert!(error.contains("a token is one line") && !error.contains("hunter2"), "{bad:?}: {error}");
        }
        std::fs::write(&token, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(open(false, true).contains("more than 1048576 bytes"));
    }

    #[test]
    fn who_would_wait_behind_too_many_is_told_so_and_one_address_does_not_fill_the_queue() {
        let waiting = Arc::default();
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut held = Vec::new();
        for n in 0..4 {
            for _ in 0..MAX_WAITING_PER_ADDRESS {
                held.push(Waits::begin(&waiting, address(n)).unwrap());
            }
            assert!(Waits::begin(&waiting, address(n)).is_err());
        }
        assert!(Waits::begin(&waiting, address(9)).is_err(), "{MAX_WAITING} wait");
        held.truncate(MAX_WAITING - 1);
        assert!(Waits::begin(&waiting, address(3)).is_ok());
        held.clear();
        let waiting = locked(&waiting);
        assert_eq!((waiting.all, waiting.by_address.len()), (0, 0));
    }

    #[tokio::test]
    async fn everybody_who_sends_the_same_at_once_is_checked_once() {
        let passwords = Arc::new(Passwords::of(&line("alice", "wonder"), None).unwrap());
        let places = Arc::clone(&passwords.places).acquire_many_owned(passwords.places.available_permits() as u32);
        let place = places.await.unwrap();
        let asking: Vec<_> = (0..2 * MAX_WAITING)
            .map(|_| {
                let passwords = Arc::clone(&passwords);
                tokio::spawn(async move { passwords.verify(&basic("alice", "wonder"), HERE).await.unwrap() })
            })
            .collect();
        while locked(&passwords.waiting).all == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(locked(&passwords.waiting).all, 1);
        drop(place);
        for asked in asking {
            assert_eq!(asked.await.unwrap(), user("alice"));
        }
    }
}
