//! Products of proxies, recognised by what they add to requests, responses and error pages.

use std::collections::BTreeMap;

use hyper::header::{HeaderMap, HeaderValue};

use super::report::RequestFields;

/// Product of a proxy or load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Product {
    Nginx,
    Haproxy,
    Envoy,
    Caddy,
    Traefik,
    Apache,
    Varnish,
    Cloudflare,
    CloudFront,
    AwsLoadBalancer,
    GoogleCloud,
    Heroku,
    AzureGateway,
}

impl Product {
    /// Name for people.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::Caddy => "Caddy",
            Self::Traefik => "Traefik",
            Self::Apache => "Apache httpd",
            Self::Varnish => "Varnish",
            Self::Cloudflare => "Cloudflare",
            Self::CloudFront => "CloudFront",
            Self::AwsLoadBalancer => "AWS load balancer",
            Self::GoogleCloud => "Google Cloud load balancer",
            Self::Heroku => "Heroku router",
            Self::AzureGateway => "Azure Application Gateway",
        }
    }
}

/// Text by which a product is recognised, in lower case.
const TEXTS: [(&str, Product); 20] = [
    ("openresty", Product::Nginx),
    ("nginx", Product::Nginx),
    ("haproxy", Product::Haproxy),
    ("envoy", Product::Envoy),
    ("caddy", Product::Caddy),
    ("traefik", Product::Traefik),
    ("apache", Product::Apache),
    ("varnish", Product::Varnish),
    ("cloudflare", Product::Cloudflare),
    ("cloudfront", Product::CloudFront),
    ("awselb", Product::AwsLoadBalancer),
    ("google", Product::GoogleCloud),
    ("gws", Product::GoogleCloud),
    ("vegur", Product::Heroku),
    ("heroku", Product::Heroku),
    ("azure", Product::AzureGateway),
    ("microsoft", Product::AzureGateway),
    // Pages of HAProxy and Caddy for a request that they cannot parse.
    ("your browser sent an invalid request", Product::Haproxy),
    (
        "text/plain; charset=utf-8\r\nconnection: close\r\n\r\n400 bad request",
        Product::Caddy,
    ),
    ("404 page not found", Product::Traefik),
];

/// Fields that a product adds to responses, or to requests for the pod.
const FIELDS: [(&str, Product); 11] = [
    ("x-envoy-upstream-service-time", Product::Envoy),
    ("x-envoy-expected-rq-timeout-ms", Product::Envoy),
    ("x-envoy-external-address", Product::Envoy),
    ("x-envoy-internal", Product::Envoy),
    ("x-forwarded-server", Product::Traefik),
    ("cf-ray", Product::Cloudflare),
    ("x-amz-cf-id", Product::CloudFront),
    ("x-amzn-trace-id", Product::AwsLoadBalancer),
    ("x-cloud-trace-context", Product::GoogleCloud),
    ("x-azure-ref", Product::AzureGateway),
    ("x-varnish", Product::Varnish),
];

/// Products on the way, each with what it was recognised by.
#[derive(Clone, Debug, Default)]
pub(super) struct Products(BTreeMap<Product, String>);

impl Products {
    /// Adds those that a response shows.
    pub(super) fn of_response(&mut self, headers: &HeaderMap) {
        for name in ["server", "via", "x-powered-by", "x-served-by"] {
            for value in headers.get_all(name).iter().map(HeaderValue::as_bytes) {
                let value = String::from_utf8_lossy(value);
                self.of_text(&value, &format!("`{name}: {value}`"));
            }
        }
        for (name, product) in FIELDS {
            if headers.contains_key(name) {
                self.add(product, format!("`{name}` in the response"));
            }
        }
    }

    /// Adds those that the pod has seen in the request.
    pub(super) fn of_request(&mut self, request: &RequestFields) {
        for (name, value) in &request.fields {
            self.of_text(value, &format!("`{name}: {value}` in the request"));
        }
        let names = request.fields.iter().map(|(name, _)| name);
        for name in names.chain(&request.names) {
            for (_, product) in FIELDS.iter().filter(|(field, _)| field == name) {
                self.add(*product, format!("`{name}` in the request"));
            }
        }
    }

    /// Adds the one whose error page this is, head included.
    pub(super) fn of_page(&mut self, page: &[u8], cause: &str) {
        // A pod that answers itself explains the rejection.
        if memchr::memmem::find(page, b"\"error\"").is_some() {
            return;
        }
        self.of_text(&String::from_utf8_lossy(page), cause);
    }

    fn of_text(&mut self, text: &str, evidence: &str) {
        let text = text.to_ascii_lowercase();
        for (part, product) in TEXTS {
            if text.contains(part) {
                self.add(product, evidence.to_owned());
            }
        }
    }

    fn add(&mut self, product: Product, evidence: String) {
        self.0.entry(product).or_insert(evidence);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Product, &str)> {
        self.0
            .iter()
            .map(|(product, evidence)| (*product, &**evidence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&'static str, &'static str)], page: &str) -> Vec<Product> {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.append(*name, HeaderValue::from_static(value));
        }
        let mut products = Products::default();
        products.of_response(&all);
        products.of_page(page.as_bytes(), "page");
        products.iter().map(|(product, _)| product).collect()
    }

    #[test]
    fn products_are_recognised_by_headers_and_pages() {
        assert_eq!(
            of(&[("server", "nginx/1.22.1"), ("via", "1.1 Caddy")], ""),
            [Product::Nginx, Product::Caddy]
        );
        assert_eq!(of(&[("server", "istio-envoy")], ""), [Product::Envoy]);
        assert_eq!(
            of(
                &[],
                "<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>"
            ),
            [Product::Haproxy]
        );
        assert_eq!(
            of(
                &[],
                "{\"error\":{\"code\":\"malformed\",\"hint\":\"nginx\"}}"
            ),
            []
        );
    }
}
