//! Handles events of the machine other than messages.

use super::cursor::{Awaiting, Cursor, Ending, Point};
use super::payload;
use crate::evidence::OutcomeKind;
use crate::oracle::millis;
use crate::plan::{Plan, Step};
use guest_agent::protocol::NO_MAILBOX;
use vmm::machine::Event;

/// Printed by the kernel when it panics (kernel/panic.c).
pub(crate) const PANIC: &str = "Kernel panic - not syncing: ";
/// Panic message if PID 1 has died (kernel/exit.c).
const INIT_DIED: &str = "Attempted to kill init";

/// Handles an event other than a message. Returns whether it completes the current part of the step; if not, the guest
/// runs on.
pub(super) fn event(
    plan: &Plan,
    cursor: &mut Cursor,
    event: &Event,
    panic: Option<String>,
    at: Point,
) -> Result<bool, Ending> {
    match &panic {
        None => {
            if let Some(result) = payload::event(plan, cursor, event) {
                return result;
            }
        }
        Some(line) if cursor.awaiting == Awaiting::Payload && line.contains(INIT_DIED) => {
            return Err(Ending::new(OutcomeKind::PayloadFailed, line.clone()));
        }
        Some(_) => {}
    }
    match (&cursor.awaiting, event) {
        (Awaiting::End, Event::PowerOff { .. }) if cursor.step_of(plan) == Some(Step::PowerOff) => {
            cursor.awaiting = Awaiting::Nothing;
            cursor.part += 1;
            Ok(true)
        }
        (Awaiting::Greeting { .. } | Awaiting::Answer { .. }, Event::Jump { .. }) => Ok(false),
        (Awaiting::Greeting { .. } | Awaiting::Answer { .. }, Event::KernelEntry { generation, .. }) => {
            // The new kernel's agent holds nothing until it retrieves it.
            cursor.generation = (*generation).into();
            cursor.held.clear();
            cursor.sessions.clear();
            cursor.offered.clear();
            Ok(false)
        }
        _ => Err(ended_by(event, panic, at)),
    }
}

/// The ending of a run by this event.
pub(super) fn ended_by(event: &Event, panic: Option<String>, at: Point) -> Ending {
    if let Some(line) = panic {
        let init_died = line.contains(INIT_DIED);
        let kind = if init_died {
            OutcomeKind::AgentDied
        } else {
            OutcomeKind::GuestPanic
        };
        return Ending::new(kind, line);
    }
    let kind = match event {
        Event::MessageTooLong { .. } => OutcomeKind::AgentDied,
        Event::PowerOff { .. } | Event::Reset { .. } => OutcomeKind::UnexpectedReset,
        Event::TripleFault { .. } => OutcomeKind::TripleFault,
        Event::DeadHalt { .. } | Event::NoProgress { .. } => OutcomeKind::GuestHang,
        Event::LedgerFull { .. } => OutcomeKind::LedgerFull,
        Event::UnknownInstruction { .. } => OutcomeKind::UnknownInstruction,
        Event::Message(_)
        | Event::Jump { .. }
        | Event::KernelEntry { .. }
        | Event::InjectionAsks { .. }
        | Event::AwaitedAddress { .. }
        | Event::Reached { .. } => OutcomeKind::MachineFailed,
    };
    let text = match event {
        Event::NoProgress { at, since, limit } => format!(
            "no progress for {} of guest time: no message and no console output since {} ({at})",
            millis(*limit),
            millis(*since)
        ),
        event => event.to_string(),
    };
    Ending {
        rip: at.rip,
        ..Ending::new(kind, text)
    }
}

/// Why the agent could not reach the host, if it has said so on the console.
pub(super) fn no_mailbox(console: &str) -> Option<String> {
    let line = &console[console.find(NO_MAILBOX)?..];
    let line = line.lines().next().unwrap_or_default().trim_end();
    Some(line.trim_start_matches("baton agent: ").to_owned())
}

/// The panic message in a kernel's console output, if there is one.
pub(super) fn panic_line(console: &str) -> Option<String> {
    let line = &console[console.find(PANIC)?..];
    Some(line.lines().next().unwrap_or_default().trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_message_is_one_line_of_the_console() {
        let console = "[ 1.0] ok\n[ 2.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x100\r\n[ 2.1] CPU: 0\n";
        let line = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x100";
        assert_eq!(panic_line(console).as_deref(), Some(line));
        assert_eq!(panic_line("[ 1.0] ok\n"), None);
        let alone = "[ 1.0] ok\n[ 2.0] baton agent: no mailbox: find: no device\r\n";
        assert_eq!(no_mailbox(alone).as_deref(), Some("no mailbox: find: no device"));
        assert_eq!(no_mailbox(console), None);
    }
}
