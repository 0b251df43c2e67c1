//! What a subscriber of `tracing` is told of requests, and when.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::{Flag, mutator};
use safepoint::{EachOptions, HandshakeOptions, StopOptions, World};
use testkit::in_child;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const SOON: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(2);

/// A span, or an event with its span.
#[derive(Debug, Clone, Default)]
struct Told {
    name: String,
    within: Option<u64>,
    fields: HashMap<String, String>,
    closed: bool,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl Told {
    fn number(&self, field: &str) -> u64 {
        self.fields[field].parse().expect("a number")
    }
}

/// Keeps what it is told. No mutator may be stopped then.
#[derive(Default)]
struct Listener {
    next: AtomicU64,
    spans: Mutex<Vec<(u64, Told)>>,
    events: Mutex<Vec<Told>>,
    is_stopped: AtomicBool,
    panics: AtomicBool,
}

impl Listener {
    fn called(&self) {
        assert!(!self.is_stopped.load(Ordering::SeqCst), "called in a stopped world");
        assert!(!self.panics.load(Ordering::SeqCst), "a subscriber that panics");
    }

    fn change(&self, id: &Id, change: impl FnOnce(&mut Told)) {
        let mut spans = self.spans.lock().unwrap();
        change(&mut spans.iter_mut().find(|(at, _)| *at == id.into_u64()).expect("made before").1);
    }

    fn the_span(&self, name: &str) -> (u64, Told) {
        let spans = self.spans.lock().unwrap();
        let mut found = spans.iter().filter(|(_, told)| told.name == name);
        let (Some(span), None) = (found.next(), found.next()) else { panic!("{spans:?}") };
        span.clone()
    }

    fn events(&self) -> Vec<Told> {
        self.events.lock().unwrap().clone()
    }
}

/// The subscriber, of which the test keeps a handle.
struct Subscribed(Arc<Listener>);

impl Subscriber for Subscribed {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("safepoint")
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.0.called();
        let id = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut told = Told { name: span.metadata().name().to_owned(), ..Told::default() };
        span.record(&mut told);
        self.0.spans.lock().unwrap().push((id, told));
        Id::from_u64(id)
    }
    fn record(&self, span: &Id, values: &Record<'_>) {
        self.0.called();
        self.0.change(span, |told| values.record(told));
    }
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn event(&self, event: &Event<'_>) {
        self.0.called();
        let within = event.parent().map(Id::into_u64);
        let mut told = Told { within, ..Told::default() };
        event.record(&mut told);
        self.0.events.lock().unwrap().push(told);
    }
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
    fn try_close(&self, id: Id) -> bool {
        self.0.called();
        self.0.change(&id, |told| told.closed = true);
        true
    }
}

/// Makes requests of a world with a mutator that is late for one, until `come`.
fn told(request: impl FnOnce(&World, &Flag, &Listener)) -> Arc<Listener> {
    let listener = Arc::new(Listener::default());
    let (world, come, done) = (World::new(), Flag::default(), Flag::default());
    tracing::subscriber::set_global_default(Subscribed(listener.clone())).expect("the first");
    thread::scope(|scope| {
        mutator(scope, &world, "late", |mutator| {
            come.wait();
            mutator.blocking(|| done.wait());
        });
        request(&world, &come, &listener);
        done.raise();
    });
    listener
}

/// And not while mutators are stopped: a subscriber may want a lock that one of them has.
#[test]
fn a_stop_is_told_of_when_it_is_over_with_the_mutator_that_was_late() {
    let name = "trace::a_stop_is_told_of_when_it_is_over_with_the_mutator_that_was_late";
    in_child(name, SOON, || {
        let listener = told(|world, come, listener| {
            let tell = |_: &_| come.raise();
            let options = StopOptions::new("gc").on_late(SHORT, &tell);
            let stopped = world.stop_from_outside_with(options).expect("no timeout");
            let (_, span) = listener.the_span("stop");
            assert!(!span.closed && !span.fields.contains_key("mutators"), "{span:?}");
            assert!(listener.events().is_empty(), "nor of the late mutator");
            listener.is_stopped.store(true, Ordering::SeqCst);
            thread::sleep(SHORT);
            listener.is_stopped.store(false, Ordering::SeqCst);
            stopped.resume();
        });
        let (id, span) = listener.the_span("stop");
        assert!(span.closed && span.fields["reason"] == "\"gc\"", "{span:?}");
        assert_eq!(span.number("mutators"), 1);
        let times = ["queued_us", "time_to_stop_us", "stopped_us"].map(|time| span.number(time));
        assert!(times[1] >= 2000 && times[2] >= 2000, "{span:?}");
        let [event] = &listener.events()[..] else { panic!("{:?}", listener.events()) };
        assert_eq!((event.within, &*event.fields["name"]), (Some(id), "late"));
        assert_eq!(event.fields["message"], "late mutator");
        assert!((100..=times[1]).contains(&event.number("after_us")), "{event:?}");
    });
}

#[test]
fn a_stop_that_is_handed_over_is_told_of_by_the_thread_that_ends_it() {
    let name = "trace::a_stop_that_is_handed_over_is_told_of_by_the_thread_that_ends_it";
    in_child(name, SOON, || {
        let listener = told(|world, come, listener| {
            come.raise();
            let mut handle = None;
            let stopped = world.stop_from_outside("dump").expect("no timeout");
            stopped.hand_over(|stopped| handle = Some(stopped));
            assert!(!listener.the_span("stop").1.closed);
            thread::scope(|scope| scope.spawn(|| drop(handle)).join().expect("no panic"));
            assert!(listener.the_span("stop").1.closed);
        });
        assert_eq!(listener.the_span("stop").1.number("mutators"), 1);
    });
}

#[test]
fn a_stop_that_is_given_up_is_told_of_with_its_stragglers() {
    in_child("trace::a_stop_that_is_given_up_is_told_of_with_its_stragglers", SOON, || {
        let listener = told(|world, come, _| {
            let options = StopOptions::new("gc").timeout(SHORT);
            world.stop_from_outside_with(options).map(drop).unwrap_err();
            come.raise();
        });
        let (id, span) = listener.the_span("stop");
        assert!(span.closed && span.fields["given_up"] == "true", "{span:?}");
        let events = listener.events();
        let event = events.iter().find(|event| event.fields["message"] == "straggler");
        let event = event.unwrap_or_else(|| panic!("{events:?}"));
        assert_eq!((event.within, &*event.fields["name"]), (Some(id), "late"));
        assert!(!event.fields["cause"].is_empty(), "{event:?}");
    });
}

#[test]
fn a_for_each_is_told_of_with_the_mutator_that_was_late() {
    in_child("trace::a_for_each_is_told_of_with_the_mutator_that_was_late", SOON, || {
        let listener = told(|world, come, _| {
            let tell = |_: &_| come.raise();
            let mut mutator = world.attach().expect("a thread of its own");
            let options = EachOptions::new().on_late(SHORT, &tell);
            mutator.for_each_processor_with(options, |_| ()).expect("no timeout");
        });
        let (id, span) = listener.the_span("for_each");
        assert!(span.closed && span.number("visited") == 2, "{span:?}");
        let [event] = &listener.events()[..] else { panic!("{:?}", listener.events()) };
        assert_eq!((event.within, &*event.fields["name"]), (Some(id), "late"));
    });
}

#[test]
fn a_subscriber_that_panics_leaves_no_request_half_done() {
    in_child("trace::a_subscriber_that_panics_leaves_no_request_half_done", SOON, || {
        told(|world, come, listener| {
            come.raise();
            let mut mutator = world.attach().expect("a thread of its own");
            let stopped = mutator.stop_the_world("gc").expect("no timeout");
            listener.panics.store(true, Ordering::SeqCst);
            stopped.resume();
            for _ in 0..2 {
                mutator.stop_the_world("gc").expect("the world runs").resume();
                mutator.for_each_processor(|_| ()).expect("and no turn is held");
            }
        });
    });
}

#[test]
fn a_handshake_is_told_of_with_the_mutator_that_was_late() {
    in_child("trace::a_handshake_is_told_of_with_the_mutator_that_was_late", SOON, || {
        let listener = told(|world, come, _| {
            let tell = |_: &_| come.raise();
            let options = HandshakeOptions::new().on_late(SHORT, &tell);
            let answers = world.handshake_all(options, |_| ()).expect("no timeout");
            assert_eq!(answers.len(), 1);
        });
        let (id, span) = listener.the_span("handshake");
        assert!(span.closed && span.number("asked") == 1, "{span:?}");
        assert!(span.number("answered") == 1 && span.number("lasted_us") >= 2000, "{span:?}");
        let [event] = &listener.events()[..] else { panic!("{:?}", listener.events()) };
        assert_eq!((event.within, &*event.fields["name"]), (Some(id), "late"));
    });
}

#[test]
fn a_handshake_that_is_given_up_is_told_of_with_its_stragglers() {
    in_child("trace::a_handshake_that_is_given_up_is_told_of_with_its_stragglers", SOON, || {
        let listener = told(|world, come, _| {
            let options = HandshakeOptions::new().timeout(SHORT);
            world.handshake_all(options, |_| ()).map(drop).unwrap_err();
            come.raise();
        });
        let (id, span) = listener.the_span("handshake");
        assert!(span.closed && span.fields["given_up"] == "true", "{span:?}");
        let events = listener.events();
        let event = events.iter().find(|event| event.fields["message"] == "straggler");
        let event = event.unwrap_or_else(|| panic!("{events:?}"));
        assert_eq!((event.within, &*event.fields["name"]), (Some(id), "late"));
    });
}
