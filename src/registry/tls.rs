//! TLS of one transport profile: the system's roots and the object's own, a client certificate, TLS 1.2 or newer.

use std::sync::{Arc, OnceLock};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use super::{Given, Transport, error::SetupError};

/// The checked material of a transport: parsed before anything is sent, so bad material never means "without it".
pub(super) struct Material {
    roots: Vec<CertificateDer<'static>>,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    verify: bool,
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}

fn bad(what: &'static str, why: impl ToString) -> SetupError {
    SetupError { what, why: why.to_string() }
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let list = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| bad(what, "not valid PEM"))?;
    if list.is_empty() {
        return Err(bad(what, "no PEM certificate in it"));
    }
    Ok(list)
}

impl Material {
    /// Parses the material of `transport`; a certificate that is none, or a key that does not belong to its
    /// certificate, is refused here.
    pub(super) fn of(transport: &Transport) -> Result<Self, SetupError> {
        let mut roots = Vec::new();
        if let Some(pem) = &transport.ca {
            roots = certificates("CA certificate", pem)?;
            let mut store = rustls::RootCertStore::empty();
            for root in &roots {
                store.add(root.clone()).map_err(|error| bad("CA certificate", error))?;
            }
        }
        let client = match &transport.client_certificate {
            None => None,
            Some((chain, key)) => {
                let chain = certificates("client certificate", chain)?;
                let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
                    .map_err(|_| bad("client certificate's key", "no usable PEM private key in it"))?;
                rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
                    .map_err(|error| bad("client certificate and key", error))?;
                Some((chain, key))
            }
        };
        // As Flux: `insecure` gives up verification only where no TLS material of its own is given.
        let own = transport.ca.is_some() || transport.client_certificate.is_some();
        let verify = !(transport.skip_tls_verify || transport.insecure && !own);
        Ok(Self { roots, client, verify })
    }

    /// For registries, their token services and their redirects.
    pub(super) fn for_registries(&self) -> Result<Arc<ClientConfig>, SetupError> {
        self.build(self.verify, self.client.as_ref())
    }

    /// For an https proxy: always verified, never shown the client certificate.
    pub(super) fn for_proxies(&self) -> Result<Arc<ClientConfig>, SetupError> {
        self.build(true, None)
    }

    fn build(
        &self,
        verify: bool,
        client: Option<&(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Arc<ClientConfig>, SetupError> {
        let provider = provider();
        let verifier: Arc<dyn ServerCertVerifier> = if verify {
            let verifier =
                rustls_platform_verifier::Verifier::new_with_extra_roots(self.roots.iter().cloned(), provider.clone());
            let verifier = Arc::new(verifier.map_err(|error| bad("CA certificates", error))?);
            if self.roots.is_empty() {
                verifier
            } else {
                Given::verifier(self.roots.clone(), Some(verifier), provider.clone())
                    .map_err(|error| bad("CA certificate", error))?
            }
        } else {
            Arc::new(Unverified(provider.clone()))
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad("TLS", error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|error| bad("client certificate and key", error))?,
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Takes any certificate, as `insecure` asks; the handshake's signatures are checked all the same.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
