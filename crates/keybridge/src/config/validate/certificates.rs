//! PEM files of certificates and keys.

use keybridge_net::listener::{Certificate, ServerTls};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::Check;
use crate::config::raw::RawTls;

impl Check<'_> {
    /// The certificate of the server.
    pub(super) fn tls(&mut self, path: &str, raw: &RawTls) -> Option<ServerTls> {
        let chain = certificates(&raw.certificate);
        let key = PrivateKeyDer::from_pem_file(&raw.key)
            .map_err(|error| format!("cannot read `{}`: {error}", raw.key));
        match (chain, key) {
            (Ok(chain), Ok(key)) => match ServerTls::new(Certificate { chain, key }) {
                Ok(tls) => {
                    self.secret_file(&format!("{path}.key"), &raw.key);
                    return Some(tls);
                }
                Err(error) => {
                    self.problem(path, format!("cannot use this certificate and key: {error}"));
                }
            },
            (chain, key) => {
                let mut problem = |name: &str, message: Option<String>| {
                    if let Some(message) = message {
                        self.problem(format!("{path}.{name}"), message);
                    }
                };
                problem("certificate", chain.err());
                problem("key", key.err());
            }
        }
        None
    }
}

/// Reads the certificates of a file, which must contain at least one.
pub(super) fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot read `{file}`: {error}");
    let read = CertificateDer::pem_file_iter(file).map_err(|error| failed(&error))?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
    if certificates.is_empty() {
        return Err(failed(&"it contains no PEM certificate"));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use crate::{
        config::{Config, Overrides},
        env::Env,
    };

    fn write(dir: &Path, name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["keybridge.test".to_owned()]).unwrap();
        let path = |end: &str| dir.join(format!("{name}.{end}")).display().to_string();
        let (certificate, key) = (path("crt"), path("key"));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    }

    fn parse(certificate: &str, key: &str) -> Result<Config, Vec<String>> {
        let text = format!("[server.tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"");
        Config::parse(&text, &Env::default(), &Overrides::default())
            .map_err(|problems| problems.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_certificate_and_its_key_must_match() {
        let dir = tempfile::tempdir().unwrap();
        let ((certificate, key), (_, other)) = (write(dir.path(), "a"), write(dir.path(), "b"));
        let config = parse(&certificate, &key).unwrap();
        assert!(config.tls.is_some());
        assert_eq!(config.public_url, "https://127.0.0.1:8787");
        let shown = format!("{config:?}");
        assert!(!shown.contains("PRIVATE"), "{shown}");
        let found = parse(&certificate, &other).unwrap_err();
        assert!(
            found[0].starts_with("server.tls: cannot use this certificate and key: "),
            "{found:?}"
        );
        let found = parse(&key, "").unwrap_err();
        assert!(found[0].starts_with("server.tls.certificate: "), "{found:?}");
        assert!(found[1].starts_with("server.tls.key: "), "{found:?}");
        assert_eq!(found.len(), 2);
    }
}
