//! A server that shows the very certificate that was given as its CA: `openssl req -x509` marks what it makes as a CA, and
//! people give exactly that to the client. WebPKI refuses a CA as a server's certificate; Go and curl do not, and the
//! certificate is as well known as it can be.
//!
//! Only certificates that were given count, never the system's; the validity period and the server's name are checked as
//! ever, and the handshake's signature proves the key.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Takes what `others` takes, and a certificate that is byte for byte one of `given`.
#[derive(Debug)]
pub struct Given {
    given: Vec<CertificateDer<'static>>,
    /// Trusts `given` alone.
    own: Arc<WebPkiServerVerifier>,
    others: Arc<dyn ServerCertVerifier>,
}

impl Given {
    /// The verifier for these CA certificates; without `others`, nothing else is taken. Errors are those of a certificate
    /// that is none, or of there being none.
    pub fn verifier(
        given: Vec<CertificateDer<'static>>,
        others: Option<Arc<dyn ServerCertVerifier>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, Box<dyn std::error::Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        for certificate in &given {
            roots.add(certificate.clone())?;
        }
        let own = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        let others = others.unwrap_or_else(|| own.clone());
        Ok(Arc::new(Self { given, own, others }))
    }
}

/// WebPKI has looked at the period of validity before it says so.
fn is_ca_used_as_end_entity(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else { return false };
    other.0.downcast_ref::<webpki::Error>() == Some(&webpki::Error::CaUsedAsEndEntity)
}

impl ServerCertVerifier for Given {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.given.iter().any(|given| given == end_entity) {
            match self.own.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                Err(error) if is_ca_used_as_end_entity(&error) => {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                    return Ok(ServerCertVerified::assertion());
                }
                Err(_) => {}
                verified => return verified,
            }
        }
        self.others.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.others.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.others.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.others.supported_verify_schemes()
    }
}
