//! Session tickets of TLS 1.3 whose keys are shared by several pods.
//!
//! A ticket is the state of a session, encrypted with a key of the server. A client that returns
//! with it resumes the session without certificate and signature, on every pod that has the key.
//! The exchange of fresh keys (ECDHE) remains, so the ticket keys do not decrypt recorded
//! connections; with them an attacker on the path can impersonate the server to clients that
//! resume.
//!
//! The file has one secret per line, in base64. The first one encrypts, all decrypt: a rotation
//! adds a line at the top and removes the last one. From each secret a key and its name are
//! derived. They also depend on the authorities of clients, because a ticket replaces the
//! verification of a client's certificate: a listener with other authorities does not accept it.
//!
//! ```text
//! ticket   key name (16) | nonce (12) | ciphertext | tag (16)
//! content  time of issue (8, seconds) | state of the session
//! ```

use std::fmt;
use std::path::Path;
use std::str;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::server::ProducesTickets;

use super::TlsError;

/// 48 h, as BoringSSL: an event stream can be two days old when its pod drains.
const LIFETIME_SECONDS: u32 = 48 * 60 * 60;

/// 32 bytes: 256 random bits.
const SECRET_BYTES_MIN: usize = 32;

/// 16: a ticket is compared with the name of each key.
const KEYS_MAX: usize = 16;

/// 16 KiB: the state of a session, with the certificate chain of the client.
const TICKET_BYTES_MAX: usize = 16 * 1024;

const NAME_BYTES: usize = 16;
const TIME_BYTES: usize = 8;

/// Encrypts session tickets with the first key, and decrypts those of all keys.
pub(super) struct SharedTickets(Vec<TicketKey>);

struct TicketKey {
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
}

/// Length of the name of a key.
struct NameLength;

impl KeyType for NameLength {
    fn len(&self) -> usize {
        NAME_BYTES
    }
}

impl SharedTickets {
    /// Reads the text of a key file. Tickets are valid for equal `authorities` of clients only.
    pub(super) fn parse(
        text: &[u8],
        file: &Path,
        authorities: Option<&[u8; 32]>,
    ) -> Result<Self, TlsError> {
        let text = str::from_utf8(text).map_err(|_| TlsError::new(file, "is not text"))?;
        let lines = text.lines().zip(1..);
        let lines = lines.filter(|(line, _)| !line.trim().is_empty());
        let keys = lines.map(|(line, number)| {
            let secret = STANDARD.decode(line.trim()).unwrap_or_default();
            if secret.len() < SECRET_BYTES_MIN {
                let reason = format!(
                    "has no key in line {number}: a key is the output of `openssl rand -base64 32`"
                );
                return Err(TlsError::new(file, reason));
            }
            let key = TicketKey::derive(&secret, authorities.map_or(&[], |digest| digest));
            key.ok_or_else(|| TlsError::new(file, "cannot be used"))
        });
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err(TlsError::new(file, "holds no key")),
            count if count > KEYS_MAX => {
                let reason = format!("holds {count} keys: at most {KEYS_MAX} are possible");
                Err(TlsError::new(file, reason))
            }
            _ => Ok(Self(keys)),
        }
    }

    fn encrypt_at(&self, now: u64, state: &[u8]) -> Option<Vec<u8>> {
        let TicketKey { name, key } = self.0.first()?;
        // A random nonce: pods that share a key have no common counter. 2^32 tickets of one key
        // would be too many.
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut content = Vec::with_capacity(TIME_BYTES + state.len());
        content.extend_from_slice(&now.to_be_bytes());
        content.extend_from_slice(state);
        let sealed = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(sealed, Aad::from(name), &mut content);
        Some([name, &nonce[..], &content, tag.ok()?.as_ref()].concat())
    }

    fn decrypt_at(&self, now: u64, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>()?;
        // The name is not a secret: each ticket has it in clear text.
        let key = &self.0.iter().find(|key| key.name == *name)?.key;
        let mut content = ciphertext.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let content = key
            .open_in_place(nonce, Aad::from(name), &mut content)
            .ok()?;
        let (issued, state) = content.split_first_chunk::<TIME_BYTES>()?;
        let age = now.saturating_sub(u64::from_be_bytes(*issued));
        (age <= u64::from(LIFETIME_SECONDS)).then(|| state.to_vec())
    }
}

impl TicketKey {
    fn derive(secret: &[u8], authorities: &[u8]) -> Option<Self> {
        let salt = Salt::new(HKDF_SHA256, b"sidestream session tickets");
        let secret = salt.extract(secret);
        let (for_key, for_name) = ([b"key", authorities], [b"name", authorities]);
        let key = UnboundKey::from(secret.expand(&for_key, &CHACHA20_POLY1305).ok()?);
        let mut name = [0; NAME_BYTES];
        let derived = secret.expand(&for_name, NameLength).ok()?;
        derived.fill(&mut name).ok()?;
        Some(Self {
            name,
            key: LessSafeKey::new(key),
        })
    }
}

impl ProducesTickets for SharedTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(now()?, plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(now()?, cipher)
    }
}

impl fmt::Debug for SharedTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTickets")
            .field("keys", &self.0.len())
            .finish_non_exhaustive()
    }
}

fn now() -> Option<u64> {
    let now = SystemTime::UNIX_EPOCH.elapsed().ok()?;
    Some(now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(lines: &[u8], authorities: Option<&[u8; 32]>) -> SharedTickets {
        let lines = lines.iter().map(|byte| STANDARD.encode([*byte; 32]));
        let text = lines.collect::<Vec<_>>().join("\n");
        SharedTickets::parse(text.as_bytes(), Path::new("keys"), authorities).unwrap()
    }

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn ticket_is_valid_on_a_pod_with_the_key_until_the_key_is_removed() {
        let [first, added, rotated, removed] =
            [&[1][..], &[2, 1], &[3, 2, 1], &[3, 2]].map(|lines| tickets(lines, None));
        let ticket = first.encrypt_at(NOW, b"state").unwrap();
        for pod in [&first, &added, &rotated] {
            assert_eq!(pod.decrypt_at(NOW, &ticket).unwrap(), b"state");
        }
        assert_eq!(removed.decrypt_at(NOW, &ticket), None);
        let ticket = rotated.encrypt_at(NOW, b"state").unwrap();
        assert_eq!(removed.decrypt_at(NOW, &ticket).unwrap(), b"state");
        assert_eq!(
            added.decrypt_at(NOW, &ticket),
            None,
            "the first key encrypts"
        );
    }

    #[test]
    fn ticket_of_a_listener_with_other_client_authorities_is_rejected() {
        let [none, one, other] = [None, Some(&[1; 32]), Some(&[2; 32])];
        let ticket = tickets(&[1], one).encrypt_at(NOW, b"state").unwrap();
        assert!(tickets(&[1], one).decrypt_at(NOW, &ticket).is_some());
        assert_eq!(tickets(&[1], none).decrypt_at(NOW, &ticket), None);
        assert_eq!(tickets(&[1], other).decrypt_at(NOW, &ticket), None);
    }

    #[test]
    fn ticket_expires() {
        let tickets = tickets(&[1], None);
        let ticket = tickets.encrypt_at(NOW, b"state").unwrap();
        let end = NOW + u64::from(LIFETIME_SECONDS);
        assert!(tickets.decrypt_at(end, &ticket).is_some());
        assert_eq!(tickets.decrypt_at(end + 1, &ticket), None);
        // The clocks of pods differ.
        assert!(tickets.decrypt_at(NOW - 1, &ticket).is_some());
    }

    #[test]
    fn changed_ticket_is_rejected() {
        let tickets = tickets(&[1], None);
        let ticket = tickets.encrypt_at(NOW, b"state").unwrap();
        for length in 0..ticket.len() {
            assert_eq!(tickets.decrypt_at(NOW, &ticket[..length]), None);
            let mut changed = ticket.clone();
            changed[length] ^= 1;
            assert_eq!(tickets.decrypt_at(NOW, &changed), None, "byte {length}");
        }
        let large = [&ticket[..], &[0; TICKET_BYTES_MAX]].concat();
        assert_eq!(tickets.decrypt_at(NOW, &large), None);
    }

    #[test]
    fn invalid_key_file_is_reported_with_the_line() {
        let rejected = |text: &str| {
            let parsed = SharedTickets::parse(text.as_bytes(), Path::new("keys"), None);
            parsed.unwrap_err().to_string()
        };
        let key = STANDARD.encode([1; 32]);
        assert_eq!(rejected("\n\n"), "keys holds no key");
        for line in ["not base64", &STANDARD.encode([1; 31])] {
            let error = rejected(&format!("{key}\n{line}\n"));
            assert!(error.starts_with("keys has no key in line 2: "), "{error}");
        }
        let many = format!("{key}\n").repeat(KEYS_MAX + 1);
        assert_eq!(
            rejected(&many),
            "keys holds 17 keys: at most 16 are possible"
        );
    }
}
