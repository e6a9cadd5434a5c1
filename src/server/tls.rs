//! TLS for a listener: certificate, key and the authorities of clients from files, read again when they change.
//!
//! TLS 1.2 and 1.3 by rustls, with session tickets, `h2` and `http/1.1` by ALPN. With client authorities, a client
//! without a certificate of one of them gets no further than the handshake.
//!
//! The files are looked at every two seconds, by what their names lead to: so a Secret's `..data` symlink that is swapped
//! counts as a change, whatever the filesystem tells watchers. A pair that cannot be used is logged once and the one
//! before stays. Connections keep what they began with; tickets end with the files that were in force, so that a client
//! whose authority is gone cannot resume. Nothing is kept on disk.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::socket::Watched;
use crate::{blocking, shutdown::Shutdown};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The largest file read, in bytes: a bundle of every public authority has a quarter of it.
const MAX_FILE: u64 = 1 << 20;
/// How much may be encrypted before the socket takes it, in bytes: what a reader who takes nothing costs.
const ENCRYPTED_AHEAD: usize = 32 << 10;

/// Where the certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Certificate chain, PEM, the server's own first.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of clients' certificates, PEM: with it, clients need one.
    pub client_ca: Option<PathBuf>,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read {path}; is it there, and may this user read it?")]
    Read {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content.
    #[error("{path} holds no {what} in PEM")]
    Pem {
        /// Which.
        path: String,
        /// What should be there.
        what: &'static str,
        /// Why.
        #[source]
        source: Option<pem::Error>,
    },
    /// The pair, or the authorities.
    #[error("{path} cannot be used: {reason}")]
    Unusable {
        /// Which.
        path: String,
        /// Why; never a part of the key.
        reason: String,
    },
}

/// What a listener needs to speak TLS. Clones share what is in force.
#[derive(Clone, Debug)]
pub struct Tls {
    files: Arc<Files>,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

/// What a file was when it was read: any other is a change.
type Seen = Option<(u64, u64, u64, i64, i64)>;

impl Tls {
    /// Reads the files; blocks on the disk.
    ///
    /// # Errors
    /// They cannot be read, or do not go together.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        let config = configure(&files)?;
        Ok(Self { files: Arc::new(files), current: Arc::new(RwLock::new(Arc::new(config))) })
    }

    /// Reads the files again whenever they change, until the shutdown.
    pub async fn follow(self, shutdown: Shutdown) {
        let mut seen = self.look().await;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = shutdown.wait() => return,
            }
            self.reload_if_changed(&mut seen).await;
        }
    }

    async fn reload_if_changed(&self, seen: &mut Vec<Seen>) {
        let now = self.look().await;
        if now != *seen {
            *seen = now;
            self.reload().await;
        }
    }

    /// Reads the files; the ones in force stay where these cannot be used.
    async fn reload(&self) {
        let files = Arc::clone(&self.files);
        match blocking::io(move || configure(&files)).await {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                tracing::info!(cert = %self.files.cert.display(), "the certificate has changed; new connections get it");
            }
            Err(error) => {
                let error = crate::class::chain(&error);
                tracing::error!(%error, "the certificate has changed and cannot be used; the one before stays in force");
            }
        }
    }

    async fn look(&self) -> Vec<Seen> {
        let files = Arc::clone(&self.files);
        blocking::io(move || {
            let all = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
            all.into_iter().flatten().map(|path| seen(path)).collect()
        })
        .await
    }

    /// The handshake of a new connection. It has no limit of its own: the connection has one.
    pub(super) async fn accept(&self, stream: Watched) -> io::Result<TlsStream<Watched>> {
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let limit = |connection: &mut rustls::ServerConnection| connection.set_buffer_limit(Some(ENCRYPTED_AHEAD));
        TlsAcceptor::from(config).accept_with(stream, limit).await
    }
}

fn seen(path: &Path) -> Seen {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

fn configure(files: &Files) -> Result<ServerConfig, TlsError> {
    let unusable = |path: &Path, reason: String| TlsError::Unusable { path: path.display().to_string(), reason };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|source| TlsError::Pem {
        path: files.key.display().to_string(),
        what: "private key",
        source: Some(source),
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(&files.cert, e.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| unusable(path, e.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| unusable(&files.cert, e.to_string()))?;
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(|e| unusable(&files.key, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The authorities in a file, PEM; at least one. Blocks on the disk.
///
/// # Errors
/// It cannot be read, or holds something else.
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        let unusable =
            |error: rustls::Error| TlsError::Unusable { path: path.display().to_string(), reason: error.to_string() };
        roots.add(authority).map_err(unusable)?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem { path: path.display().to_string(), what: "certificate", source };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(None)),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(Some(error))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let file = fs::File::open(path)?;
        let mut content = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE + 1), &mut content)?;
        if content.len() as u64 > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB"));
        }
        Ok(content)
    };
    read().map_err(|source| TlsError::Read { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate for `name` and its key.
    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn write(folder: &Path, (cert, key): &(String, String)) -> Files {
        fs::write(folder.join("cert.pem"), cert).unwrap();
        fs::write(folder.join("key.pem"), key).unwrap();
        Files { cert: folder.join("cert.pem"), key: folder.join("key.pem"), client_ca: None }
    }

    #[test]
    fn what_cannot_be_used_is_said_without_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let (good, other) = (pair("a"), pair("b"));
        for (content, expected) in [
            ((good.0.clone(), other.1.clone()), "cannot be used"),
            (("no PEM".into(), good.1.clone()), "holds no certificate"),
            ((good.0.clone(), good.0.clone()), "holds no private key"),
            ((good.0.clone(), "x".repeat(2 << 20)), "cannot read"),
        ] {
            let files = write(folder.path(), &content);
            let error = crate::class::chain(&Tls::load(files).unwrap_err()).to_string();
            assert!(error.contains(expected) && !error.contains("BEGIN"), "{error}");
        }
        let files = write(folder.path(), &good);
        assert!(Tls::load(files.clone()).is_ok());
        let missing = Files { client_ca: Some(folder.path().join("none")), ..files };
        assert!(matches!(Tls::load(missing), Err(TlsError::Read { .. })));
    }

    #[tokio::test]
    async fn changed_files_are_followed_through_a_symlink_and_bad_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let version = |n: u32| folder.path().join(format!("v{n}"));
        let swap = |n: u32| {
            std::os::unix::fs::symlink(version(n), folder.path().join("new")).unwrap();
            fs::rename(folder.path().join("new"), folder.path().join("..data")).unwrap();
        };
        for n in 1..=3 {
            fs::create_dir(version(n)).unwrap();
            write(&version(n), &pair("a"));
        }
        fs::write(version(2).join("key.pem"), pair("b").1).unwrap();
        swap(1);
        let data = folder.path().join("..data");
        let tls = Tls::load(Files { cert: data.join("cert.pem"), key: data.join("key.pem"), client_ca: None }).unwrap();
        let current = || Arc::clone(&tls.current.read().unwrap());
        let first = current();
        let mut seen = tls.look().await;
        tls.reload_if_changed(&mut seen).await;
        assert!(Arc::ptr_eq(&first, &current()));
        swap(2);
        let before = seen.clone();
        tls.reload_if_changed(&mut seen).await;
        assert_ne!(seen, before);
        assert!(Arc::ptr_eq(&first, &current()));
        swap(3);
        tls.reload_if_changed(&mut seen).await;
        assert!(!Arc::ptr_eq(&first, &current()));
    }
}
