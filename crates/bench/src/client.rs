//! A blocking client that implements as much of HTTP/1.1 as the measurements need.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use memchr::memmem;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, pem::PemObject},
};

/// How long a read may take.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection and what was read from it.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
    /// How much of the buffer was consumed.
    consumed: usize,
}

/// The transport of a connection.
trait Transport: Read + Write + Send + std::fmt::Debug {}

impl<T: Read + Write + Send + std::fmt::Debug> Transport for T {}

type Stream = Box<dyn Transport>;

/// The TLS configuration for the measured server, whose certificate is for `localhost`.
#[derive(Debug, Clone)]
pub(crate) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Trusts only the certificate in this PEM file.
    pub(crate) fn trusting(file: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

/// A request that is sent repeatedly.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Head and body.
    bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn new(path: &str, token: &str, plan: &str, body: &str) -> Self {
        let length = body.len();
        let bytes = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\nuser-agent: bench/1\r\ncontent-type: application/json\r\naccept: */*\r\nauthorization: Bearer {token}\r\nanthropic-version: 2023-06-01\r\nx-bench: {plan}\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        Self { bytes: bytes.into_bytes() }
    }
}

/// Connects to the provider; each byte sent on this connection requests the next event of a stream.
pub(crate) fn open_tick_connection(mock: SocketAddr, number: u64) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(mock)?;
    stream.set_nodelay(true)?;
    let head = format!("POST /tick HTTP/1.1\r\nx-bench: mode=tick;tick={number}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    Ok(stream)
}

impl Connection {
    pub(crate) fn open(to: SocketAddr, tls: Option<&Tls>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).with_context(|| format!("{to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        let stream: Stream = match tls {
            None => Box::new(stream),
            Some(Tls(config)) => {
                let session = ClientConnection::new(Arc::clone(config), "localhost".try_into()?)?;
                Box::new(StreamOwned::new(session, stream))
            }
        };
        Ok(Self { stream, buffer: Vec::with_capacity(64 * 1024), consumed: 0 })
    }

    pub(crate) fn send(&mut self, request: &Request) -> anyhow::Result<()> {
        self.buffer.clear();
        self.consumed = 0;
        self.stream.write_all(&request.bytes)?;
        Ok(self.stream.flush()?)
    }

    /// Reads and returns the head of a response, whose status must be 200.
    pub(crate) fn read_head(&mut self) -> anyhow::Result<String> {
        let end = self.read_until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(self.buffer.get(..end).unwrap_or_default()).into_owned();
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}{}", self.rest());
        Ok(head)
    }

    /// Reads a complete response of known length.
    pub(crate) fn read_body(&mut self) -> anyhow::Result<()> {
        let head = self.read_head()?.to_ascii_lowercase();
        let length = head.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
        let Some(length) = length else { return self.end() };
        let length: usize = length.trim().parse()?;
        while self.buffer.len() < self.consumed + length {
            self.read()?;
        }
        Ok(())
    }

    /// Waits for the next event; returns its end in the buffer.
    pub(crate) fn read_event(&mut self) -> anyhow::Result<usize> {
        self.read_until(b"\n\n")
    }

    /// The creation time of the event that ends here, in nanoseconds since 1970.
    pub(crate) fn stamp(&self, end: usize) -> Option<u128> {
        let text = self.buffer.get(..end)?;
        let at = memmem::rfind(text, b"\"text\":\"").map(|at| at + 8)?;
        std::str::from_utf8(text.get(at..at + 20)?).ok()?.parse().ok()
    }

    /// Reads a stream to its end; returns the number of events.
    pub(crate) fn read_stream(&mut self) -> anyhow::Result<usize> {
        self.end()?;
        Ok(memmem::find_iter(&self.buffer, b"\n\n").count())
    }

    /// Reads to the end of a chunked body.
    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        while !self.buffer.ends_with(b"\r\n0\r\n\r\n") {
            self.read()?;
        }
        Ok(())
    }

    /// Discards what was consumed.
    pub(crate) fn discard_read(&mut self) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
    }

    fn read_until(&mut self, end: &[u8]) -> anyhow::Result<usize> {
        loop {
            let from = self.consumed;
            let found = self.buffer.get(from..).and_then(|text| memmem::find(text, end));
            if let Some(at) = found {
                self.consumed = from + at + end.len();
                return Ok(self.consumed);
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let mut piece = [0; 64 * 1024];
        let read = self.stream.read(&mut piece)?;
        if read == 0 {
            bail!("the connection was closed before the response was complete: {}", self.rest());
        }
        self.buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
        Ok(())
    }

    /// The unread bytes, for an error message.
    fn rest(&self) -> String {
        String::from_utf8_lossy(self.buffer.get(self.consumed..).unwrap_or_default()).into_owned()
    }
}
