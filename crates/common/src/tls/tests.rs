//! TLS over real sockets, with certificates made here.

use std::fs;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;

/// Authority, and a directory with the files of one listener.
struct Place {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Place {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            authority,
        }
    }

    fn files(&self) -> TlsConfig {
        let at = |name| self.folder.path().join(name);
        TlsConfig {
            certificate: at("tls.crt"),
            key: at("tls.key"),
            client_ca: None,
            session_ticket_keys: None,
        }
    }

    /// Certificate for `localhost`, and its key.
    fn issue(&self, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (
            params.signed_by(&key, &self.authority).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    /// Writes a new pair and returns its certificate.
    fn renew(&self) -> Vec<u8> {
        let (certificate, key) = self.issue(ExtendedKeyUsagePurpose::ServerAuth);
        fs::write(self.files().certificate, &certificate).unwrap();
        fs::write(self.files().key, key).unwrap();
        CertificateDer::from_pem_slice(certificate.as_bytes())
            .unwrap()
            .to_vec()
    }

    fn client(&self, identity: Option<(String, String)>, alpn: &[&[u8]]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }
}

/// Observations of a client on a connection that sends "hello".
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    certificate: Vec<u8>,
    alpn: Option<Vec<u8>>,
    hello: String,
}

async fn visit(tls: &Tls, client: ClientConfig) -> io::Result<Seen> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let acceptor = tls.acceptor();
    let serve = async move {
        let mut connection = acceptor.accept(listener.accept().await?.0).await?;
        bound_buffers(&mut connection);
        connection.write_all(b"hello").await?;
        connection.shutdown().await
    };
    let come = async move {
        let name = ServerName::try_from("localhost").unwrap();
        let socket = TcpStream::connect(address).await?;
        let mut connection = TlsConnector::from(Arc::new(client))
            .connect(name, socket)
            .await?;
        let mut hello = String::new();
        connection.read_to_string(&mut hello).await?;
        let tls = connection.get_ref().1;
        let certificate = tls.peer_certificates().unwrap()[0].to_vec();
        Ok(Seen {
            certificate,
            alpn: tls.alpn_protocol().map(<[u8]>::to_vec),
            hello,
        })
    };
    let (served, seen) = tokio::join!(serve, come);
    served.and(seen)
}

async fn until(mut fact: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !fact().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holds)
        .await
        .expect("in time");
}

#[tokio::test]
async fn client_gets_http_2_first_and_the_certificate_of_the_files() {
    let place = Place::new();
    let certificate = place.renew();
    let tls = Tls::load(place.files(), Purpose::Clients).unwrap();
    for (offered, chosen) in [
        (&[b"http/1.1".as_slice(), b"h2"][..], Some("h2")),
        (&[b"http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let seen = visit(&tls, place.client(None, offered)).await.unwrap();
        let alpn = chosen.map(|chosen| chosen.as_bytes().to_vec());
        assert_eq!(
            seen,
            Seen {
                certificate: certificate.clone(),
                alpn,
                hello: "hello".into()
            }
        );
    }
}

#[tokio::test]
async fn client_authority_admits_only_clients_with_its_certificate() {
    let place = Place::new();
    place.renew();
    let ca = place.folder.path().join("ca.crt");
    fs::write(&ca, place.authority.pem()).unwrap();
    let files = TlsConfig {
        client_ca: Some(ca),
        ..place.files()
    };
    let tls = Tls::load(files, Purpose::Clients).unwrap();

    let known = place.issue(ExtendedKeyUsagePurpose::ClientAuth);
    assert_eq!(
        visit(&tls, place.client(Some(known), &[]))
            .await
            .unwrap()
            .hello,
        "hello"
    );
    visit(&tls, place.client(None, &[])).await.unwrap_err();
    let stranger = Place::new().issue(ExtendedKeyUsagePurpose::ClientAuth);
    visit(&tls, place.client(Some(stranger), &[]))
        .await
        .unwrap_err();
}

#[test]
fn invalid_file_is_reported_by_name() {
    let place = Place::new();
    let files = place.files();
    let refused = || {
        Tls::load(files.clone(), Purpose::Clients)
            .unwrap_err()
            .to_string()
    };
    assert!(
        refused().contains("tls.crt cannot be read"),
        "{}",
        refused()
    );
    place.renew();
    let (_, other) = place.issue(ExtendedKeyUsagePurpose::ServerAuth);
    fs::write(&files.key, other).unwrap();
    assert!(
        refused().contains("tls.key is not the key of"),
        "{}",
        refused()
    );
    fs::write(&files.key, "no key at all").unwrap();
    assert!(
        refused().ends_with("tls.key holds no private key"),
        "{}",
        refused()
    );
    fs::write(&files.certificate, "").unwrap();
    assert!(
        refused().ends_with("tls.crt holds no certificate"),
        "{}",
        refused()
    );
    place.renew();
    fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
    assert!(refused().contains("tls.crt is no PEM"), "{}", refused());
    fs::write(&files.certificate, vec![b'x'; FILE_BYTES_MAX as usize + 1]).unwrap();
    assert!(
        refused().ends_with("tls.crt is larger than 1 MiB"),
        "{}",
        refused()
    );
    place.renew();
    let ca = place.folder.path().join("ca.crt");
    fs::write(&ca, "not a certificate").unwrap();
    let files = TlsConfig {
        client_ca: Some(ca),
        ..files
    };
    let error = Tls::load(files, Purpose::Clients).unwrap_err();
    assert!(
        error.to_string().ends_with("ca.crt holds no certificate"),
        "{error}"
    );
}

#[tokio::test]
async fn valid_change_is_loaded_and_an_invalid_one_keeps_the_current_certificate() {
    let place = Place::new();
    let first = place.renew();
    let tls = Tls::load(place.files(), Purpose::Clients).unwrap();
    let (reports, last) = tokio::sync::watch::channel("not followed yet".to_owned());
    let report = move |reload: Result<(), ReloadError>| {
        reports.send_replace(reload.map_or_else(|error| error.to_string(), |()| "ok".into()));
    };
    let following = tokio::spawn(tls.clone().poll(report, Duration::from_millis(30)));
    let served = async || {
        visit(&tls, place.client(None, &[]))
            .await
            .unwrap()
            .certificate
    };
    until(async || *last.borrow() == "ok").await;

    // Only the certificate of a new pair, with the old key.
    let (certificate, key) = place.issue(ExtendedKeyUsagePurpose::ServerAuth);
    fs::write(place.files().certificate, &certificate).unwrap();
    until(async || last.borrow().contains("is not the key of")).await;
    assert_eq!(served().await, first);

    fs::write(place.files().key, key).unwrap();
    until(async || *last.borrow() == "ok").await;
    let second = CertificateDer::from_pem_slice(certificate.as_bytes())
        .unwrap()
        .to_vec();
    assert_eq!(served().await, second);

    fs::remove_file(place.files().key).unwrap();
    until(async || last.borrow().contains("cannot be read")).await;
    assert_eq!(served().await, second);

    let third = place.renew();
    until(async || served().await == third).await;
    assert_eq!(*last.borrow(), "ok");
    following.abort();
}

#[test]
fn sessions_survive_a_renewal_but_not_a_changed_client_authority() {
    let place = Place::new();
    place.renew();
    let ca = place.folder.path().join("ca.crt");
    fs::write(&ca, place.authority.pem()).unwrap();
    let files = TlsConfig {
        client_ca: Some(ca.clone()),
        ..place.files()
    };
    let mut tls = Tls::load(files.clone(), Purpose::Clients).unwrap();
    let mut sessions_kept = || {
        let before = Arc::clone(&tls.current.load().ours.tls13.session_storage);
        let read = Files::read(&files).unwrap();
        let now = read.contents();
        tls.replace(Ok(read), now).unwrap();
        Arc::ptr_eq(&before, &tls.current.load().ours.tls13.session_storage)
    };
    place.renew();
    assert!(sessions_kept());
    fs::write(&ca, Place::new().authority.pem()).unwrap();
    assert!(!sessions_kept());
}

#[tokio::test]
async fn aes_128_is_preferred_unless_the_client_asks_for_chacha20_first() {
    use CipherSuite as Suite;
    let place = Place::new();
    place.renew();
    let tls = Tls::load(place.files(), Purpose::Clients).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (aes_128, aes_256) = (
        Suite::TLS13_AES_128_GCM_SHA256,
        Suite::TLS13_AES_256_GCM_SHA384,
    );
    let chacha = Suite::TLS13_CHACHA20_POLY1305_SHA256;
    for (offered, taken) in [
        (&[aes_256, aes_128, chacha][..], aes_128),
        (&[aes_256, chacha, aes_128], aes_128),
        (&[aes_128, aes_256, chacha], aes_128),
        (&[chacha, aes_128, aes_256], chacha),
        (&[aes_256], aes_256),
    ] {
        let mut provider = ring::default_provider();
        provider
            .cipher_suites
            .retain(|suite| offered.contains(&suite.suite()));
        provider
            .cipher_suites
            .sort_by_key(|suite| offered.iter().position(|wanted| *wanted == suite.suite()));
        let mut roots = RootCertStore::empty();
        roots.add(place.authority.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions();
        let client = builder
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let serve = async {
            tls.acceptor()
                .accept(listener.accept().await.unwrap().0)
                .await
                .unwrap()
        };
        let visit = connector.connect(ServerName::try_from("localhost").unwrap(), socket);
        let (served, visited) = tokio::join!(serve, visit);
        visited.unwrap();
        let suite = served
            .get_ref()
            .1
            .negotiated_cipher_suite()
            .unwrap()
            .suite();
        assert_eq!(suite, taken, "{offered:?}");
    }
}
