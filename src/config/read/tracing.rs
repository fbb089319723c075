//! Reads `tracing:`: the collector of traces and the ratio that is recorded.

use hyper::Uri;

use crate::config::reader::ValueReader;
use crate::telemetry::trace::config::GRPC_PORT;
use crate::telemetry::trace::{Config, SampleRatio};

pub(super) fn tracing(value: &ValueReader<'_>) -> Option<Config> {
    value.map(|keys| {
        let default = Config::default();
        let otlp = keys.nullable("otlp", None, collector);
        let sample = keys.get_or("sample", default.sample, ratio);
        if otlp.is_none() && sample != default.sample && !keys.has("otlp") {
            let hint = "set `otlp` to the address of a collector";
            keys.warn("sample", "nothing is sampled without `otlp`", hint);
        }
        Some(Config { otlp, sample })
    })
}

fn collector(value: &ValueReader<'_>) -> Option<Uri> {
    let url = value.parsed("the address of a collector", Config::parse_address)?;
    if url.port_u16() == Some(GRPC_PORT) {
        let hint = "use the port of OTLP over HTTP, usually 4318";
        value.warn("port 4317 is usually that of OTLP over gRPC", hint);
    }
    Some(url)
}

fn ratio(value: &ValueReader<'_>) -> Option<SampleRatio> {
    value.parsed("a ratio", |text| {
        let ratio = text.parse().ok().and_then(SampleRatio::new);
        ratio.ok_or("a ratio is a number from 0 to 1, such as 0.01 for one percent")
    })
}

#[cfg(test)]
mod tests {
    use crate::config::load::parse_bytes;
    use crate::config::{Loaded, Problems, effective};

    fn loaded(tracing: &str) -> Result<Loaded, Problems> {
        let text = format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}] }}]\ntracing: {tracing}\n"
        );
        parse_bytes(text.as_bytes(), "f", &|_| None)
    }

    #[test]
    fn tracing_is_off_without_a_collector_and_samples_one_percent_with_one() {
        let off = loaded("{}").unwrap();
        assert_eq!(off.config.tracing.otlp, None);
        let on = loaded("{ otlp: 'http://collector:4318' }").unwrap();
        assert!(on.warnings.is_empty(), "{:?}", on.warnings);
        assert_eq!(
            effective(&on.config)["tracing"],
            serde_json::json!({ "otlp": "http://collector:4318/", "sample": 0.01 })
        );
        for sample in ["0", "1", "1.0", "0.5", "1e-3"] {
            assert!(loaded(&format!("{{ otlp: null, sample: {sample} }}")).is_ok());
        }
    }

    #[test]
    fn wrong_addresses_and_ratios_are_problems() {
        const ADDRESS: &str = "a collector is written as `http://HOST:4318` or `https://HOST:4318`";
        const RATIO: &str = "a ratio is a number from 0 to 1, such as 0.01 for one percent";
        for (keys, message) in [
            ("{ otlp: 'collector:4318' }", ADDRESS),
            ("{ otlp: 'grpc://collector:4317' }", ADDRESS),
            (
                "{ otlp: 'http://user:password@c:4318' }",
                "credentials of the collector belong to OTEL_EXPORTER_OTLP_HEADERS",
            ),
            ("{ sample: 2 }", RATIO),
            ("{ sample: -0.1 }", RATIO),
            ("{ sample: NaN }", RATIO),
            ("{ sample: 1% }", RATIO),
        ] {
            let problems = loaded(keys).expect_err(keys);
            let problem = &problems.as_slice()[0];
            assert!(
                problem.message.contains(message),
                "{keys}: {}",
                problem.message
            );
            assert!(!problems.to_string().contains("password"), "{problems}");
        }
    }

    #[test]
    fn port_of_grpc_and_a_ratio_without_collector_are_warnings() {
        for (keys, message) in [
            (
                "{ otlp: 'http://collector:4317' }",
                "port 4317 is usually that of OTLP over gRPC",
            ),
            ("{ sample: 0.5 }", "nothing is sampled without `otlp`"),
        ] {
            assert_eq!(loaded(keys).unwrap().warnings[0].message, message);
        }
    }
}
