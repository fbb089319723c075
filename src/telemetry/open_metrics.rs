//! Text format of OpenMetrics 1.0, for scrapers that ask for it: the crate `prometheus` writes only
//! the older one, which has no exemplars.

use std::fmt::{self, Display, Write as _};
use std::time::SystemTime;

use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType};

use super::exemplars::Exemplar;

/// Media type of the format.
pub const MEDIA_TYPE: &str = "application/openmetrics-text";

/// `Content-Type` of a response.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Suffix that every counter has, and that its family does not have.
const TOTAL: &str = "_total";

/// Renders families. `exemplars` returns those of a histogram with these labels, by bucket.
pub(super) fn render(
    families: &[MetricFamily],
    exemplars: impl Fn(&str, &[LabelPair]) -> Option<Vec<Option<Exemplar>>>,
) -> String {
    let mut out = String::new();
    for family in families {
        // Writing to a String cannot fail.
        write_family(&mut out, family, &exemplars).unwrap_or_default();
    }
    out.push_str("# EOF\n");
    out
}

fn write_family(
    out: &mut String,
    family: &MetricFamily,
    exemplars: &impl Fn(&str, &[LabelPair]) -> Option<Vec<Option<Exemplar>>>,
) -> fmt::Result {
    let name = family.name();
    let (kind, base) = match family.get_field_type() {
        MetricType::COUNTER => ("counter", name.strip_suffix(TOTAL).unwrap_or(name)),
        MetricType::GAUGE => ("gauge", name),
        MetricType::HISTOGRAM => ("histogram", name),
        // No other kind is registered.
        _ => return Ok(()),
    };
    writeln!(out, "# HELP {base} {}", Escaped(family.help()))?;
    writeln!(out, "# TYPE {base} {kind}")?;
    for metric in family.get_metric() {
        let labels = metric.get_label();
        match family.get_field_type() {
            MetricType::COUNTER => {
                let value = metric.get_counter().get_value();
                write_sample(out, (base, TOTAL), labels, None, value)?;
            }
            MetricType::HISTOGRAM => {
                let exemplars = exemplars(name, labels).unwrap_or_default();
                write_histogram(out, name, metric, &exemplars)?;
                continue;
            }
            MetricType::GAUGE => {
                write_sample(
                    out,
                    (name, ""),
                    labels,
                    None,
                    metric.get_gauge().get_value(),
                )?;
            }
            _ => continue,
        }
        out.push('\n');
    }
    Ok(())
}

fn write_histogram(
    out: &mut String,
    name: &str,
    metric: &Metric,
    exemplars: &[Option<Exemplar>],
) -> fmt::Result {
    let (labels, histogram) = (metric.get_label(), metric.get_histogram());
    let count = histogram.get_sample_count();
    let mut buckets: Vec<_> = histogram
        .get_bucket()
        .iter()
        .map(|bucket: &Bucket| (bucket.upper_bound(), bucket.cumulative_count()))
        .collect();
    if buckets.last().is_none_or(|(bound, _)| bound.is_finite()) {
        buckets.push((f64::INFINITY, count));
    }
    for (index, (bound, count)) in buckets.into_iter().enumerate() {
        let bound = Number(bound).to_string();
        write_sample(out, (name, "_bucket"), labels, Some(&bound), count as f64)?;
        if let Some(Some(exemplar)) = exemplars.get(index) {
            write_exemplar(out, exemplar)?;
        }
        out.push('\n');
    }
    write_sample(
        out,
        (name, "_sum"),
        labels,
        None,
        histogram.get_sample_sum(),
    )?;
    out.push('\n');
    write_sample(out, (name, "_count"), labels, None, count as f64)?;
    out.push('\n');
    Ok(())
}

/// Writes a sample without the end of its line.
fn write_sample(
    out: &mut String,
    (name, suffix): (&str, &str),
    labels: &[LabelPair],
    bound: Option<&str>,
    value: f64,
) -> fmt::Result {
    write!(out, "{name}{suffix}")?;
    let labels = labels.iter().map(|label| (label.name(), label.value()));
    let labels = labels.chain(bound.map(|bound| ("le", bound)));
    let mut separator = '{';
    for (name, value) in labels {
        write!(out, "{separator}{name}=\"{}\"", Escaped(value))?;
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    write!(out, " {}", Number(value))
}

fn write_exemplar(out: &mut String, exemplar: &Exemplar) -> fmt::Result {
    let at = exemplar.at.duration_since(SystemTime::UNIX_EPOCH);
    write!(
        out,
        " # {{trace_id=\"{:032x}\",span_id=\"{:016x}\"}} {} {:.3}",
        exemplar.ids.trace_id,
        exemplar.ids.span_id,
        Number(exemplar.value),
        at.unwrap_or_default().as_secs_f64(),
    )
}

/// Text with the escapes of label values and help texts.
struct Escaped<'t>(&'t str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '"' => f.write_str("\\\"")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Number with a decimal point, as the bounds of buckets must have.
struct Number(f64);

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            value if value == f64::INFINITY => f.write_str("+Inf"),
            value if value == f64::NEG_INFINITY => f.write_str("-Inf"),
            value if value.is_nan() => f.write_str("NaN"),
            value => write!(f, "{value:?}"),
        }
    }
}

/// Returns whether a scraper prefers OpenMetrics, by its header field `Accept`.
#[must_use]
pub fn is_preferred(accept: &str) -> bool {
    let quality = |media_type: &str| {
        let ranges = accept.split(',').filter_map(move |range| {
            let mut parts = range.split(';').map(str::trim);
            let is_meant = parts.next()?.eq_ignore_ascii_case(media_type);
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            let quality = quality.map_or(Some(1.0), |quality| quality.parse::<f64>().ok())?;
            is_meant.then_some(quality)
        });
        ranges.fold(0.0, f64::max)
    };
    let wanted = quality(MEDIA_TYPE);
    wanted > 0.0 && wanted >= quality("text/plain")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Metrics;
    use crate::telemetry::trace::samples::SpanIds;

    #[test]
    fn scraper_that_names_the_format_gets_it() {
        // Prometheus 2.42 and 3.
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let with_names = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        for accept in [prometheus, with_names, MEDIA_TYPE] {
            assert!(is_preferred(accept), "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/plain;q=0.9, application/openmetrics-text;q=0.1",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=x",
        ] {
            assert!(!is_preferred(accept), "{accept}");
        }
    }

    #[test]
    fn families_have_the_form_of_open_metrics() {
        let metrics = Metrics::new().unwrap();
        metrics.refusals_total.with_label_values(&["a\"b"]).inc();
        let route = "/events/{a}";
        let delivery = metrics.delivery_seconds.with_label_values(&[route]);
        delivery.observe(0.3);
        delivery.observe(60.0);
        let ids = SpanIds {
            trace_id: 0xab,
            span_id: 0xcd,
        };
        metrics.exemplars_of(route).record(0.3, ids);
        let text = metrics.render_open_metrics();
        for line in [
            "# TYPE sidestream_refusals counter",
            r#"sidestream_refusals_total{code="a\"b"} 1.0"#,
            "# TYPE sidestream_revocations gauge",
            "sidestream_revocations 0.0",
            r#"sidestream_delivery_seconds_bucket{route="/events/{a}",le="0.25"} 0.0"#,
            r#"sidestream_delivery_seconds_bucket{route="/events/{a}",le="30.0"} 1.0"#,
            r#"sidestream_delivery_seconds_bucket{route="/events/{a}",le="+Inf"} 2.0"#,
            r#"sidestream_delivery_seconds_count{route="/events/{a}"} 2.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let bucket = r#"sidestream_delivery_seconds_bucket{route="/events/{a}",le="1.0"} 1.0 # {trace_id="000000000000000000000000000000ab",span_id="00000000000000cd"} 0.3 "#;
        let exemplar = text.lines().find_map(|line| line.strip_prefix(bucket));
        let at: f64 = exemplar
            .unwrap_or_else(|| panic!("{text}"))
            .parse()
            .unwrap();
        let age = Duration::from_secs_f64(at).abs_diff(SystemTime::UNIX_EPOCH.elapsed().unwrap());
        assert!(age < Duration::from_secs(60));
        assert!(text.ends_with("\n# EOF\n"));
        assert_eq!(text.matches(" # {").count(), 1);
    }
}
