//! Every operation of the loop, once.
//!
//! [`operations!`] hands the list below to another macro, which makes one thing of it:
//!
//! | what | made in |
//! | --- | --- |
//! | [`OpCode`](super::OpCode), a name for each operation | `op.rs` |
//! | the functions that choose an operation for an instruction | `decode/choose.rs` |
//! | the arm of the loop that executes an operation | `exec/mod.rs` |
//! | the tests that compare the names with the rest of the row | `decode/tests.rs` |
//!
//! To add an operation, add a row to the section with its shape, and the function the row names to the file the
//! section names. All other instructions share the operations `Misc`, `Cold`, `String` and `Sse`; each of those has a
//! list of its own, written with [`family!`](super::family!).
//!
//! A name is made of the instruction, its operands' form and their size. Forms: `RR` register and register, `RI`
//! register and immediate, `RM` register and memory source, `MR` memory destination and register, `MI` memory and
//! immediate; `R` and `M` where only one operand can be either. Sizes: `B` 8, `W` 16, `D` 32, `Q` 64 bits.

/// Calls the macro `$then` with the list of operations.
macro_rules! operations {
    ($then:ident) => {
        $then! {
            // Instructions of two operands, by iced's mnemonic; each line has a form and its operations for 8, 16, 32
            // and 64 bits. Executed by the function of the form's name in `exec/forms.rs`, with the type of the
            // mnemonic's name there. TEST has no `rm`: its operands commute, and there is one encoding.
            two_operands {
                Add {
                    rr: AddRRB AddRRW AddRRD AddRRQ;
                    ri: AddRIB AddRIW AddRID AddRIQ;
                    rm: AddRMB AddRMW AddRMD AddRMQ;
                    mr: AddMRB AddMRW AddMRD AddMRQ;
                    mi: AddMIB AddMIW AddMID AddMIQ;
                }
                Or {
                    rr: OrRRB OrRRW OrRRD OrRRQ;
                    ri: OrRIB OrRIW OrRID OrRIQ;
                    rm: OrRMB OrRMW OrRMD OrRMQ;
                    mr: OrMRB OrMRW OrMRD OrMRQ;
                    mi: OrMIB OrMIW OrMID OrMIQ;
                }
                Adc {
                    rr: AdcRRB AdcRRW AdcRRD AdcRRQ;
                    ri: AdcRIB AdcRIW AdcRID AdcRIQ;
                    rm: AdcRMB AdcRMW AdcRMD AdcRMQ;
                    mr: AdcMRB AdcMRW AdcMRD AdcMRQ;
                    mi: AdcMIB AdcMIW AdcMID AdcMIQ;
                }
                Sbb {
                    rr: SbbRRB SbbRRW SbbRRD SbbRRQ;
                    ri: SbbRIB SbbRIW SbbRID SbbRIQ;
                    rm: SbbRMB SbbRMW SbbRMD SbbRMQ;
                    mr: SbbMRB SbbMRW SbbMRD SbbMRQ;
                    mi: SbbMIB SbbMIW SbbMID SbbMIQ;
                }
                And {
                    rr: AndRRB AndRRW AndRRD AndRRQ;
                    ri: AndRIB AndRIW AndRID AndRIQ;
                    rm: AndRMB AndRMW AndRMD AndRMQ;
                    mr: AndMRB AndMRW AndMRD AndMRQ;
                    mi: AndMIB AndMIW AndMID AndMIQ;
                }
                Sub {
                    rr: SubRRB SubRRW SubRRD SubRRQ;
                    ri: SubRIB SubRIW SubRID SubRIQ;
                    rm: SubRMB SubRMW SubRMD SubRMQ;
                    mr: SubMRB SubMRW SubMRD SubMRQ;
                    mi: SubMIB SubMIW SubMID SubMIQ;
                }
                Xor {
                    rr: XorRRB XorRRW XorRRD XorRRQ;
                    ri: XorRIB XorRIW XorRID XorRIQ;
                    rm: XorRMB XorRMW XorRMD XorRMQ;
                    mr: XorMRB XorMRW XorMRD XorMRQ;
                    mi: XorMIB XorMIW XorMID XorMIQ;
                }
                Cmp {
                    rr: CmpRRB CmpRRW CmpRRD CmpRRQ;
                    ri: CmpRIB CmpRIW CmpRID CmpRIQ;
                    rm: CmpRMB CmpRMW CmpRMD CmpRMQ;
                    mr: CmpMRB CmpMRW CmpMRD CmpMRQ;
                    mi: CmpMIB CmpMIW CmpMID CmpMIQ;
                }
                Test {
                    rr: TestRRB TestRRW TestRRD TestRRQ;
                    ri: TestRIB TestRIW TestRID TestRIQ;
                    mr: TestMRB TestMRW TestMRD TestMRQ;
                    mi: TestMIB TestMIW TestMID TestMIQ;
                }
                Mov {
                    rr: MovRRB MovRRW MovRRD MovRRQ;
                    ri: MovRIB MovRIW MovRID MovRIQ;
                    rm: MovRMB MovRMW MovRMD MovRMQ;
                    mr: MovMRB MovMRW MovMRD MovMRQ;
                    mi: MovMIB MovMIW MovMID MovMIQ;
                }
            }
            // Instructions with one operand that is a register or memory: the operation for each, the function in
            // `exec/fast.rs` that executes both, and iced's codes.
            register_or_memory {
                MovzxBR MovzxBM = movzx<u8>: Movzx_r32_rm8 Movzx_r64_rm8;
                MovzxWR MovzxWM = movzx<u16>: Movzx_r32_rm16 Movzx_r64_rm16;
                MovsxBDR MovsxBDM = movsx<u8, u32>: Movsx_r32_rm8;
                MovsxBQR MovsxBQM = movsx<u8, u64>: Movsx_r64_rm8;
                MovsxWDR MovsxWDM = movsx<u16, u32>: Movsx_r32_rm16;
                MovsxWQR MovsxWQM = movsx<u16, u64>: Movsx_r64_rm16;
                MovsxDQR MovsxDQM = movsx<u32, u64>: Movsxd_r64_rm32;
                CmovDR CmovDM = cmov<u32>:
                    Cmovo_r32_rm32 Cmovno_r32_rm32 Cmovb_r32_rm32 Cmovae_r32_rm32 Cmove_r32_rm32
                    Cmovne_r32_rm32 Cmovbe_r32_rm32 Cmova_r32_rm32 Cmovs_r32_rm32 Cmovns_r32_rm32
                    Cmovp_r32_rm32 Cmovnp_r32_rm32 Cmovl_r32_rm32 Cmovge_r32_rm32 Cmovle_r32_rm32
                    Cmovg_r32_rm32;
                CmovQR CmovQM = cmov<u64>:
                    Cmovo_r64_rm64 Cmovno_r64_rm64 Cmovb_r64_rm64 Cmovae_r64_rm64 Cmove_r64_rm64
                    Cmovne_r64_rm64 Cmovbe_r64_rm64 Cmova_r64_rm64 Cmovs_r64_rm64 Cmovns_r64_rm64
                    Cmovp_r64_rm64 Cmovnp_r64_rm64 Cmovl_r64_rm64 Cmovge_r64_rm64 Cmovle_r64_rm64
                    Cmovg_r64_rm64;
                ImulDR ImulDM = imul<u32>: Imul_r32_rm32;
                ImulQR ImulQM = imul<u64>: Imul_r64_rm64;
                ImulDRI ImulDMI = imul_immediate<u32>: Imul_r32_rm32_imm32 Imul_r32_rm32_imm8;
                ImulQRI ImulQMI = imul_immediate<u64>: Imul_r64_rm64_imm32 Imul_r64_rm64_imm8;
                PushR PushM = push<u64>: Push_r64 Push_rm64;
            }
            // Instructions that have an operation for one form only: `register` if the operand is a register (the
            // memory form is one of `Misc`), `any` if the instruction has one form. Also in `exec/fast.rs`.
            one_form {
                LeaW any = lea<u16>: Lea_r16_m;
                LeaD any = lea<u32>: Lea_r32_m;
                LeaQ any = lea<u64>: Lea_r64_m;
                ShlRID register = shl<u32>: Shl_rm32_imm8 Shl_rm32_1 Sal_rm32_imm8 Sal_rm32_1;
                ShlRIQ register = shl<u64>: Shl_rm64_imm8 Shl_rm64_1 Sal_rm64_imm8 Sal_rm64_1;
                ShrRID register = shr<u32>: Shr_rm32_imm8 Shr_rm32_1;
                ShrRIQ register = shr<u64>: Shr_rm64_imm8 Shr_rm64_1;
                SarRID register = sar<u32>: Sar_rm32_imm8 Sar_rm32_1;
                SarRIQ register = sar<u64>: Sar_rm64_imm8 Sar_rm64_1;
                IncRD register = inc<u32>: Inc_rm32;
                IncRQ register = inc<u64>: Inc_rm64;
                DecRD register = dec<u32>: Dec_rm32;
                DecRQ register = dec<u64>: Dec_rm64;
                PushI any = push_immediate<u64>: Pushq_imm8 Pushq_imm32;
                PopR register = pop<u64>: Pop_r64 Pop_rm64;
                Leave any = leave<u64>: Leaveq;
            }
            // Direct branches. `Near` stays in the page (`imm` is the offset in it), `Far` leaves it. The name after
            // `=` is a condition in `exec/branch.rs`.
            conditional_branches {
                JONear JOFar = o: Jo_rel8_64 Jo_rel32_64;
                JNoNear JNoFar = no: Jno_rel8_64 Jno_rel32_64;
                JBNear JBFar = b: Jb_rel8_64 Jb_rel32_64;
                JNbNear JNbFar = nb: Jae_rel8_64 Jae_rel32_64;
                JZNear JZFar = z: Je_rel8_64 Je_rel32_64;
                JNzNear JNzFar = nz: Jne_rel8_64 Jne_rel32_64;
                JBeNear JBeFar = be: Jbe_rel8_64 Jbe_rel32_64;
                JNbeNear JNbeFar = nbe: Ja_rel8_64 Ja_rel32_64;
                JSNear JSFar = s: Js_rel8_64 Js_rel32_64;
                JNsNear JNsFar = ns: Jns_rel8_64 Jns_rel32_64;
                JPNear JPFar = p: Jp_rel8_64 Jp_rel32_64;
                JNpNear JNpFar = np: Jnp_rel8_64 Jnp_rel32_64;
                JLNear JLFar = l: Jl_rel8_64 Jl_rel32_64;
                JNlNear JNlFar = nl: Jge_rel8_64 Jge_rel32_64;
                JLeNear JLeFar = le: Jle_rel8_64 Jle_rel32_64;
                JNleNear JNleFar = nle: Jg_rel8_64 Jg_rel32_64;
            }
            // The same, unconditional: the function in `exec/branch.rs` does what comes before the branch.
            branches {
                JmpNear JmpFar = jump: Jmp_rel8_64 Jmp_rel32_64;
                CallNear CallFar = call: Call_rel32_64;
            }
            // Indirect branches through a register or memory. The function in `exec/branch.rs` returns the target.
            indirect_branches {
                JmpR JmpM = jump_indirect: Jmp_rm64;
                CallR CallM = call_indirect: Call_rm64;
            }
            // Returns: the same without an operand that could be either.
            returns {
                Ret = ret: Retnq;
                RetImm = ret_and_pop: Retnq_imm16;
            }
            // Operations with an arm of their own in `exec/mod.rs`. `decode/mod.rs` and `decode/shared.rs` choose
            // them.
            special {
                /// No operation at all: NOP, fences, prefetches, ENDBR.
                Nop;
                /// Rare user-level instructions, see `exec/misc.rs`.
                Misc;
                /// String instructions, see `exec/string.rs`.
                String;
                /// SSE and x87, see `sse`.
                Sse;
                /// System instructions, see `exec/system.rs`.
                Cold;
                /// Raises #UD.
                Undefined;
                /// Ends the run: CPUID offers the instruction and the interpreter does not implement it.
                Unknown;
            }
            // Steps of the interpreter between instructions. They take no time. Also with an arm of their
            // own. `decode/mod.rs` and `decode/operands.rs` insert them.
            steps {
                /// `regs[SCRATCH]` = the low 32 bits of the common form.
                Ea32;
                /// `regs[SCRATCH] = regs[base] + (regs[index] << scale) + regs[seg] + imm`.
                EaWide;
                /// Goes on at page offset `imm` of the same page.
                LinkNear;
                /// Goes on at page offset `imm`, which lies in the next page.
                LinkFar;
                /// Stands for an instruction that runs on into the next page.
                Crossing;
            }
        }
    };
}
pub(crate) use operations;
