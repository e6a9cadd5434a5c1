//! Asking the registry listener the way containerd does: its URL, its authorities, its certificate.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::hosts::Local;
use crate::registry::Given;

/// Ten times what the hosts.toml allows for connecting: a slow mirror is worth its own message.
const CONNECT: Duration = Duration::from_secs(2);
/// As long as containerd waits for headers.
const PATIENCE: Duration = Duration::from_secs(30);
/// A manifest is never larger (containerd refuses 4 MiB and a little), and of a blob only this much is read.
const MAX_BODY: usize = 8 << 20;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Empty where it is longer than a manifest may be.
    pub body: Bytes,
}

impl Answer {
    /// A header's text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Sends a request without a body to the mirror.
pub async fn ask(local: &Local, method: Method, path: &str) -> anyhow::Result<Answer> {
    let whole = async {
        let authority = local.url.split_once("://").map_or(local.url.as_str(), |(_, rest)| rest);
        let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(authority)).await;
        let stream = connecting.context("it does not accept connections within 2 s")??;
        if !local.url.starts_with("https://") {
            return send(stream, authority, method, path).await;
        }
        let name = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(name.to_owned()).context("its host is no name that a certificate can have")?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls(local)?));
        let stream = connector.connect(name, stream).await.context("TLS is refused")?;
        send(stream, authority, method, path).await
    };
    let answer = tokio::time::timeout(PATIENCE, whole).await;
    answer.map_err(|_| anyhow::anyhow!("it did not answer within 30 s"))?
}

async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    authority: &str,
    method: Method,
    path: &str,
) -> anyhow::Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(header::HOST, authority);
    // What containerd sends for a manifest.
    let request = request.header(
        header::ACCEPT,
        "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, \
         application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*",
    );
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map(http_body_util::Collected::to_bytes);
    let body = body.map_err(|error| anyhow::anyhow!("its answer broke off: {error}"))?;
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}

fn tls(local: &Local) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &local.ca {
        None => builder.with_root_certificates(RootCertStore::empty()),
        Some(ca) => {
            let verifier = Given::verifier(certificates(ca)?, None, provider)
                .map_err(|error| anyhow::anyhow!("{} holds a certificate of no use: {error}", ca.display()))?;
            builder.dangerous().with_custom_certificate_verifier(verifier)
        }
    };
    match &local.client {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let text = fs::read(key).with_context(|| format!("cannot read {}", key.display()))?;
            let key = PrivateKeyDer::from_pem_slice(&text)
                .map_err(|error| anyhow::anyhow!("{} holds no private key in PEM: {error}", key.display()))?;
            Ok(builder.with_client_auth_cert(certificates(cert)?, key)?)
        }
    }
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|error| anyhow::anyhow!("{} is no PEM: {error}", file.display()))?;
    anyhow::ensure!(!all.is_empty(), "{} holds no certificate in PEM", file.display());
    Ok(all)
}
