//! Metrics of the sidecar: names, labels, help texts and their rendering.
//!
//! [`Metrics::new`] registers every metric; nothing else creates one. The help texts are the rows
//! of docs/metrics.md, which a test writes. Owners of a metric with labels resolve their handle
//! once, when they start, so counting an event is one atomic addition. Values that would be costly
//! to maintain are sampled before each scrape ([`Metrics::sample_with`]).
//!
//! States are one series per state with value 0 or 1 ([`set_state`]). Labels with a closed set of
//! values are initialised to zero by their owner, so the first increase is visible to alerts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::proto::MetricType;
use prometheus::{
    Encoder as _, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use super::exemplars::Exemplars;
use super::{logs, open_metrics};

type Sampler = Box<dyn Fn(&Metrics) + Send + Sync>;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    described: Vec<Described>,
    samplers: Mutex<Vec<Sampler>>,
    /// `sidestream_connections{protocol,tls}`
    pub connections: IntGaugeVec,
    /// `sidestream_connections_total{protocol,tls}`
    pub connections_total: IntCounterVec,
    /// `sidestream_tls_handshakes_total{kind}`
    pub tls_handshakes_total: IntCounterVec,
    /// `sidestream_connections_memory_bytes`
    pub connections_memory_bytes: IntGauge,
    /// `sidestream_streams{route,protocol,framing}`
    pub streams: IntGaugeVec,
    /// `sidestream_streams_opened_total{route,protocol,framing}`
    pub streams_opened_total: IntCounterVec,
    /// `sidestream_streams_closed_total{route,reason}`
    pub streams_closed_total: IntCounterVec,
    /// `sidestream_stream_age_seconds{side}`
    pub stream_age_seconds: HistogramVec,
    /// `sidestream_version_streams{route,version}`
    pub version_streams: IntGaugeVec,
    /// `sidestream_version_conversions_total{route,version,result}`
    pub version_conversions_total: IntCounterVec,
    /// `sidestream_schema_payloads_total{schema,result}`
    pub schema_payloads_total: IntCounterVec,
    /// `sidestream_cloud_events_total{route,mode}`
    pub cloud_events_total: IntCounterVec,
    /// `sidestream_refusals_total{code}`
    pub refusals_total: IntCounterVec,
    /// `sidestream_events_received_total{source}`
    pub events_received_total: IntCounterVec,
    /// `sidestream_events_rejected_total{source,reason}`
    pub events_rejected_total: IntCounterVec,
    /// `sidestream_events_delivered_total{route,framing}`
    pub events_delivered_total: IntCounterVec,
    /// `sidestream_bytes_sent_total{route,framing}`
    pub bytes_sent_total: IntCounterVec,
    /// `sidestream_compression_bytes_total{route,coding,form}`
    pub compression_bytes_total: IntCounterVec,
    /// `sidestream_delivery_seconds{route}`
    pub delivery_seconds: HistogramVec,
    /// `sidestream_lag_events{route}`
    pub lag_events: IntGaugeVec,
    /// `sidestream_lag_bytes{route}`
    pub lag_bytes: IntGaugeVec,
    /// `sidestream_lag_seconds{route}`
    pub lag_seconds: GaugeVec,
    /// `sidestream_slow_clients{route}`
    pub slow_clients: IntGaugeVec,
    /// `sidestream_gaps_total{route,reason}`
    pub gaps_total: IntCounterVec,
    /// `sidestream_missed_events_total{route,reason}`
    pub missed_events_total: IntCounterVec,
    /// `sidestream_shed_events_total{route,tier}`
    pub shed_events_total: IntCounterVec,
    /// `sidestream_throttled_total{limit}`
    pub throttled_total: IntCounterVec,
    /// `sidestream_health_check{check,status}`
    pub health_check: IntGaugeVec,
    /// `sidestream_pressure_level{level}`
    pub pressure_level: IntGaugeVec,
    /// `sidestream_begins_total{begin}`
    pub begins_total: IntCounterVec,
    /// `sidestream_subject_changes_total{outcome}`
    pub subject_changes_total: IntCounterVec,
    /// `sidestream_finished_total{route}`
    pub finished_total: IntCounterVec,
    /// `sidestream_resumes_total{outcome}`
    pub resumes_total: IntCounterVec,
    /// `sidestream_states_total{cause}`
    pub states_total: IntCounterVec,
    /// `sidestream_state_reads_total`
    pub state_reads_total: IntCounter,
    /// `sidestream_replays_running`
    pub replays_running: IntGauge,
    /// `sidestream_replays_queued`
    pub replays_queued: IntGauge,
    /// `sidestream_replay_seconds`
    pub replay_seconds: Histogram,
    /// `sidestream_replayed_events_total`
    pub replayed_events_total: IntCounter,
    /// `sidestream_window_events{source}`
    pub window_events: IntGaugeVec,
    /// `sidestream_window_bytes{source}`
    pub window_bytes: IntGaugeVec,
    /// `sidestream_feeds{source}`
    pub feeds: IntGaugeVec,
    /// `sidestream_file_descriptors`
    pub file_descriptors: IntGauge,
    /// `sidestream_file_descriptors_limit`
    pub file_descriptors_limit: IntGauge,
    /// `sidestream_sockets{state}`
    pub sockets: IntGaugeVec,
    /// `sidestream_nats_connected`
    pub nats_connected: IntGauge,
    /// `sidestream_nats_reconnects_total`
    pub nats_reconnects_total: IntCounter,
    /// `sidestream_nats_slow_consumer_total`
    pub nats_slow_consumer_total: IntCounter,
    /// `sidestream_republish_losses_total{source,outcome}`
    pub republish_losses_total: IntCounterVec,
    /// `sidestream_nats_pending_bytes`
    pub nats_pending_bytes: IntGauge,
    /// `sidestream_consumers_created_total`
    pub consumers_created_total: IntCounter,
    /// `sidestream_drain_phase{phase}`
    pub drain_phase: IntGaugeVec,
    /// `sidestream_drain_streams_left`
    pub drain_streams_left: IntGauge,
    /// `sidestream_drain_cut_total`
    pub drain_cut_total: IntCounter,
    /// `sidestream_config_reloads_total{result}`
    pub config_reloads_total: IntCounterVec,
    /// `sidestream_authentication_key_loads_total{provider,result}`
    pub authentication_key_loads_total: IntCounterVec,
    /// `sidestream_authentication_keys_loaded_timestamp_seconds{provider}`
    pub authentication_keys_loaded_timestamp_seconds: IntGaugeVec,
    /// `sidestream_authentication_forward_requests_total{provider,result}`
    pub authentication_forward_requests_total: IntCounterVec,
    /// `sidestream_authentication_forward_seconds{provider}`
    pub authentication_forward_seconds: HistogramVec,
    /// `sidestream_revocations`
    pub revocations: IntGauge,
    /// `sidestream_revocation_streams_ended_total{kind}`
    pub revocation_streams_ended_total: IntCounterVec,
    /// `sidestream_revocation_entries_ignored_total{reason}`
    pub revocation_entries_ignored_total: IntCounterVec,
    /// `sidestream_ticket_issues_total{result}`
    pub ticket_issues_total: IntCounterVec,
    /// `sidestream_ticket_redemptions_total{result}`
    pub ticket_redemptions_total: IntCounterVec,
    /// `sidestream_application_responses_total{status}`
    pub application_responses_total: IntCounterVec,
    /// `sidestream_application_requests_in_progress`
    pub application_requests_in_progress: IntGauge,
    /// `sidestream_application_cache_requests_total{result}`
    pub application_cache_requests_total: IntCounterVec,
    /// `sidestream_application_cache_bytes`
    pub application_cache_bytes: IntGauge,
    /// `sidestream_application_response_seconds`
    pub application_response_seconds: Histogram,
    /// `sidestream_presence_errors_total`
    pub presence_errors_total: IntCounter,
    /// `sidestream_admin_refusals_total{port,code}`
    pub admin_refusals_total: IntCounterVec,
    /// `sidestream_log_lines_dropped_total`
    pub log_lines_dropped_total: IntCounter,
    /// `sidestream_cpu_limit_cores`
    pub cpu_limit_cores: GaugeVec,
    /// `sidestream_memory_limit_bytes`
    pub memory_limit_bytes: IntGauge,
    /// `sidestream_log_lines_suppressed_total`
    pub log_lines_suppressed_total: IntCounter,
    /// `sidestream_presence_full_total`
    pub presence_full_total: IntCounter,
    /// `sidestream_trace_spans_total{result}`
    pub trace_spans_total: IntCounterVec,
    /// Exemplars of `delivery_seconds`, by route.
    delivery_exemplars: Mutex<BTreeMap<Box<str>, Arc<Exemplars>>>,
}

/// Description of one metric for the documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Name with the prefix `sidestream_`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Label names in the order of their values.
    pub labels: Vec<String>,
    /// Help text.
    pub help: String,
}

/// Buckets of delivery times in seconds: from 0.1 ms to the longest stall timeout.
const DELIVERY_BUCKETS: [f64; 14] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

/// Name of the histogram with exemplars.
const DELIVERY_SECONDS: &str = "sidestream_delivery_seconds";

/// Buckets of response times in seconds: from 0.5 ms to the default of `application.response_timeout`.
const RESPONSE_BUCKETS: [f64; 11] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0,
];

/// Buckets of the age of event streams in seconds. Those around 15, 30, 60 and 100 s are narrow:
/// proxies end event streams at these ages.
const AGE_BUCKETS: [f64; 14] = [
    1.0, 5.0, 14.5, 17.0, 28.5, 32.0, 59.0, 62.0, 99.0, 102.0, 300.0, 900.0, 3600.0, 14400.0,
];

/// Buckets of replay durations in seconds: from one page to a long history.
const REPLAY_BUCKETS: [f64; 9] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

/// Help text of a metric that the sidecar and the injector share.
pub(super) const LOG_LINES_DROPPED: &str = "Log lines that were dropped because standard error did not accept them: a hanging log collector, a full disk or a closed pipe.";

impl Metrics {
    /// Registers every metric in a new registry.
    ///
    /// # Errors
    /// If two metrics have the same name, which would be a defect of this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = Registrar {
            registry: &registry,
            described: RefCell::default(),
        };
        let build_info = r.gauges(
            "build_info",
            "Version of the running binary; always 1.",
            &["version"],
        )?;
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let metrics = Self {
            connections: r.gauges("connections", "Open client connections.", &["protocol", "tls"])?,
            connections_total: r.counters("connections_total", "Accepted client connections.", &["protocol", "tls"])?,
            tls_handshakes_total: r.counters("tls_handshakes_total", "TLS handshakes with clients, by kind: `full`, or `resumed` (the client returned with a session ticket or a session id).", &["kind"])?,
            connections_memory_bytes: r.gauge("connections_memory_bytes", "Estimated memory of client connections. Events in transit are not included: they are shared with the windows, or copies for one write.")?,
            streams: r.gauges("streams", "Open event streams.", &["route", "protocol", "framing"])?,
            streams_opened_total: r.counters("streams_opened_total", "Opened event streams.", &["route", "protocol", "framing"])?,
            streams_closed_total: r.counters("streams_closed_total", "Closed event streams, by reason.", &["route", "reason"])?,
            stream_age_seconds: r.histograms("stream_age_seconds", "Age of event streams at their end, by the side that ended them: `peer` (the client or a proxy), `pod`. Without long polls.", &AGE_BUCKETS, &["side"])?,
            version_streams: r.gauges("version_streams", "Open event streams of routes with `versions`, by version of the payloads.", &["route", "version"])?,
            version_conversions_total: r.counters("version_conversions_total", "Payloads that were converted to a version, once for all clients of it, by result: `converted`; `failed` (each client receives a gap).", &["route", "version", "result"])?,
            schema_payloads_total: r.counters("schema_payloads_total", "Payloads that a JSON Schema of `schemas` describes, once per message that clients of this pod receive, by result: `valid`; `invalid` (with `validate: reject` each client receives a gap); `skipped` (not validated, because the queue of `validate: count` was full); `missing` (not validated, because there is no valid document of this name).", &["schema", "result"])?,
            cloud_events_total: r.counters("cloud_events_total", "Events of routes with `format: cloudevents`, once for all clients, by the content mode of their messages: `structured` (unchanged), `binary` (all required attributes in headers), `completed` (Sidestream added required attributes).", &["route", "mode"])?,
            refusals_total: r.counters("refusals_total", "Requests and connections refused, by code.", &["code"])?,
            events_received_total: r.counters("events_received_total", "Messages received from NATS.", &["source"])?,
            events_rejected_total: r.counters("events_rejected_total", "Messages that did not become events as published, by reason: `event_name`, `tier` and `version` (invalid header, the event has the default), `oversize`, `status` (a status message of NATS), `duplicate` (the `Nats-Msg-Id` is in the window), `not_from_stream` (on the destination of a republished stream, but not sent by it), `denied` (NATS denies the subscription).", &["source", "reason"])?,
            events_delivered_total: r.counters("events_delivered_total", "Events written to clients.", &["route", "framing"])?,
            bytes_sent_total: r.counters("bytes_sent_total", "Bytes of event streams written to clients.", &["route", "framing"])?,
            compression_bytes_total: r.counters("compression_bytes_total", "Bytes of compressed event streams: before the compression (`plain`), and as they are written to clients (`sent`).", &["route", "coding", "form"])?,
            delivery_seconds: r.histograms("delivery_seconds", "Time from the receipt of a message from NATS until the socket has accepted its event. One observation per write, for the oldest event in it.", &DELIVERY_BUCKETS, &["route"])?,
            lag_events: r.gauges("lag_events", "Largest number of pending events of one client.", &["route"])?,
            lag_bytes: r.gauges("lag_bytes", "Largest number of pending bytes of one client.", &["route"])?,
            lag_seconds: r.float_gauges("lag_seconds", "Age of the oldest pending event.", &["route"])?,
            slow_clients: r.gauges("slow_clients", "Clients with pending events whose socket has accepted no bytes for longer than `slow.stall_timeout`.", &["route"])?,
            gaps_total: r.counters("gaps_total", "Gaps sent to clients, by route and reason.", &["route", "reason"])?,
            missed_events_total: r.counters("missed_events_total", "Events that clients missed in those gaps, where the number is known.", &["route", "reason"])?,
            shed_events_total: r.counters("shed_events_total", "Events that were skipped and reported in a gap, because the client was slow, its rate limit was reached or the pod shed load, by route and tier.", &["route", "tier"])?,
            throttled_total: r.counters("throttled_total", "Number of times that a client reached a limit of `limits.per_client` (`connections`, `filter_sets`, `connects`), or that its events waited for one (`events`).", &["limit"])?,
            health_check: r.gauges("health_check", "1 for the status of each check on `/health`, 0 for the others: `ok`, `degraded` (still ready, an operator should look), `failing` (not ready).", &["check", "status"])?,
            pressure_level: r.gauges("pressure_level", "1 for the load level in force, 0 for the others: `none`; `thin`: telemetry is thinned; `shed`: telemetry is skipped and normal events have half their rate; `reject`: a quarter of it, and new event streams are rejected.", &["level"])?,
            begins_total: r.counters("begins_total", "Event streams that were opened without an id, by where they begin: `live`, `first`, `latest`, `since` (a time) or `last` (a number of events).", &["begin"])?,
            subject_changes_total: r.counters("subject_changes_total", "Messages of WebSocket clients that change their subjects: `subscribed`, `unsubscribed`, or `rejected` with an error.", &["outcome"])?,
            finished_total: r.counters("finished_total", "Requests that were answered with 204: the client has every event of a finite event stream.", &["route"])?,
            resumes_total: r.counters("resumes_total", "Outcomes of `Last-Event-ID`, one per source in the id.", &["outcome"])?,
            states_total: r.counters("states_total", "States that clients of routes with `begin: latest` began to receive, by cause: `begin` (no id), `resume` (a position that is not in memory), `gap` (a connected client missed events) or `lag` (it fell out of memory).", &["cause"])?,
            state_reads_total: r.counter("state_reads_total", "States read from JetStream for `begin: latest`. Clients that need one within a second share it.")?,
            replays_running: r.gauge("replays_running", "Running replays from JetStream.")?,
            replays_queued: r.gauge("replays_queued", "Clients that are queued for a replay.")?,
            replay_seconds: r.histogram("replay_seconds", "Duration of replays.", &REPLAY_BUCKETS)?,
            replayed_events_total: r.counter("replayed_events_total", "Events read from JetStream for replays. One read serves every client of the replay.")?,
            window_events: r.gauges("window_events", "Events in memory.", &["source"])?,
            window_bytes: r.gauges("window_bytes", "Bytes of events in memory.", &["source"])?,
            feeds: r.gauges("feeds", "Feeds: distinct sets of filters with subscribers.", &["source"])?,
            file_descriptors: r.gauge("file_descriptors", "Open file descriptors.")?,
            file_descriptors_limit: r.gauge("file_descriptors_limit", "Limit of open file descriptors.")?,
            sockets: r.gauges("sockets", "TCP sockets in the network namespace of the pod, by state (`established`, `time_wait`, `close_wait`). Updated at most every 5 s.", &["state"])?,
            nats_connected: r.gauge("nats_connected", "1 if every NATS connection is up, else 0.")?,
            nats_reconnects_total: r.counter("nats_reconnects_total", "Reconnects to NATS.")?,
            nats_slow_consumer_total: r.counter("nats_slow_consumer_total", "Messages that the NATS client dropped because the queue of the connection was full (slow consumer).")?,
            republish_losses_total: r.counters("republish_losses_total", "Messages of a republished stream that a subscription lost, by outcome: `repaired` (read from the stream) or `reported` (as a gap).", &["source", "outcome"])?,
            nats_pending_bytes: r.gauge("nats_pending_bytes", "Bytes of received core messages that are not decoded yet. Above 32 MiB, messages are dropped.")?,
            consumers_created_total: r.counter("consumers_created_total", "Created JetStream consumers.")?,
            drain_phase: r.gauges("drain_phase", "1 for the current phase of the graceful shutdown, 0 for the others; `running` without a shutdown.", &["phase"])?,
            drain_streams_left: r.gauge("drain_streams_left", "Event streams that the drain has not ended yet.")?,
            drain_cut_total: r.counter("drain_cut_total", "Event streams that were cut at `drain.timeout`.")?,
            config_reloads_total: r.counters("config_reloads_total", "Configuration reloads, by result.", &["result"])?,
            authentication_key_loads_total: r.counters("authentication_key_loads_total", "Loads of the keys of a token provider, from its issuer or file, by result: `succeeded` or `failed` (the keys of the last load stay in use).", &["provider", "result"])?,
            authentication_keys_loaded_timestamp_seconds: r.gauges("authentication_keys_loaded_timestamp_seconds", "Time of the last successful load of the keys of a token provider, in seconds since 1970; 0 before the first one.", &["provider"])?,
            authentication_forward_requests_total: r.counters("authentication_forward_requests_total", "Requests that an authentication endpoint decided, by result: `allowed`, `cached` (allowed by an earlier answer), `rejected` (401 or 403), `failed` (no answer within `timeout`, or another one), `busy` (64 calls were in progress for a second), `limited` (too many calls for one address, or in total).", &["provider", "result"])?,
            authentication_forward_seconds: r.histograms("authentication_forward_seconds", "Duration of the calls to an authentication endpoint. Requests that are answered from the cache, or that wait for a call of another one, make none.", &DELIVERY_BUCKETS, &["provider"])?,
            revocations: r.gauge("revocations", "Revocations in memory.")?,
            revocation_streams_ended_total: r.counters("revocation_streams_ended_total", "Open event streams that a revocation or a kick has ended, by kind: `jti`, `sid`, `sub`, `client`, `kick`.", &["kind"])?,
            revocation_entries_ignored_total: r.counters("revocation_entries_ignored_total", "Entries of the bucket of revocations that were ignored, by reason: `malformed` (key or value), `full` (the table has its maximum of entries; the entry has ended open event streams, and their clients may return).", &["reason"])?,
            ticket_issues_total: r.counters("ticket_issues_total", "Requests for a ticket with valid credentials, by result: `issued`, `throttled` (the principal asks too often), `too_large` (its claims), `full` (the bucket) or `unavailable` (the bucket does not respond).", &["result"])?,
            ticket_redemptions_total: r.counters("ticket_redemptions_total", "Requests with a ticket, by result: `redeemed`, `invalid` (not a ticket, unknown, expired or already used), `other_provider` (the route does not list the provider of the ticket) or `unavailable` (the bucket does not respond).", &["result"])?,
            application_responses_total: r.counters("application_responses_total", "Responses of the application to requests that this sidecar has passed to it, by class of the status: `1xx` to `5xx`.", &["status"])?,
            application_requests_in_progress: r.gauge("application_requests_in_progress", "Requests to the application whose response is not complete.")?,
            application_cache_requests_total: r.counters("application_cache_requests_total", "Requests for paths without a route by result of the cache: `hit` (answered from it), `revalidated` (the application confirmed the stored response with 304), `miss` (no stored response answers them), `bypass` (another method than GET and HEAD, `Authorization`, `Range`, `Cache-Control: no-store`, a body or a WebSocket). Requests of an `EventSource` do not count.", &["result"])?,
            application_cache_bytes: r.gauge("application_cache_bytes", "Bytes of the responses in the cache, with their heads and keys.")?,
            application_response_seconds: r.histogram("application_response_seconds", "Time from a passed request to the head of the application's response.", &RESPONSE_BUCKETS)?,
            presence_errors_total: r.counter("presence_errors_total", "Failed reads and writes of the presence bucket.")?,
            admin_refusals_total: r.counters("admin_refusals_total", "Closed connections and rejected requests on the admin port (`admin`) and the control socket (`control`), by code: `no_first_byte`, `evicted` (a newer connection needed the slot), `busy` (the port or one peer address has reached its limit of requests), `too_many_lists`, `too_many_viewers` and `too_many_taps` (of the page), `cross_origin` (a form of another origin), `host_not_allowed` (a `Host` that is not an address and not in `admin.hosts`), `unauthenticated` and `invalid_token` (no token, or a wrong one, for a protected page), `too_many_authentication_failures` (too many wrong tokens), `certificate_required`, `tls_handshake` (a failed handshake).", &["port", "code"])?,
            log_lines_dropped_total: r.counter("log_lines_dropped_total", LOG_LINES_DROPPED)?,
            cpu_limit_cores: r.float_gauges("cpu_limit_cores", "CPU limit of the pod by its control group, in cores; 0 without limit.", &[])?,
            memory_limit_bytes: r.gauge("memory_limit_bytes", "Memory limit of the pod by its control group; 0 without limit.")?,
            log_lines_suppressed_total: r.counter("log_lines_suppressed_total", "Log lines that were not written because the process had logged 100 about single gaps, or 1000 about ends of event streams, in a second; other metrics count these gaps and ends.")?,
            presence_full_total: r.counter("presence_full_total", "Entries of event streams that were not written because the presence bucket is full.")?,
            trace_spans_total: r.counters("trace_spans_total", "Spans of traces, by result: `exported` (the collector has accepted them), `failed` (it did not, or not in time; they are dropped), `dropped` (too many waited for the collector).", &["result"])?,
            delivery_exemplars: Mutex::default(),
            samplers: Mutex::new(Vec::new()),
            described: r.described.into_inner(),
            registry,
        };
        // From 0, so that `increase` sees the first one.
        for result in ["changed", "unchanged", "refused"] {
            metrics.config_reloads_total.with_label_values(&[result]);
        }
        for result in ["exported", "failed", "dropped"] {
            metrics.trace_spans_total.with_label_values(&[result]);
        }
        for kind in ["jti", "sid", "sub", "client", "kick"] {
            let total = &metrics.revocation_streams_ended_total;
            total.with_label_values(&[kind]);
        }
        for reason in ["malformed", "full"] {
            let total = &metrics.revocation_entries_ignored_total;
            total.with_label_values(&[reason]);
        }
        Ok(metrics)
    }

    /// Adds a function that updates gauges before each scrape.
    pub fn sample_with(&self, sampler: impl Fn(&Self) + Send + Sync + 'static) {
        self.samplers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(sampler));
    }

    /// Returns the descriptions of all metrics in the order of registration.
    #[must_use]
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// Returns the exemplars of `delivery_seconds` of a route.
    #[must_use]
    pub fn exemplars_of(&self, route: &str) -> Arc<Exemplars> {
        let mut routes = self
            .delivery_exemplars
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let exemplars = routes.entry(route.into());
        exemplars
            .or_insert_with(|| Arc::new(Exemplars::new(&DELIVERY_BUCKETS)))
            .clone()
    }

    /// Renders all metrics in the text format of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        self.sample();
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "cannot render metrics");
        }
        String::from_utf8(out).unwrap_or_default()
    }

    /// Renders all metrics in the text format of OpenMetrics, with exemplars.
    #[must_use]
    pub fn render_open_metrics(&self) -> String {
        self.sample();
        let families = self.registry.gather();
        let routes = self
            .delivery_exemplars
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open_metrics::render(&families, |family, labels| {
            let route = labels.first().filter(|_| family == DELIVERY_SECONDS)?;
            Some(routes.get(route.value())?.all())
        })
    }

    /// Updates the values that are sampled.
    pub fn sample(&self) {
        self.log_lines_dropped_total
            .inc_by(logs::take_dropped_lines());
        for sampler in self
            .samplers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            sampler(self);
        }
    }
}

/// Sets a gauge with one series per state: 1 for the current state, 0 for the others.
pub fn set_state<const N: usize>(gauge: &IntGaugeVec, states: [&'static str; N], current: &str) {
    for state in states {
        let value = i64::from(state == current);
        gauge.with_label_values(&[state]).set(value);
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Registration of metrics in one registry, with their descriptions.
pub(super) struct Registrar<'a> {
    pub(super) registry: &'a Registry,
    pub(super) described: RefCell<Vec<Described>>,
}

impl Registrar<'_> {
    fn register<C: Collector + Clone + 'static>(
        &self,
        made: Result<C, prometheus::Error>,
    ) -> Result<C, prometheus::Error> {
        let collector = made?;
        self.registry.register(Box::new(collector.clone()))?;
        let families = collector.collect();
        let kinds = families.iter().map(|family| kind(family.get_field_type()));
        self.described
            .borrow_mut()
            .extend(
                collector
                    .desc()
                    .into_iter()
                    .zip(kinds)
                    .map(|(desc, kind)| Described {
                        name: desc.fq_name.clone(),
                        kind,
                        labels: desc.variable_labels.clone(),
                        help: desc.help.clone(),
                    }),
            );
        Ok(collector)
    }

    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("sidestream_{name}"), help)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::with_opts(Self::opts(name, help)))
    }

    pub(super) fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(Self::opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::with_opts(Self::opts(name, help)))
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.register(IntGaugeVec::new(Self::opts(name, help), labels))
    }

    fn float_gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GaugeVec, prometheus::Error> {
        self.register(GaugeVec::new(Self::opts(name, help), labels))
    }

    pub(super) fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, prometheus::Error> {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, labels))
    }
}

fn kind(kind: MetricType) -> &'static str {
    match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        _ => "untyped",
    }
}
