//! How long the guest may be silent before it counts as hung.

use super::cursor::{Awaiting, Cursor};
use crate::evidence::PAGE;
use crate::plan::{Plan, Step, WORKLOAD_OBJECT};
use guest_agent::protocol::Request;

/// Guest time that a kernel may take for each page in one system call, in nanoseconds: to preserve, retrieve or free
/// it, or to take it over at boot. 7.3.4 needs more than 1000 to free one.
const PER_PAGE_NS: u64 = 10_000;

/// Guest time without progress after which the guest counts as hung at this place of the run, in nanoseconds.
///
/// Work that the agent does by itself comes in portions, and each answer is progress. What the kernel does with a whole
/// memfd at once cannot be divided, so there the time grows with the number of pages.
pub(super) fn patience(plan: &Plan, cursor: &Cursor) -> u64 {
    let all = || {
        let bytes = plan.objects.iter().map(|object| object.bytes);
        bytes.fold(0u64, u64::saturating_add)
    };
    let (usual, bytes) = match &cursor.awaiting {
        Awaiting::Greeting { .. } => (plan.boot_progress_ns, all()),
        Awaiting::Answer { request, .. } => {
            if matches!(request, Request::RunProgram(_)) {
                return plan.boot_progress_ns;
            }
            let bytes = match request {
                Request::CreateBuffer { object, .. }
                | Request::Preserve { object, .. }
                | Request::RetrieveMemfd { object, .. }
                | Request::Close { object } => bytes_of(plan, *object),
                Request::RetrieveSession { .. } | Request::FinishSession { .. } => all(),
                _ => 0,
            };
            (plan.progress_ns, bytes)
        }
        // Nobody asks a program of the user's own to say anything.
        Awaiting::Payload => (plan.boot_progress_ns, all()),
        Awaiting::Nothing | Awaiting::End => (plan.progress_ns, 0),
    };
    usual.saturating_add((bytes / PAGE).saturating_mul(PER_PAGE_NS))
}

/// Size of an object of the plan, or of the file that the workload fills.
fn bytes_of(plan: &Plan, object: u32) -> u64 {
    if object != WORKLOAD_OBJECT {
        return plan.object(object).map_or(0, |object| object.bytes);
    }
    let workloads = plan.steps.iter().flatten().map(|step| match step {
        Step::UseMemory(bytes) => *bytes,
        _ => 0,
    });
    workloads.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conductor::Point;
    use crate::evidence::{Moment, Phase};
    use crate::testing;

    /// What is allowed with this text appended to a scenario of 18 pages, at power-on and at a request.
    fn allowed(further: &str, request: Request) -> (u64, u64) {
        let plan = testing::plan(&format!("{}{further}", testing::SCENARIO));
        let mut cursor = Cursor::start(0);
        let booting = patience(&plan, &cursor);
        let moment = Moment {
            generation: 0,
            time_ns: 0,
            ledger_length: 0,
        };
        let asked = Point {
            moment,
            phase: Phase::Prepare,
            rip: None,
            engine_event_ns: None,
        };
        cursor.ask(request, asked);
        (booting, patience(&plan, &cursor))
    }

    #[test]
    fn a_boot_may_take_longer_than_an_answer_and_large_memory_longer_than_small() {
        const PAGES_NS: u64 = 18 * PER_PAGE_NS;
        let close = || Request::Close { object: 1 };
        assert_eq!(
            allowed("", Request::MemoryInfo),
            (10_000_000_000 + PAGES_NS, 2_000_000_000)
        );
        assert_eq!(allowed("", close()).1, 2_000_000_000 + PAGES_NS);
        let workload = Request::Close {
            object: WORKLOAD_OBJECT,
        };
        assert_eq!(
            allowed("[run]\nworkload = \"40 KiB\"\n", workload).1,
            2_000_000_000 + 10 * PER_PAGE_NS
        );
        let short = "[limits]\nprogress = \"100 ms\"\n";
        assert_eq!(
            allowed(short, Request::MemoryInfo),
            (500_000_000 + PAGES_NS, 100_000_000)
        );
        let both = "[limits]\nprogress = \"100 ms\"\nboot = \"1 ms\"\n";
        assert_eq!(
            allowed(both, Request::MemoryInfo),
            (1_000_000 + PAGES_NS, 100_000_000)
        );
    }
}
