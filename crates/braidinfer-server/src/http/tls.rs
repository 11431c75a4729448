//! TLS from PEM files.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{StartError, TlsFiles};

pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, StartError> {
    let TlsFiles { certificates, key } = files;
    let read = CertificateDer::pem_file_iter(certificates).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = read.map_err(|error| tls_error(certificates, error))?;
    if chain.is_empty() {
        return Err(tls_error(certificates, "expected a certificate in PEM form, found none"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| tls_error(key, error))?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, private);
    let mut config = config.map_err(|error| tls_error(key, error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn tls_error(path: &Path, message: impl Display) -> StartError {
    StartError::Tls { path: path.display().to_string(), message: message.to_string() }
}
