//! A client of an event stream: its connection runs the real code over a simulated socket, and the
//! model checks what the client decodes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use sidestream::event::{EventId, Position};
use sidestream::feed::{GapReason, Outcome};
use sidestream::presence::{CloseReason, StreamHandle};

use super::client::Wakes;
use super::coverage::{self, Case};
use super::decoder::{Decoder, Item};
use super::model::Model;
use super::pod::Pod;
use super::socket::Peer;

/// Connection of a client with the task that serves it.
pub(crate) struct Connection {
    pub(crate) peer: Peer,
    pub(crate) decoder: Decoder,
    /// `None` after its end.
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    wakes: Arc<Wakes>,
    /// Wake count at the last poll.
    polled: Option<u64>,
}

pub(crate) struct StreamClient {
    pub(crate) model: Model,
    pub(crate) connection: Connection,
    pub(crate) handle: Arc<dyn StreamHandle>,
    /// Number of its route, and whether its event stream is lines of JSON.
    pub(crate) route: (usize, bool),
    /// Reason of the gap that it receives first.
    opening_gap: Option<GapReason>,
    /// Requested end, and the length of the history at that moment.
    requested: Option<(CloseReason, usize)>,
    /// Reason of the close event.
    closed: Option<String>,
    /// Its body has ended with the last chunk.
    has_ended: bool,
    /// Its socket has refused bytes: it may count as slow.
    has_stalled: bool,
    /// The load level may have skipped events.
    pub(crate) may_skip: bool,
}

/// Returns the address of a client, which is also its name.
pub(crate) fn address(number: usize) -> SocketAddr {
    let ip = Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap());
    SocketAddr::new(IpAddr::V4(ip), 40_000)
}

pub(crate) fn position(id: &str) -> Position {
    let id = EventId::parse(id.as_bytes()).unwrap_or_else(|_| panic!("{id} is an id"));
    let [position] = id.positions() else {
        panic!("{id} has one position")
    };
    *position
}

impl Connection {
    pub(crate) fn new(peer: Peer, task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            peer,
            decoder: Decoder::default(),
            task: Some(Box::pin(task)),
            wakes: Arc::default(),
            polled: None,
        }
    }

    pub(crate) fn poll(&mut self) {
        let Some(task) = &mut self.task else { return };
        self.polled = Some(self.wakes.count());
        let waker = Waker::from(self.wakes.clone());
        self.peer.set_task(true);
        let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
        self.peer.set_task(false);
        if polled.is_ready() {
            self.task = None;
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.task.is_none()
    }

    /// Returns true if the task was woken since its last poll.
    pub(crate) fn is_woken(&self) -> bool {
        self.task.is_some() && self.polled != Some(self.wakes.count())
    }
}

impl StreamClient {
    pub(crate) fn new(
        model: Model,
        connection: Connection,
        handle: Arc<dyn StreamHandle>,
        route: (usize, bool),
        outcome: Outcome,
    ) -> Self {
        let opening_gap = match outcome {
            Outcome::Gap(gap) => Some(gap.reason),
            Outcome::Live | Outcome::Window | Outcome::Archive => None,
        };
        Self {
            model,
            connection,
            handle,
            route,
            opening_gap,
            requested: None,
            closed: None,
            has_ended: false,
            has_stalled: false,
            may_skip: false,
        }
    }

    /// Requests the end, as a drain does.
    pub(crate) fn close(&mut self, pod: &Pod, reason: CloseReason) {
        self.handle.close(reason);
        if self.requested.is_none() || reason == CloseReason::Cut {
            self.requested = Some((reason, pod.history.len()));
        }
    }

    /// Makes room in its socket: a task that has bytes for it is woken.
    pub(crate) fn make_room(&self, room: usize) {
        let peer = &self.connection.peer;
        let has_bytes = peer.has_refused() && !peer.has_left() && !self.connection.is_over();
        peer.set_room(room);
        assert!(
            room == 0 || !has_bytes || self.connection.is_woken(),
            "{self}: its socket has room"
        );
    }

    /// Takes everything that has arrived.
    pub(crate) fn receive(&mut self, pod: &Pod) {
        let peer = &self.connection.peer;
        self.has_stalled |= peer.has_refused();
        let bytes = peer.take();
        if peer.has_left() {
            return;
        }
        for item in self.connection.decoder.decode(&bytes) {
            assert!(!self.has_ended, "{self}: {item:?} after the last chunk");
            let is_closed = self.closed.is_some();
            match item {
                Item::End => {
                    assert!(is_closed, "{self}: the body ends with a close event");
                    self.has_ended = true;
                }
                item => {
                    assert!(!is_closed, "{self}: {item:?} after the close event");
                    self.take(pod, item);
                }
            }
        }
    }

    fn take(&mut self, pod: &Pod, item: Item) {
        if let Some(reason) = self.opening_gap.take() {
            let Item::Gap { gap, id } = item else {
                panic!("{self}: {item:?} before the gap of the opening")
            };
            assert_eq!(gap.reason, reason, "{self}: opening");
            assert_eq!(position(&id), self.model.position, "{self}: opening");
            return;
        }
        match item {
            Item::Event { text, id } => self.model.take_event(pod, &text, position(&id), None),
            Item::Gap { gap, id } => {
                Case::of_gap(gap.reason)
                    .into_iter()
                    .for_each(coverage::reach);
                let may_skip = self.has_stalled || self.may_skip;
                self.model.take_gap(pod, gap, position(&id), may_skip);
            }
            Item::Position { id } => self.model.take_position(pod, position(&id)),
            Item::Close { reason, id } => self.take_close(pod, reason, position(&id)),
            Item::Rejection { .. } | Item::End => panic!("{self}: {item:?} in an event stream"),
        }
    }

    fn take_close(&mut self, pod: &Pod, reason: String, position: Position) {
        coverage::reach(Case::of_close(&reason));
        if reason == CloseReason::Slow.label() {
            assert!(self.has_stalled, "{self}: closed as slow");
            assert_eq!(position, self.model.position, "{self}: closed as slow");
        } else {
            self.model.take_position(pod, position);
        }
        if let Some((_, length)) = self
            .requested
            .filter(|(requested, _)| requested.label() == reason)
            .filter(|(requested, _)| *requested == CloseReason::Drain && !pod.has_archive)
        {
            // With an archive a client that the window has overtaken continues there on another pod.
            self.model.assert_has(pod, length);
        }
        self.closed = Some(reason);
    }

    /// Asserts that an idle client has received everything. `is_settled`: the dispatcher has nothing
    /// to do and no client of the pod reads the archive.
    pub(crate) fn assert_idle(&mut self, pod: &Pod, is_settled: bool) {
        let connection = &self.connection;
        if !is_settled
            || connection.is_over()
            || connection.is_woken()
            || connection.peer.has_refused()
            || connection.peer.has_left()
            || self.closed.is_some()
        {
            return;
        }
        assert_eq!(self.opening_gap, None, "{self}: the opening is written");
        self.model.assert_is_current(pod);
        assert_eq!(
            self.handle.lag().events,
            0,
            "{self}: lag of an idle client that has everything"
        );
    }

    /// Asserts the totals and the position that other tasks see, while no bytes wait.
    pub(crate) fn assert_totals(&self) {
        let connection = &self.connection;
        let peer = &connection.peer;
        // After its end the event stream has left its feed.
        if connection.is_over() || peer.has_refused() || peer.has_left() || peer.is_ended() {
            return;
        }
        let info = self.handle.describe();
        assert_eq!(
            (info.sent.events, info.sent.bytes),
            (connection.decoder.events, connection.decoder.body_bytes),
            "{self}: events and bytes, sent and received"
        );
        // Before the first poll the position is not written yet.
        if info.sent.bytes > 0 {
            assert_eq!(
                position(&info.last_event_id),
                self.model.position,
                "{self}: position that other tasks see"
            );
        }
    }

    /// Asserts that a connection that is over had a reason to end.
    pub(crate) fn assert_ended(&self) {
        let peer = &self.connection.peer;
        if peer.has_left() {
            if peer.has_refused() {
                coverage::reach(Case::LeftWithBytesInTheSidecar);
            }
            if self.connection.decoder.is_inside_event() {
                coverage::reach(Case::LeftWithHalfAnEvent);
            }
            return;
        }
        assert!(peer.is_ended(), "{self}: the socket is closed");
        let is_cut = matches!(self.requested, Some((CloseReason::Cut, _)));
        if is_cut && self.closed.is_none() {
            coverage::reach(Case::Cut);
        }
        if self.closed.is_some() && !self.has_ended {
            coverage::reach(Case::EndWithoutLastChunk);
        }
        assert!(
            self.closed.is_some() || is_cut || self.has_stalled,
            "{self}: ended without a reason"
        );
    }

    /// Returns true if the server has ended its side and the client has not.
    pub(crate) fn is_half_closed(&self) -> bool {
        self.connection.peer.is_ended() && !self.connection.peer.has_left()
    }
}

impl std::fmt::Display for StreamClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let peer = &self.connection.peer;
        write!(f, "event stream of {}", self.model)?;
        if let Some((reason, _)) = self.requested {
            write!(f, ", requested to end as {}", reason.label())?;
        }
        if let Some(reason) = &self.closed {
            write!(f, ", closed as {reason}")?;
        }
        for (is, what) in [
            (peer.has_refused(), "its socket is full"),
            (peer.is_ended(), "its socket is closed"),
            (peer.has_left(), "it has left"),
            (self.connection.is_woken(), "its task is woken"),
        ] {
            if is {
                write!(f, ", {what}")?;
            }
        }
        Ok(())
    }
}
