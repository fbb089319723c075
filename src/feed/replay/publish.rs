//! Publication of a page: the events that members select, encoded once, and the members' lists of
//! them.

use std::sync::Arc;
use std::task::Waker;

use super::read_ahead::{self, ReadAhead};
use super::{Phase, Reader, ReplayPool, State, leave};
use crate::event::Event;
use crate::feed::archive::Page;
use crate::feed::encoded::EncodedEvent;

/// Events of a page that is being put together.
#[derive(Default)]
struct Selection {
    /// Events that a member selects.
    events: Vec<Arc<EncodedEvent>>,
    /// Estimated size of `events`.
    bytes: usize,
    /// Number of events read, selected or not.
    read: usize,
    /// Number of events of the member that has most.
    most_events: usize,
    /// Payload bytes of the member that has most.
    most_bytes: usize,
}

/// 128: a page ends when one member has this number of events in it.
const MEMBER_EVENTS_MAX: usize = 128;

/// 1 MiB: a page ends when one member has payloads of this size in it.
const MEMBER_BYTES_MAX: usize = 1 << 20;

impl ReplayPool {
    /// Makes a page available to the members that have events in it, together with those that
    /// follow it without a gap, until one member has enough. Returns how many events the next page
    /// needs so that its writes are worth their cost.
    pub(super) fn publish(
        &self,
        session_key: usize,
        mut page: Page,
        ahead: &mut ReadAhead,
        bytes_max: usize,
    ) -> usize {
        let gap = page.gap();
        let mut selection = Selection::default();
        loop {
            selection.read += page.events.len();
            self.select(
                session_key,
                std::mem::take(&mut page.events),
                &mut selection,
            );
            if selection.is_full(bytes_max) {
                break;
            }
            let Some(next) = ahead.take_after(page.through) else {
                break;
            };
            page.through = next.through;
            page.events = next.events;
        }
        self.replays
            .metrics
            .replayed_events_total
            .inc_by(selection.read as u64);
        let wanted = read_ahead::wanted(selection.most_events, selection.read);
        let mut wakers = Vec::new();
        {
            let mut state = self.lock();
            let State {
                readers, sessions, ..
            } = &mut *state;
            let session = &mut sessions[session_key];
            session.after = page.after;
            session.through = page.through;
            session.events = selection.events;
            for (key, reader) in readers.iter_mut() {
                let Phase::Joined {
                    session: joined,
                    events,
                    ..
                } = &reader.phase
                else {
                    continue;
                };
                if *joined != session_key {
                    continue;
                }
                if std::mem::take(&mut reader.begins_at_oldest) && !page.is_unreadable {
                    reader.through = reader.through.max(page.after);
                }
                if page.after > reader.through {
                    // The reader may not have polled since an earlier page.
                    let gap = reader.missing.map_or(gap, |(_, before)| before.and(gap));
                    reader.missing = Some((page.after, gap));
                    reader.through = page.after;
                }
                if events.is_empty() {
                    // Also before it takes its gap: the next page may be published first, and is
                    // not a gap after this one.
                    reader.through = reader.through.max(page.through);
                }
                if events.is_empty() && reader.missing.is_none() {
                    // A member without events is woken only if it can continue in the window.
                    if !reader.reaches_window() {
                        continue;
                    }
                    leave(session, &reader.feed, key);
                    reader.phase = Phase::Reached;
                }
                wakers.extend(reader.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        wanted
    }

    /// Adds the events of a page that members select, and encodes them.
    fn select(&self, session_key: usize, events: Vec<Event>, selection: &mut Selection) {
        let (mut selected, mut prepared) = (Vec::with_capacity(events.len()), Vec::new());
        {
            let mut state = self.lock();
            let State {
                readers, sessions, ..
            } = &mut *state;
            let session = &mut sessions[session_key];
            let mut found = Vec::new();
            // A page has far fewer events.
            let mut number = u32::try_from(selection.events.len()).unwrap_or(u32::MAX);
            for event in events {
                let mut is_selected = false;
                session.trie.matches(&event.subject, &mut found);
                for key in found.drain(..) {
                    let Some(Reader {
                        phase:
                            Phase::Joined {
                                events,
                                next,
                                bytes,
                                ..
                            },
                        through,
                        feed,
                        ..
                    }) = readers.get_mut(key)
                    else {
                        continue;
                    };
                    if event.position.seq <= *through {
                        continue;
                    }
                    if events.is_empty() {
                        session.unread += 1;
                        (*next, *bytes) = (0, 0);
                    }
                    events.push(number);
                    *bytes += event.data.len();
                    selection.most_events = selection.most_events.max(events.len());
                    selection.most_bytes = selection.most_bytes.max(*bytes);
                    is_selected = true;
                    if feed.options.is_prepared(&event) {
                        prepared.push((number, feed.options.clone()));
                    }
                }
                if is_selected {
                    selection.bytes += read_ahead::size_of_event(&event);
                    selected.push(event);
                    number += 1;
                }
            }
        }
        let encoded = selected
            .into_iter()
            .map(|event| EncodedEvent::new(event, &self.budget));
        selection.events.extend(encoded);
        for (number, options) in prepared {
            if let Some(encoded) = selection.events.get(number as usize) {
                options.prepare(encoded);
            }
        }
    }
}

impl Selection {
    /// True if a member has enough, or the session.
    fn is_full(&self, bytes_max: usize) -> bool {
        self.most_events >= MEMBER_EVENTS_MAX
            || self.most_bytes >= MEMBER_BYTES_MAX
            || self.bytes >= bytes_max
    }
}
