//! Configuration of tracing (`tracing:`).

use hyper::Uri;

/// Destination of spans, and the ratio that is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Collector of OTLP over HTTP. `None`: nothing is recorded.
    pub otlp: Option<Uri>,
    /// Ratio of recorded events and event streams.
    pub sample: SampleRatio,
}

/// Ratio of what is sampled: from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRatio(f64);

/// It is never NaN.
impl Eq for SampleRatio {}

impl SampleRatio {
    /// Returns the ratio; `None` unless it is from 0 to 1.
    #[must_use]
    pub fn new(ratio: f64) -> Option<Self> {
        (0.0..=1.0).contains(&ratio).then_some(Self(ratio))
    }

    /// Returns the ratio.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }

    /// Returns the number below which the random part of a sampled trace id is. 0: nothing is
    /// sampled.
    pub(super) fn threshold(self) -> u64 {
        if self.0 >= 1.0 {
            return u64::MAX;
        }
        (self.0 * (1_u64 << 63) as f64) as u64
    }
}

impl Default for SampleRatio {
    fn default() -> Self {
        Self(0.01)
    }
}

/// Port of OTLP over gRPC, which Sidestream does not send.
pub(crate) const GRPC_PORT: u16 = 4317;

/// Path of traces below the address of a collector (OTLP/HTTP).
const PATH: &str = "/v1/traces";

impl Config {
    /// Parses the address of a collector.
    ///
    /// # Errors
    /// If it is no `http` or `https` URL of a host, or has more than a path.
    pub fn parse_address(text: &str) -> Result<Uri, &'static str> {
        const EXPECTED: &str =
            "a collector is written as `http://HOST:4318` or `https://HOST:4318`";
        let url: Uri = text.parse().map_err(|_| EXPECTED)?;
        let is_http = matches!(url.scheme_str(), Some("http" | "https"));
        let has_host = url.host().is_some_and(|host| !host.is_empty());
        if !is_http || !has_host {
            return Err(EXPECTED);
        }
        if url.authority().is_some_and(|it| it.as_str().contains('@')) {
            return Err("credentials of the collector belong to OTEL_EXPORTER_OTLP_HEADERS");
        }
        if url.query().is_some() {
            return Err("the address of the collector has a query");
        }
        Ok(url)
    }
}

/// Returns the URL to which traces are sent: that of the collector with the path of traces.
pub(super) fn traces_url(collector: &Uri) -> String {
    let text = collector.to_string();
    let base = text.trim_end_matches('/');
    if base.ends_with(PATH) {
        return base.to_owned();
    }
    format!("{base}{PATH}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_go_to_their_path_below_the_address() {
        for (address, url) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("https://c/otlp", "https://c/otlp/v1/traces"),
            ("https://c/v1/traces", "https://c/v1/traces"),
        ] {
            assert_eq!(traces_url(&Config::parse_address(address).unwrap()), url);
        }
    }

    #[test]
    fn ratio_and_threshold_agree() {
        assert_eq!(SampleRatio::new(1.5), None);
        assert_eq!(SampleRatio::new(f64::NAN), None);
        assert_eq!(SampleRatio::new(0.0).unwrap().threshold(), 0);
        assert_eq!(SampleRatio::new(1.0).unwrap().threshold(), u64::MAX);
        assert_eq!(SampleRatio::new(0.5).unwrap().threshold(), 1 << 62);
    }
}
