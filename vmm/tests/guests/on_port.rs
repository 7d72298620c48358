//! Code of a test's own amid a guest's write to a port, on the thread that serves it: the bus traces such writes.
//!
//! Events go to one subscriber for the whole process. A thread's own would not do: tracing asks only the subscriber of
//! the thread that meets an event first whether anybody wants it, and that may be another test's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

type Deed = Arc<dyn Fn() + Send + Sync>;

static DEEDS: Mutex<BTreeMap<u16, Deed>> = Mutex::new(BTreeMap::new());

fn deeds() -> MutexGuard<'static, BTreeMap<u16, Deed>> {
    DEEDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `deed` whenever a guest writes to `port`, from now on and instead of what was done before. No two tests use the
/// same port.
pub fn on_port(port: u16, deed: impl Fn() + Send + Sync + 'static) {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    deeds().insert(port, Arc::new(deed));
    INSTALLED.get_or_init(|| tracing::subscriber::set_global_default(Subscriber).unwrap());
    // Of events that were met before, too.
    tracing::callsite::rebuild_interest_cache();
}

struct Subscriber;

/// The port that an event is about.
#[derive(Default)]
struct Port(Option<u64>);

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut port = Port::default();
        event.record(&mut port);
        let port = port.0.and_then(|port| u16::try_from(port).ok());
        let deed = port.and_then(|port| deeds().get(&port).cloned());
        if let Some(deed) = deed {
            deed();
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

impl tracing::field::Visit for Port {
    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        if field.name() == "port" {
            self.0 = Some(value);
        }
    }
    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
}
