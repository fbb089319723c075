//! Reads `certificate:` of a provider: client certificates, which need no settings.

use crate::auth::config::ProviderKind;
use crate::config::reader::ValueReader;

pub(super) fn certificate(value: &ValueReader<'_>) -> Option<ProviderKind> {
    value.map(|_| Some(ProviderKind::Certificate))
}

#[cfg(test)]
mod tests {
    use crate::config::{effective, parse};

    const LISTEN: &str = "
listen:
  - address: 127.0.0.1:8080
  - address: 127.0.0.1:8443
    tls: { certificate: tls.crt, key: tls.key, client_ca: ca.crt }
";

    const PROVIDER: &str = "
authentication: { providers: [{ name: mesh, certificate: {} }] }
routes:
  - path: /a
    authenticate: [mesh]
    sources: [{ subjects: [a] }]
";

    fn problems(text: &str) -> Vec<String> {
        let Err(problems) = parse(text, "f", &|_| None) else {
            return Vec::new();
        };
        let all = problems.as_slice().iter();
        all.map(|problem| format!("{}: {}", problem.line, problem.message))
            .collect()
    }

    #[test]
    fn route_with_certificates_needs_a_listener_with_client_authorities() {
        assert!(problems(&format!("{LISTEN}{PROVIDER}")).is_empty());
        let without = "no client can have a certificate: no listener has `client_ca`";
        assert_eq!(problems(PROVIDER), [format!("5: {without}")]);
        let null = LISTEN.replace("ca.crt", "null");
        assert_eq!(
            problems(&format!("{null}{PROVIDER}")),
            [format!("10: {without}")]
        );
        let invalid = LISTEN.replace("127.0.0.1:8443", "here");
        let reported = problems(&format!("{invalid}{PROVIDER}"));
        assert_eq!(reported.len(), 1, "the listener only: {reported:?}");
        let unused = PROVIDER.replace("    authenticate: [mesh]\n", "");
        assert!(problems(&unused).is_empty());
    }

    #[test]
    fn certificate_is_a_kind_of_its_own_without_keys() {
        let text = format!("{LISTEN}{PROVIDER}");
        let config = parse(&text, "f", &|_| None).unwrap();
        let shown = &effective(&config)["authentication"]["providers"][0];
        let expected = serde_json::json!({ "name": "mesh", "certificate": {} });
        assert_eq!(*shown, expected);
        for (provider, problem) in [
            ("certificate: { ca: a }", "unknown key `ca`"),
            (
                "certificate: null",
                "`certificate` must be a map, not nothing",
            ),
            (
                "certificate: {}, jwt: { keys: { secret: 0123456789abcdef0123456789abcdef } }",
                "`certificate` and `jwt` are both set",
            ),
        ] {
            let text = text.replace("certificate: {}", provider);
            let problems = problems(&text);
            let is_reported = |line: &String| line.ends_with(problem);
            assert!(problems.iter().any(is_reported), "{provider}: {problems:?}");
        }
    }
}
