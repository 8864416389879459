//! A PostgreSQL server: its URL, TLS, connections, and the mapping of its errors.

use std::{
    error::Error,
    fs::File,
    io::{self, BufReader},
    sync::Arc,
    time::Duration,
};

use percent_encoding::percent_decode_str;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres::{
    Client, Config, Connection, Socket,
    config::{Host, SslMode},
    error::SqlState,
    tls::{MakeTlsConnect, TlsConnect},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::LedgerError;

/// The port of a server whose URL names none.
const PORT: u16 = 5432;
/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Idle time after which TCP keepalive probes a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// How long sent data may stay unacknowledged.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// A server and how to reach it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) config: Config,
    /// The URL without its user and password.
    pub(crate) display_url: String,
    verify: Verify,
    root_file: Option<String>,
}

/// How the server's certificate is verified, as set by `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verify {
    /// `prefer` and `require`: not at all.
    Nothing,
    /// `verify-ca`: an authority must have signed it.
    Authority,
    /// `verify-full`: it must also be valid for this host.
    Name,
}

/// The stream of a connection over TLS or without.
pub(crate) type Stream =
    <<MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect as TlsConnect<Socket>>::Stream;

impl Server {
    /// Parses a URL with the parameters of libpq; `sslmode` and `sslrootcert` are handled here.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut rest, mut mode, mut root_file) = (Vec::new(), None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = || {
                let decoded = percent_decode_str(value).decode_utf8();
                decoded.map(String::from).map_err(|_invalid| format!("`{name}` is not UTF-8"))
            };
            match name {
                "sslmode" => mode = Some(decoded()?),
                "sslrootcert" => root_file = Some(decoded()?),
                _ => rest.push(pair),
            }
        }
        let parsed = format!("{base}?{}", rest.join("&")).parse::<Config>();
        let mut config = parsed.map_err(|error| reason(&error))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err("the host is missing".into());
        }
        let (ssl_mode, verify) = match (mode.as_deref(), &root_file) {
            (Some("disable"), _) => (SslMode::Disable, Verify::Nothing),
            (None | Some("prefer"), _) => (SslMode::Prefer, Verify::Nothing),
            (Some("require"), None) => (SslMode::Require, Verify::Nothing),
            // As in libpq, `sslrootcert` implies `verify-ca`.
            (Some("require"), Some(_)) | (Some("verify-ca"), _) => {
                (SslMode::Require, Verify::Authority)
            }
            (Some("verify-full"), _) => (SslMode::Require, Verify::Name),
            (Some(other), _) => {
                return Err(format!(
                    "unknown sslmode `{other}`: use disable, prefer, require, verify-ca or verify-full"
                ));
            }
        };
        config
            .ssl_mode(ssl_mode)
            .keepalives_idle(KEEPALIVE_IDLE)
            .tcp_user_timeout(TCP_USER_TIMEOUT);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("keybridge");
        }
        let display_url = super::without_password(base);
        Ok(Self { config, display_url, verify, root_file })
    }

    /// Its hosts and ports, and the database.
    pub(crate) fn location(&self) -> String {
        let ports = self.config.get_ports();
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(PORT);
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let addresses = self.config.get_hostaddrs().iter().map(ToString::to_string);
        let mut servers: Vec<String> = hosts.collect();
        if servers.is_empty() {
            servers.extend(addresses);
        }
        let servers: Vec<String> = servers
            .iter()
            .enumerate()
            .map(|(index, server)| format!("{server}:{}", port(index)))
            .collect();
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("postgres://{}/{database}", servers.join(","))
    }

    /// The TLS connector, used unless `sslmode` is `disable`.
    pub(crate) fn tls(&self) -> Result<MakeRustlsConnect, LedgerError> {
        let failed = |reason: String| LedgerError::Open { store: self.display_url.clone(), reason };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?;
        let verifier: Arc<dyn ServerCertVerifier> = match self.verify {
            Verify::Nothing => Arc::new(LenientVerifier { provider, authority: None }),
            Verify::Authority | Verify::Name => {
                let roots = Arc::new(self.roots().map_err(failed)?);
                let authority =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                        .build()
                        .map_err(|error| failed(error.to_string()))?;
                match self.verify {
                    Verify::Name => authority,
                    Verify::Authority | Verify::Nothing => {
                        Arc::new(LenientVerifier { provider, authority: Some(authority) })
                    }
                }
            }
        };
        let config =
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Ok(MakeRustlsConnect::new(config))
    }

    /// The root certificates of `sslrootcert`, or those of the system.
    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        match self.root_file.as_deref() {
            None | Some("system") => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
            Some(path) => {
                let invalid =
                    |error: &dyn std::fmt::Display| format!("sslrootcert `{path}`: {error}");
                let file = File::open(path).map_err(|error| invalid(&error))?;
                for certificate in CertificateDer::pem_reader_iter(BufReader::new(file)) {
                    let certificate = certificate.map_err(|error| invalid(&error))?;
                    roots.add(certificate).map_err(|error| invalid(&error))?;
                }
            }
        }
        if roots.is_empty() {
            return Err("no root certificate to verify the server's certificate with".into());
        }
        Ok(roots)
    }

    /// Opens a connection outside the pools; the client works only while the `Connection` is polled.
    pub(crate) async fn connect(
        &self,
        tls: &MakeRustlsConnect,
    ) -> Result<(Client, Connection<Socket, Stream>), LedgerError> {
        // Name resolution and the TLS handshake have no timeout of their own.
        let connecting = self.config.connect(tls.clone());
        match tokio::time::timeout(CONNECT_TIMEOUT * 2, connecting).await {
            Ok(connected) => connected.map_err(|error| failed(&error)),
            Err(_elapsed) => Err(LedgerError::Database("connection timed out".into())),
        }
    }

    /// An error at opening, with a hint what to do.
    pub(crate) fn open_error(&self, error: LedgerError) -> LedgerError {
        let LedgerError::Database(reason) = error else { return error };
        LedgerError::Open { store: self.display_url.clone(), reason: with_hint(reason) }
    }

    /// The error of a server that does not answer, with a hint what to do.
    pub(crate) fn unreachable_error(&self, reason: String) -> LedgerError {
        LedgerError::Unreachable { store: self.display_url.clone(), reason: with_hint(reason) }
    }
}

/// Adds what to do about an error at opening, where that is known.
fn with_hint(mut reason: String) -> String {
    let hints = [
        ("28P01", "check user and password"),
        ("28000", "check user, host and pg_hba.conf"),
        ("3D000", "create it with `createdb`, or use another database"),
        ("42501", "the user must be able to create tables in this database"),
        ("25006", "this server is read-only; use the primary"),
        ("refused", "is PostgreSQL running there?"),
    ];
    if let Some((_, hint)) = hints.iter().find(|(sign, _)| reason.contains(sign)) {
        reason.push_str("; ");
        reason.push_str(hint);
    }
    reason
}

/// The class of an error, which decides how it is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A record violates a constraint.
    Data,
    /// A conflict with another transaction.
    Contention,
    /// The server could not process a statement, or broke the connection off: because of what was to be
    /// written, or because it failed.
    Statement,
    /// The server failed, or the connection to it.
    Server,
}

impl Fault {
    pub(crate) fn of(error: &tokio_postgres::Error) -> Self {
        let Some(code) = error.code() else { return Self::Statement };
        if *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE
        {
            return Self::Contention;
        }
        // Data exceptions, violated constraints, exceeded program limits.
        match code.code().get(..2) {
            Some("22" | "23" | "54") => Self::Data,
            Some("XX") => Self::Statement,
            Some(_) if *code == SqlState::OUT_OF_MEMORY || *code == SqlState::QUERY_CANCELED => {
                Self::Statement
            }
            Some(_) | None => Self::Server,
        }
    }
}

/// Whether no server answered, or one that starts, stops or has too many clients: the configuration may be
/// right. A refused password, a missing database or an invalid certificate is not that.
pub(crate) fn is_unreachable(error: &tokio_postgres::Error) -> bool {
    if let Some(code) = error.code() {
        // Operator intervention and insufficient resources.
        return matches!(code.code().get(..2), Some("57" | "53"));
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            // An invalid certificate is invalid data.
            return error.kind() != io::ErrorKind::InvalidData;
        }
        source = cause.source();
    }
    error.is_closed()
}

/// Converts an error of the driver or the server.
pub(crate) fn failed(error: &tokio_postgres::Error) -> LedgerError {
    match Fault::of(error) {
        Fault::Data => LedgerError::Conflict(reason(error)),
        Fault::Contention | Fault::Statement | Fault::Server => {
            LedgerError::Database(reason(error))
        }
    }
}

/// The message of an error, without the values that the server puts into its details.
pub(crate) fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(server) = error.as_db_error() {
        return format!("{} ({})", server.message(), server.code().code());
    }
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !reason.contains(&cause_text) {
            reason = format!("{reason}: {cause_text}");
        }
        source = cause.source();
    }
    reason
}

/// Does not verify the name in a certificate: only its authority, or nothing at all.
#[derive(Debug)]
struct LenientVerifier {
    provider: Arc<CryptoProvider>,
    authority: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for LenientVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else {
            return Ok(ServerCertVerified::assertion());
        };
        let checked = authority.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match checked {
            // Only the name does not match, which `verify-ca` does not verify.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
