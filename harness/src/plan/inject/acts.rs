//! Deeds that need nothing of the plan.

use vmm::devices::power::PowerRequest;
use vmm::injection::{Act, Change, Deed, Filter, WriteKind};

use crate::scenario::inject::{BusFault, EngineFault, InterruptFault, MachineFault, TimeFault};

pub(super) fn interrupt(fault: InterruptFault) -> Deed {
    let filter = |change| {
        let of = WriteKind::Message;
        Deed::Filter(Filter { of, change })
    };
    match fault {
        InterruptFault::Lost => filter(Change::Drop),
        InterruptFault::Duplicate { after } => filter(Change::Duplicate(after.0)),
        InterruptFault::Late { by } => filter(Change::Delay(by.0)),
        InterruptFault::Vector { to } => filter(Change::Vector(to)),
        InterruptFault::Spurious { vector } => Deed::Act(Act::Messages {
            vector,
            count: 1,
            every: 1,
        }),
        InterruptFault::Storm {
            messages,
            distance,
            vector,
        } => Deed::Act(Act::Messages {
            vector,
            count: messages,
            every: distance.0,
        }),
        InterruptFault::Pending { vector } => Deed::Act(Act::Pend { vector }),
    }
}

pub(super) fn engine(fault: EngineFault) -> Act {
    match fault {
        EngineFault::IgnoreStop { during } => Act::IgnoreStop {
            ns: during.map(|during| during.0),
        },
        EngineFault::Silent { during } => Act::Silence { ns: during.0 },
        EngineFault::Burst { blocks } => Act::Burst { blocks },
    }
}

pub(super) fn bus(fault: BusFault) -> Act {
    match fault {
        BusFault::MasterCleared => Act::BusMaster { on: false },
        BusFault::MasterSet => Act::BusMaster { on: true },
        BusFault::FunctionReset => Act::ResetFunction,
        BusFault::Gone => Act::Remove,
        BusFault::BarMoved { bar, to } => Act::MoveBar { bar, to },
    }
}

pub(super) fn machine(fault: MachineFault) -> Act {
    match fault {
        MachineFault::Reset => Act::Power(PowerRequest::Reset),
        MachineFault::PowerOff => Act::Power(PowerRequest::Off),
        MachineFault::Nmi { processor } => Act::Nmi { processor },
        MachineFault::Unstoppable { processor } => Act::Unstoppable { processor },
    }
}

pub(super) fn time(fault: TimeFault) -> Act {
    match fault {
        TimeFault::TscForward { by } => Act::ShiftTsc {
            by: TimeFault::jump(by),
        },
        TimeFault::TscBack { by } => Act::ShiftTsc {
            by: -TimeFault::jump(by),
        },
        TimeFault::LateTimer { by } => Act::DelayTimers { by: by.0 },
        TimeFault::SlowDevice { by, during } => Act::SlowAccesses {
            by: by.0,
            ns: during.0,
        },
    }
}
