//! Names, end and attacks, with certificates that `rcgen` makes.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, KeyPair, SanType,
    date_time_ymd,
};
use serde_json::{Value, json};

use super::identity;
use crate::auth::Identity;
use crate::auth::clock::Now;

/// 2026-01-01, the moment of all checks.
const WALL: Duration = Duration::from_secs(1_767_225_600);

fn now() -> Now {
    Now {
        wall: WALL,
        instant: Instant::now(),
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).unwrap())
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// Returns the certificate of a common name, valid until 2027-01-01.
fn params(common_name: &str, names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !common_name.is_empty() {
        let key = DnType::CommonName;
        params.distinguished_name.push(key, common_name);
    }
    params.subject_alt_names = names;
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params
}

fn der(params: &CertificateParams) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn read(params: &CertificateParams) -> Result<Identity, &'static str> {
    identity("mesh", &der(params), now())
}

#[test]
fn claims_are_the_names_of_the_certificate() {
    let names = vec![
        SanType::IpAddress([127, 0, 0, 1].into()),
        dns("orders.shop.svc"),
        uri("spiffe://cluster.local/ns/shop/sa/orders"),
        dns("orders"),
        SanType::Rfc822Name(Ia5String::try_from("a@example.com").unwrap()),
    ];
    let identity = read(&params("orders", names)).unwrap();
    let claims = json!({
        "subject": "CN=orders",
        "san": {
            "dns": ["orders.shop.svc", "orders"],
            "uri": ["spiffe://cluster.local/ns/shop/sa/orders"],
        },
    });
    assert_eq!(Value::Object(identity.claims), claims);
    assert_eq!(&*identity.provider, "mesh");
}

#[test]
fn subject_is_the_first_uri_else_the_first_dns_name_else_the_distinguished_name() {
    for (names, subject) in [
        (
            vec![dns("b"), uri("spiffe://d/c"), uri("a:b")],
            "spiffe://d/c",
        ),
        (vec![dns("b"), dns("a")], "b"),
        (vec![], "CN=orders"),
    ] {
        assert_eq!(&*read(&params("orders", names)).unwrap().subject, subject);
    }
    assert_eq!(
        read(&params("", vec![])).unwrap_err(),
        "the client certificate has no name"
    );
    let unnamed = read(&params("", vec![uri("spiffe://d/c")])).unwrap();
    assert_eq!(unnamed.claims["subject"], "");
}

#[test]
fn distinguished_name_is_written_as_rfc_4514_says() {
    let mut names = DistinguishedName::new();
    names.push(DnType::CountryName, "DE");
    names.push(DnType::OrganizationName, r#" Shop, "Nord"; <a+b> = \ "#);
    names.push(DnType::OrganizationalUnitName, "#1\0\n");
    names.push(DnType::CustomDnType(vec![1, 2, 3, 4]), "x");
    names.push(
        DnType::CommonName,
        DnValue::Utf8String("Bestell\u{f6}rtchen".into()),
    );
    let mut params = params("", vec![]);
    params.distinguished_name = names;
    let identity = read(&params).unwrap();
    assert_eq!(
        identity.claims["subject"],
        r##"CN=Bestellörtchen,1.2.3.4=#0c0178,OU=\#1\00\0a,O=\ Shop\, \"Nord\"\; \<a\+b\> = \\\ ,C=DE"##
    );
}

#[test]
fn certificate_expires_at_its_end_without_a_leeway() {
    let now = now();
    let read_at = |not_after: (i32, u8, u8)| {
        let mut params = params("a", vec![]);
        params.not_after = date_time_ymd(not_after.0, not_after.1, not_after.2);
        identity("mesh", &der(&params), now)
    };
    let expires = read_at((2026, 1, 2)).unwrap().expires.unwrap();
    assert_eq!(expires.unix_seconds, WALL.as_secs() + 86_400);
    assert_eq!(expires.at, now.instant + Duration::from_secs(86_400));
    assert_eq!(expires.at, expires.end);
    for end in [(2026, 1, 1), (2025, 12, 31)] {
        let expired = read_at(end).unwrap_err();
        assert_eq!(expired, "the client certificate has expired");
    }
    assert!(read_at((9999, 12, 31)).is_ok(), "no end: RFC 5280, 4.1.2.5");
}

#[test]
fn names_that_cannot_be_read_are_rejected() {
    for name in [
        "",
        "a b",
        "bank.example\0.evil.example",
        "a\r\nb",
        "a\u{7f}",
    ] {
        for names in [vec![uri("spiffe://d/c"), dns(name)], vec![uri(name)]] {
            assert_eq!(
                read(&params("a", names)).unwrap_err(),
                "the client certificate cannot be read",
                "{name:?}"
            );
        }
    }
    // Alternative names that are no sequence, and a second extension with names.
    let names = |content: &[u8]| CustomExtension::from_oid_content(&[2, 5, 29, 17], content.into());
    for contents in [
        vec![&b"\x04\x00"[..]],
        vec![b"\x30\x03\x82\x01a", b"\x30\x03\x82\x01b"],
    ] {
        let mut params = params("a", vec![]);
        params.custom_extensions = contents.into_iter().map(names).collect();
        let unreadable = read(&params).unwrap_err();
        assert_eq!(unreadable, "the client certificate cannot be read");
    }
}

proptest! {
    #[test]
    fn any_bytes_get_a_result(at in 0_usize..500, bytes in prop::collection::vec(any::<u8>(), 0..8), keep in 0_usize..1000) {
        let mut der = certificate();
        for (index, byte) in bytes.iter().enumerate() {
            if let Some(place) = der.get_mut(at + index) {
                *place = *byte;
            }
        }
        der.truncate(keep);
        drop(identity("mesh", &der, now()));
        drop(identity("mesh", &bytes, now()));
    }
}

/// Returns a certificate with names of all kinds; the same one for all cases.
fn certificate() -> Vec<u8> {
    use std::sync::OnceLock;
    static DER: OnceLock<Vec<u8>> = OnceLock::new();
    let names = || {
        vec![
            dns("orders.shop.svc"),
            uri("spiffe://cluster.local/ns/shop/sa/orders"),
        ]
    };
    DER.get_or_init(|| der(&params("orders", names()))).clone()
}
