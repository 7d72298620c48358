//! Opcodes by family, form and size: tables that turn what was decoded into an [`OpCode`].

use crate::op::OpCode::{self, *};

/// Forms of a two-operand instruction, in the order of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
}

#[rustfmt::skip]
pub(crate) const ALU: [[[OpCode; 4]; 5]; 8] = [
    [[AddRRB, AddRRW, AddRRD, AddRRQ], [AddRIB, AddRIW, AddRID, AddRIQ], [AddRMB, AddRMW, AddRMD, AddRMQ], [AddMRB, AddMRW, AddMRD, AddMRQ], [AddMIB, AddMIW, AddMID, AddMIQ]],
    [[OrRRB, OrRRW, OrRRD, OrRRQ], [OrRIB, OrRIW, OrRID, OrRIQ], [OrRMB, OrRMW, OrRMD, OrRMQ], [OrMRB, OrMRW, OrMRD, OrMRQ], [OrMIB, OrMIW, OrMID, OrMIQ]],
    [[AdcRRB, AdcRRW, AdcRRD, AdcRRQ], [AdcRIB, AdcRIW, AdcRID, AdcRIQ], [AdcRMB, AdcRMW, AdcRMD, AdcRMQ], [AdcMRB, AdcMRW, AdcMRD, AdcMRQ], [AdcMIB, AdcMIW, AdcMID, AdcMIQ]],
    [[SbbRRB, SbbRRW, SbbRRD, SbbRRQ], [SbbRIB, SbbRIW, SbbRID, SbbRIQ], [SbbRMB, SbbRMW, SbbRMD, SbbRMQ], [SbbMRB, SbbMRW, SbbMRD, SbbMRQ], [SbbMIB, SbbMIW, SbbMID, SbbMIQ]],
    [[AndRRB, AndRRW, AndRRD, AndRRQ], [AndRIB, AndRIW, AndRID, AndRIQ], [AndRMB, AndRMW, AndRMD, AndRMQ], [AndMRB, AndMRW, AndMRD, AndMRQ], [AndMIB, AndMIW, AndMID, AndMIQ]],
    [[SubRRB, SubRRW, SubRRD, SubRRQ], [SubRIB, SubRIW, SubRID, SubRIQ], [SubRMB, SubRMW, SubRMD, SubRMQ], [SubMRB, SubMRW, SubMRD, SubMRQ], [SubMIB, SubMIW, SubMID, SubMIQ]],
    [[XorRRB, XorRRW, XorRRD, XorRRQ], [XorRIB, XorRIW, XorRID, XorRIQ], [XorRMB, XorRMW, XorRMD, XorRMQ], [XorMRB, XorMRW, XorMRD, XorMRQ], [XorMIB, XorMIW, XorMID, XorMIQ]],
    [[CmpRRB, CmpRRW, CmpRRD, CmpRRQ], [CmpRIB, CmpRIW, CmpRID, CmpRIQ], [CmpRMB, CmpRMW, CmpRMD, CmpRMQ], [CmpMRB, CmpMRW, CmpMRD, CmpMRQ], [CmpMIB, CmpMIW, CmpMID, CmpMIQ]],
];

#[rustfmt::skip]
pub(crate) const MOV: [[OpCode; 4]; 5] = [[MovRRB, MovRRW, MovRRD, MovRRQ], [MovRIB, MovRIW, MovRID, MovRIQ], [MovRMB, MovRMW, MovRMD, MovRMQ], [MovMRB, MovMRW, MovMRD, MovMRQ], [MovMIB, MovMIW, MovMID, MovMIQ]];

/// TEST has no `RegMem` form of its own: its operands commute.
#[rustfmt::skip]
pub(crate) const TEST: [[OpCode; 4]; 5] = [[TestRRB, TestRRW, TestRRD, TestRRQ], [TestRIB, TestRIW, TestRID, TestRIQ], [TestMRB, TestMRW, TestMRD, TestMRQ], [TestMRB, TestMRW, TestMRD, TestMRQ], [TestMIB, TestMIW, TestMID, TestMIQ]];

#[rustfmt::skip]
pub(crate) const JCC_NEAR: [OpCode; 16] = [JONear, JNoNear, JBNear, JNbNear, JZNear, JNzNear, JBeNear, JNbeNear, JSNear, JNsNear, JPNear, JNpNear, JLNear, JNlNear, JLeNear, JNleNear];

#[rustfmt::skip]
pub(crate) const JCC_FAR: [OpCode; 16] = [JOFar, JNoFar, JBFar, JNbFar, JZFar, JNzFar, JBeFar, JNbeFar, JSFar, JNsFar, JPFar, JNpFar, JLFar, JNlFar, JLeFar, JNleFar];
