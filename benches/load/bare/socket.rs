//! Socket of a client of the bare loop, in clear text or with TLS.
//!
//! TLS is what rustls does, with the settings of the sidecar: one record and one `send` for each
//! write, AES-128 first, one session ticket.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use mio::event::Source;
use mio::net::TcpStream;
use rustls::crypto::ring;
use rustls::{CipherSuite, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::Fallible;

/// Non-blocking byte stream.
pub(super) enum Socket {
    Clear(TcpStream),
    Tls(Box<(TcpStream, ServerConnection)>),
}

/// Returns the TLS settings of the sidecar, for a certificate with its key.
pub(super) fn tls(certificate: &Path, key: &Path) -> Fallible<Arc<ServerConfig>> {
    let mut provider = ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.send_tls13_tickets = 1;
    config.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

impl Socket {
    pub(super) fn new(socket: TcpStream, tls: Option<&Arc<ServerConfig>>) -> Fallible<Self> {
        let Some(tls) = tls else {
            return Ok(Self::Clear(socket));
        };
        let mut connection = ServerConnection::new(Arc::clone(tls))?;
        // What the socket does not accept is kept here.
        connection.set_buffer_limit(None);
        Ok(Self::Tls(Box::new((socket, connection))))
    }

    /// Returns the socket for registering it with the event loop.
    pub(super) fn source(&mut self) -> &mut impl Source {
        match self {
            Self::Clear(socket) => socket,
            Self::Tls(tls) => &mut tls.0,
        }
    }

    /// Reads what has arrived. The handshake is part of reading.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (socket, connection) = match self {
            Self::Clear(socket) => return socket.read(buffer),
            Self::Tls(tls) => &mut **tls,
        };
        loop {
            match connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if connection.read_tls(socket)? == 0 {
                return Ok(0);
            }
            connection
                .process_new_packets()
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            send(socket, connection)?;
        }
    }

    /// Writes with one `send`, and returns the number of bytes that are accepted. With TLS it is all
    /// of them, or none while earlier ones wait.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (socket, connection) = match self {
            Self::Clear(socket) => return socket.write(bytes),
            Self::Tls(tls) => &mut **tls,
        };
        send(socket, connection)?;
        if connection.wants_write() {
            return Err(ErrorKind::WouldBlock.into());
        }
        connection.writer().write_all(bytes)?;
        send(socket, connection)?;
        Ok(bytes.len())
    }

    /// Returns whether accepted bytes wait for the socket.
    pub(super) fn is_waiting(&self) -> bool {
        match self {
            Self::Clear(_) => false,
            Self::Tls(tls) => tls.1.wants_write(),
        }
    }
}

/// Sends records until the socket is full.
fn send(socket: &mut TcpStream, connection: &mut ServerConnection) -> io::Result<()> {
    while connection.wants_write() {
        match connection.write_tls(socket) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
