//! One request on its way: what it belongs to, and what is told about it at its end.

use super::{
    conn::ConnInfo,
    filter,
    head::{BodyLength, RequestHead, ResponseHead, Version},
    headers::{Headers, Known},
    reply, trace,
};
use crate::{
    config::{AccessLog, Direction, FilterEntry, HttpManager, Route, RouterOptions},
    overload,
    pool::{ClusterState, Host},
    rbac::Source,
    route::Selected,
    telemetry::{
        self, CloseType, ConnectionSecurity, DynamicMetadata, LogEntry, LogKind, Moments, NOT_A_STATUS, Observed,
        Reporter, RequestProtocol, RequestRecord, ResponseFlags, ServiceLabels, Wire, WorkloadLabels,
        connection::ClientEnd, nanos, requests::RequestGroup,
    },
    tls::PeerIdentity,
    worker::{Timer, Worker, WorkerRoot, earlier},
};
use prost_types::Value;
use std::{
    borrow::Cow,
    future::{Future, poll_fn},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

/// How waiting ended.
pub(super) enum Waited<T> {
    /// With what was waited for.
    Done(T),
    /// It is too late.
    Late,
    /// The client has left.
    Gone,
}

/// Everything that a request needs beside its two sides.
pub struct Call<'a> {
    /// The worker.
    pub worker: &'a Rc<Worker>,
    /// The configuration on which it began.
    pub root: &'a Rc<WorkerRoot>,
    /// The settings of its filter chain.
    pub manager: &'a HttpManager,
    /// The filters that it passes: the manager's, or those of its upgrade.
    pub filters: &'a [FilterEntry],
    /// How the router behind them works.
    pub router: &'a RouterOptions,
    /// The client's connection.
    pub conn: &'a ConnInfo,
    /// The timer of its connection or stream.
    pub timer: &'a mut Timer,
    /// The request.
    pub request: &'a mut RequestHead,
    /// The response.
    pub response: &'a mut ResponseHead,
    /// What will be told about it.
    pub tally: Tally<'a>,
}

/// What is told about a request at its end.
pub struct Tally<'a> {
    /// When it began.
    pub start: Instant,
    /// When it began, by the calendar; only looked up when a line will be written.
    pub wall: Option<SystemTime>,
    /// The request came as a call of gRPC, whatever filters make of it: what the proxy answers by itself is told in that way.
    pub grpc: bool,
    /// Why the response is what it is.
    pub flags: ResponseFlags,
    /// The same that is told once an answer of the proxy's own comes to filters.
    pub late_flags: ResponseFlags,
    /// The status that the client was told; 0 when there was none.
    pub code: u16,
    /// What decided about the response, as Envoy names it.
    pub details: &'static str,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// The status of a gRPC call, from headers or trailers.
    pub grpc_status: Option<u16>,
    /// The client's workload.
    pub source: Option<Arc<WorkloadLabels>>,
    /// The client's address, where it is not the connection's other end.
    pub client: Option<SocketAddr>,
    /// The route.
    pub route: Option<&'a Arc<Route>>,
    /// The same with its virtual host and target: what it changes about answers, it changes about the proxy's own ones too.
    pub(super) selected: Option<Selected<'a>>,
    /// The cluster.
    pub cluster: Option<Rc<ClusterState>>,
    /// The one whose the endpoint is: the cluster itself, or one of those that it stands for.
    pub owner: Option<Rc<ClusterState>>,
    /// The endpoint.
    pub host: Option<Rc<Host>>,
    /// This side's address towards the endpoint.
    pub upstream_local: Option<SocketAddr>,
    /// Which of the endpoint's addresses is connected, where it has several.
    pub upstream_remote: Option<SocketAddr>,
    /// From the sending of the request to the response's head.
    pub upstream_time: Option<Duration>,
    /// Why the endpoint could not be reached.
    pub transport_failure: Option<Box<str>>,
    /// What was spoken with the endpoint.
    pub upstream_protocol: Option<&'static str>,
    /// What happened when; only looked up when a line will be written.
    pub moments: Moments,
    /// When the next line about a request is written that goes on.
    pub(super) log_at: Option<Instant>,
    /// The response's trailers; only kept when a line will be written.
    pub trailers: Option<Box<Headers>>,
    /// The service wants the request traced.
    pub forced: bool,
    /// Its trace.
    pub trace: Option<Box<trace::Trace>>,
    /// Attempts were made, and no endpoint can have got anything of the request.
    pub unsent: bool,
    /// Attempts that were made.
    pub attempts: u16,
    /// Attempts that got no connection.
    pub unconnected: u16,
    /// It is counted among those that have come.
    pub begun: bool,
    /// The status of the proxy's own answer before it became one of gRPC, or another one; 0 where there was none.
    pub own_code: u16,
    /// The endpoint sent an interim response: there is no further attempt, as in Envoy.
    pub interim: bool,
    /// The endpoint redirected to what no route leads to: formats know neither route nor cluster any more, as in Envoy.
    pub(super) lost: bool,
    /// Headers of a request of HTTP/2 were dropped for their names. Where its answer does not wait for its body, Envoy calls that
    /// a breach of the protocol.
    pub(super) underscored: bool,
    /// What is kept where a line asks for it.
    pub observed: Option<Box<Observed>>,
    /// What filters left for the rest of the way.
    pub filters: Option<Box<filter::State<'a>>>,
}

impl<'a> Tally<'a> {
    /// Where filters leave what the rest of the way needs to know.
    pub(super) fn filters(&mut self) -> &mut filter::State<'a> {
        self.filters.get_or_insert_default()
    }

    /// The virtual cluster that counts it.
    pub(super) fn virtual_cluster(&self) -> Option<&RequestGroup> {
        self.filters.as_ref().and_then(|filters| filters.virtual_cluster)
    }

    /// Those that count it: its virtual cluster, and its route where that has a name for it.
    pub(super) fn groups(&self) -> impl Iterator<Item = &RequestGroup> {
        self.virtual_cluster().into_iter().chain(self.route.and_then(|route| route.group.as_deref()))
    }

    /// Begins now.
    pub fn start(logs: bool) -> Self {
        Self {
            start: Instant::now(),
            wall: logs.then(SystemTime::now),
            grpc: false,
            flags: ResponseFlags::none(),
            late_flags: ResponseFlags::none(),
            code: 0,
            details: "via_upstream",
            request_bytes: 0,
            response_bytes: 0,
            grpc_status: None,
            source: None,
            client: None,
            route: None,
            selected: None,
            cluster: None,
            owner: None,
            host: None,
            upstream_local: None,
            upstream_remote: None,
            upstream_time: None,
            transport_failure: None,
            upstream_protocol: None,
            moments: Moments::default(),
            log_at: None,
            trailers: None,
            forced: false,
            trace: None,
            unsent: false,
            attempts: 0,
            unconnected: 0,
            begun: false,
            own_code: 0,
            interim: false,
            lost: false,
            underscored: false,
            observed: None,
            filters: None,
        }
    }
}

impl Call<'_> {
    /// Counts the request and writes its line.
    pub fn record(&self) {
        if self.tally.trace.is_some() {
            trace::end(self);
        }
        let tally = &self.tally;
        let duration = tally.start.elapsed();
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(counted) = &self.conn.counted {
            if !tally.begun {
                counted.http().count_begun(self.is_http2());
            }
            // What a filter tells of the proxy's health is no answer of a service.
            let code = if tally.details == filter::HEALTH_CHECK { 0 } else { tally.code };
            counted.http().count(code, tally.flags, tally.details, self.is_http2(), micros);
            counted.of_listener().count(code);
            if tally.flags.contains(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION) {
                counted.end.set(ClientEnd { active: true, ..counted.end.get() });
            }
        }
        if let Some(cluster) = &tally.cluster {
            // Without an endpoint there was none, whatever is told.
            let attempts = if tally.host.is_some() { tally.attempts } else { 0 };
            let headers = &self.request.headers;
            let internal = headers.may_have(Known::Envoy) && headers.get("x-envoy-internal") == Some(b"true");
            // What the connection manager answers in an endpoint's place is none of the cluster's answers.
            let code = match tally.own_code {
                _ if self.manager_answers() => 0,
                0 => tally.code,
                own => own,
            };
            let router = self.router;
            let failed = tally.grpc_status.is_some_and(|status| status != 0) && self.request.is_grpc();
            let told = !(router.counts_no_statuses || router.counts_no_failed_calls && failed);
            cluster.stats().count((code, told), tally.flags, attempts, micros, internal);
            for group in tally.groups() {
                group.count(
                    (code, told),
                    tally.flags,
                    (attempts, tally.unconnected),
                    tally.details == reply::TIMEOUT.details,
                );
            }
        }
        if let Some(calls) = tally.filters.as_ref().and_then(|filters| filters.grpc_calls.as_ref())
            && let Some(status) = tally.grpc_status
        {
            calls.ended(status);
        }
        let own = &self.root.config().own;
        let inbound = self.manager.direction == Direction::Inbound;
        let unknown = &self.worker.unknown;
        let (reporter, source, security) = if inbound {
            let source = tally.source.as_ref().unwrap_or(&unknown.workload);
            let security =
                if self.conn.peer.is_some() { ConnectionSecurity::MutualTls } else { ConnectionSecurity::None };
            (Reporter::Destination, source, security)
        } else {
            (Reporter::Source, own, ConnectionSecurity::Unknown)
        };
        let destination = match &tally.host {
            _ if inbound => own,
            Some(host) => &host.endpoint().workload,
            None => &unknown.workload,
        };
        let service: &Arc<ServiceLabels> =
            tally.cluster.as_ref().map_or(&unknown.service, |cluster| &cluster.config().service);
        let grpc = self.request.is_grpc();
        self.worker.shard.record_request(&RequestRecord {
            reporter,
            source,
            destination,
            service,
            protocol: if grpc { RequestProtocol::Grpc } else { RequestProtocol::Http },
            response_code: tally.code,
            grpc_status: tally.grpc_status,
            flags: tally.flags,
            security,
            duration,
            request_bytes: tally.request_bytes,
            response_bytes: tally.response_bytes,
        });
        self.log();
    }

    /// Whether it ends for a limit of the client's side, or for what the client did, before an endpoint has answered.
    fn manager_answers(&self) -> bool {
        let tally = &self.tally;
        let late = [reply::STREAM_IDLE.details, reply::REQUEST_TIMEOUT.details, reply::MAX_DURATION.details];
        tally.upstream_time.is_none()
            && tally.details != "via_upstream"
            && (late.contains(&tally.details) || tally.flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR))
    }

    /// Writes the lines of the access logs.
    pub(super) fn log(&self) {
        self.log_as(LogKind::DownstreamEnd);
    }

    /// Writes the lines of the access logs about this moment of the request.
    pub(super) fn log_as(&self, kind: LogKind) {
        if !self.manager.access_logs.is_empty() {
            let mut entry = LogEntry { kind, duration: self.tally.start.elapsed(), ..self.entry() };
            let answered = self.tally.code != 0 || self.tally.upstream_time.is_some();
            if kind == LogKind::DownstreamStart || kind == LogKind::DownstreamPeriodic && !answered {
                // Nothing has been decided about the answer yet.
                entry.code_details = None;
            }
            AccessLog::write(&self.manager.access_logs, self.worker, &entry);
        }
    }

    /// From now on lines are written while the request goes on, where that is wanted.
    pub(super) fn begin_lines(&mut self) {
        let every = self.manager.log_every.filter(|_| !self.manager.access_logs.is_empty());
        self.tally.log_at = every.map(|every| self.tally.start + every);
    }

    /// Whether it is time for lines about the request as it goes on.
    pub(super) fn is_due(&self) -> bool {
        self.tally.log_at.is_some_and(|at| at <= Instant::now())
    }

    /// Writes them.
    pub(super) fn log_on(&mut self) {
        self.log_as(LogKind::DownstreamPeriodic);
        self.tally.log_at = self.manager.log_every.map(|every| Instant::now() + every);
    }

    /// Waits for something else than the request's two sides, `until` then or until the client is `gone`, and writes lines meanwhile.
    pub(super) async fn wait_for<T>(
        &mut self,
        future: impl Future<Output = T>,
        until: Option<Instant>,
        mut gone: impl FnMut(&mut Context<'_>) -> Poll<()>,
    ) -> Waited<T> {
        let mut future = std::pin::pin!(future);
        loop {
            let (timer, log_at) = (&mut *self.timer, self.tally.log_at);
            let step = poll_fn(|cx| {
                if let Poll::Ready(done) = future.as_mut().poll(cx) {
                    return Poll::Ready(Some(Waited::Done(done)));
                }
                if gone(cx).is_ready() {
                    return Poll::Ready(Some(Waited::Gone));
                }
                let late = || until.is_some_and(|until| until <= Instant::now());
                timer.poll(cx, earlier(log_at, until)).map(|()| late().then_some(Waited::Late))
            });
            match step.await {
                Some(waited) => return waited,
                None => self.log_on(),
            }
        }
    }

    /// Writes the lines of a request whose answer leads to another, and forgets what that one has not.
    pub(super) fn log_redirected(&mut self) {
        self.tally.upstream_time = None;
        let details = std::mem::replace(&mut self.tally.details, "internal_redirect");
        self.log();
        self.response.clear();
        let tally = &mut self.tally;
        tally.details = details;
        (tally.flags, tally.code) = (ResponseFlags::none(), 0);
        tally.interim = false;
        if let Some(observed) = &mut tally.observed {
            (observed.up, observed.earlier) = Default::default();
        }
        (tally.attempts, tally.host, tally.upstream_protocol) = (0, None, None);
        (tally.upstream_local, tally.upstream_remote) = (None, None);
        tally.unconnected = 0;
    }

    /// Whether the connection should end with the answer that it is about to carry: since it is time, or to save memory.
    pub(super) fn ends_connection(&self) -> bool {
        let in_time = self.worker.ends_in_time(self.manager.direction, self.manager.ends_on_changes_only);
        if in_time && let Some(counted) = &self.conn.counted {
            counted.http().cx_drain_close.add(1);
        }
        in_time || self.sheds(overload::Action::NoKeepAlive)
    }

    /// Whether an action that saves memory is taken now, and concerns the listener.
    pub(super) fn sheds(&self, action: overload::Action) -> bool {
        self.worker.sheds(action) && !self.manager.bypasses_overload
    }

    /// What formats can speak of, as far as it is known now.
    pub(super) fn entry(&self) -> LogEntry<'_, &Headers, &Headers> {
        let tally = &self.tally;
        let duration = tally.start.elapsed();
        let wall = tally.wall.unwrap_or_else(|| SystemTime::now() - duration);
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let mut entry = LogEntry::new(wall, duration, &self.request.headers, &self.response.headers);
        entry.method = text(self.request.method());
        entry.path = text(self.request.path()).filter(|path| !path.is_empty());
        entry.authority = text(self.request.authority()).filter(|_| self.request.has_authority());
        entry.scheme = self.request.scheme();
        entry.protocol = Some(self.request.version.as_str());
        entry.code = tally.code;
        entry.status = self.response.status;
        entry.flags = tally.flags;
        let own = tally.filters.as_ref().and_then(|state| state.reply.details.as_deref());
        entry.code_details = Some(own.unwrap_or(tally.details));
        entry.forced = tally.forced && !entry.health_check;
        entry.trace = tally.trace.as_deref().map(trace::Trace::ids);
        entry.moments = tally.moments;
        // What has no body is whole with its head.
        let whole = self.request.body == BodyLength::Empty && !self.request.method().is_empty();
        entry.moments.received = tally.moments.received.or(whole.then_some(Duration::ZERO));
        entry.trailers = tally.trailers.as_deref();
        entry.upstream_protocol = tally.upstream_protocol;
        entry.upstream_connected = tally.upstream_protocol.is_some();
        entry.upstream_host_name = tally.host.as_ref().and_then(|host| host.endpoint().hostname.as_deref());
        entry.grpc = self.request.is_grpc();
        entry.grpc_status = tally.grpc_status;
        entry.health_check = tally.details == filter::HEALTH_CHECK;
        entry.attempts = tally.attempts;
        entry.downstream_direct_local = Some(self.conn.direct_local);
        entry.downstream_direct_remote = Some(self.conn.direct());
        entry.connection_id = self.conn.id;
        entry.accepted = Some(nanos(tally.start, self.conn.begun));
        entry.secured = self.conn.secured.map(|at| nanos(tally.start, at));
        // The lines are written before the connections end.
        entry.endings.up = tally.cluster.as_ref().map(|_| CloseType::Normal);
        entry.tls = self.conn.tls.as_deref();
        entry.filter_chain = Some(&*self.conn.chain).filter(|name| !name.is_empty());
        entry.transport_failure = tally.transport_failure.as_deref();
        entry.bytes_received = tally.request_bytes;
        entry.bytes_sent = tally.response_bytes;
        entry.upstream_service_time = tally.upstream_time;
        entry.upstream_host = tally.host.as_ref().map(|host| host.address());
        let cluster = tally.cluster.as_ref().filter(|_| !tally.lost).map(|cluster| cluster.config());
        let route = tally.route.filter(|_| !tally.lost);
        entry.upstream_cluster = cluster.map(|cluster| [&*cluster.observability_name, &*cluster.name]);
        entry.upstream_local = tally.upstream_local;
        entry.upstream_remote = tally.upstream_remote;
        entry.downstream_local = Some(self.conn.local);
        entry.downstream_remote = Some(self.client());
        entry.downstream_peer = self.conn.peer.as_ref().map(PeerIdentity::uri);
        entry.server_name = self.conn.server_name.as_deref();
        entry.metadata = telemetry::Known {
            route: route.and_then(|route| route.metadata.as_ref()),
            virtual_host: tally.selected.filter(|_| !tally.lost).and_then(|selected| selected.host.metadata.as_ref()),
            cluster: cluster.and_then(|cluster| cluster.metadata.as_ref()),
            endpoint: tally.host.as_ref().and_then(|host| host.endpoint().metadata.as_ref()),
            listener: self.conn.listener_metadata.as_ref(),
            chain: self.conn.chain_metadata.as_ref(),
        };
        entry.dynamic = self.dynamic();
        entry.observed = tally.observed.as_deref();
        // It is looked for when there is a cluster to go to.
        entry.virtual_cluster = tally.virtual_cluster().filter(|_| tally.attempts > 0).and_then(RequestGroup::name);
        entry.route_name = route.map(|route| &*route.name).filter(|name| !name.is_empty());
        entry
    }

    /// What filters have found out about the request.
    pub(super) fn dynamic(&self) -> Option<&DynamicMetadata> {
        self.tally.filters.as_ref().map(|state| &state.dynamic)
    }

    /// Forgets what filters have found out; whether that was something.
    pub(super) fn forget_dynamic(&mut self) -> bool {
        let found = self.tally.filters.as_mut().map(|state| std::mem::take(&mut state.dynamic));
        found.is_some_and(|dynamic| !dynamic.is_empty())
    }

    /// A value of metadata; all of a namespace is none.
    pub(super) fn metadata_of(&self, of: Source, filter: &str, path: &[Box<str>]) -> Option<Cow<'_, Value>> {
        match of {
            Source::Request => self.dynamic()?.at(filter, path).map(Cow::Borrowed),
            Source::Route => self.tally.route?.metadata.as_ref()?.value(filter, path).map(Cow::Owned),
        }
    }

    /// Whether something asks for what filters find out.
    pub(super) fn asks_dynamic(&self) -> bool {
        self.manager.needs.dynamic || self.manager.routes.asks_dynamic
    }

    /// Where is kept what lines ask for, if they do.
    pub(super) fn observed(&mut self) -> Option<&mut Observed> {
        self.manager.needs.observed.then(|| &mut **self.tally.observed.get_or_insert_default())
    }

    /// An answer begins to go to the client.
    pub(super) fn answers(&mut self) {
        let start = self.tally.start;
        if let Some(observed) = self.observed() {
            observed.answering = Some(start.elapsed());
        }
    }

    /// Tells the listener, where it logs, what the request was on the wire.
    pub(super) fn tell_listener(&self, wire: Wire) {
        if let Some(visit) = &self.conn.visit {
            let understood = !self.request.method().is_empty();
            let protocol = understood.then(|| self.request.version.as_str());
            visit.served(protocol, self.tally.flags, (wire.received, wire.sent));
        }
    }

    /// The client's address, as far as it is known.
    pub fn client(&self) -> SocketAddr {
        self.tally.client.unwrap_or(self.conn.remote)
    }

    /// Takes note of what a response's head says.
    pub fn note_response(&mut self) {
        self.tally.code = self.response.status;
        if self.request.is_grpc() {
            self.tally.grpc_status =
                grpc_status(self.response.headers.known(Known::GrpcStatus)).or(self.tally.grpc_status);
        }
    }

    /// Whether the client speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.request.version == Version::Http2
    }
}

/// The number in a `grpc-status`; [`NOT_A_STATUS`] where it is none.
pub fn grpc_status(value: Option<&[u8]>) -> Option<u16> {
    let text = value.map(|value| std::str::from_utf8(value).unwrap_or_default());
    text.map(|text| text.parse().unwrap_or(NOT_A_STATUS))
}
