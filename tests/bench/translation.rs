//! What translation gains: the same guest code translated and interpreted, in turns, on one machine.
//!
//! Loops are those that a live update spends most of its time in. A run is stopped before each of them and after it,
//! and the processor time between the two is what counts; decoding and translating are in it.

use crate::exits::{machine, power_off, run_to_power_off};
use crate::samples::Spread;
use ::tests::image::bzimage;
use campaign::sweep::Meter;
use harness::conductor::{Progress, Run, Until};
use harness::plan::Plan;
use serde::Serialize;
use std::fmt;
use vmm::soft::{Soft, Translation};

/// Target: how many times as fast a hot loop has to be.
const GOAL_LOOP: f64 = 8.0;
/// The same for a whole boot.
const GOAL_BOOT: f64 = 2.5;
/// Where a kernel decompresses itself, in instructions since power-on. The whole takes 19 million.
const DECOMPRESSION: [u64; 2] = [2_000_000, 16_000_000];
/// Words that one round of the copying guest copies, and its rounds.
const WORDS: u32 = 512;
const ROUNDS: u32 = 20_000;

/// One piece of guest code.
#[derive(Debug, Serialize)]
pub struct Gain {
    /// What it does.
    pub what: String,
    /// Whether it is a loop that runs often, not a whole boot.
    pub hot: bool,
    /// Guest instructions.
    pub instructions: u64,
    /// Processor time in seconds, interpreted.
    pub interpreted_s: Option<Spread>,
    /// The same translated.
    pub translated_s: Option<Spread>,
}

impl Gain {
    /// How many times as fast it is translated.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.interpreted_s?.median / self.translated_s?.median.max(1e-9))
    }

    fn goal(&self) -> f64 {
        if self.hot { GOAL_LOOP } else { GOAL_BOOT }
    }

    #[allow(clippy::cast_precision_loss)] // for people
    fn mips(&self, seconds: Option<Spread>) -> Option<f64> {
        Some(self.instructions as f64 / 1e6 / seconds?.median.max(1e-9))
    }
}

/// All pieces.
#[derive(Debug, Serialize)]
pub struct Gains(pub Vec<Gain>);

/// Instructions, and processor time in seconds.
type Took = (u64, f64);

/// Measures everything `runs` times. `lean` is the plan with the kernel that is booted, `hashing` one with a kernel
/// whose purgatory checks its segments by SHA-256.
pub fn measure(lean: &Plan, hashing: &Plan, agent: &[u8], runs: u32) -> Result<Gains, String> {
    let between = |plan: &Plan, from: Option<Until>, to: Until, soft: Soft| {
        let mut run = Run::new(plan, agent, &soft, &[]).map_err(|error| error.to_string())?;
        if let Some(from) = from {
            reach(&mut run, from)?;
        }
        let (meter, before) = (Meter::start(), retired(&run));
        reach(&mut run, to)?;
        Ok((retired(&run) - before, meter.elapsed().as_secs_f64()))
    };
    let [from, to] = DECOMPRESSION.map(Until::Instructions);
    let kernel = |plan: &Plan| plan.old_kernel.release.clone();
    Ok(Gains(vec![
        gain(
            format!("SHA-256 in the purgatory of {}", kernel(hashing)),
            true,
            runs,
            |soft| between(hashing, Some(Until::jump(0)), Until::entry(1), soft),
        )?,
        gain(
            format!("{} decompresses itself (LZ4)", kernel(lean)),
            true,
            runs,
            |soft| between(lean, Some(from), to, soft),
        )?,
        gain("memory is copied by words".into(), true, runs, copy)?,
        gain(
            format!("{} boots to its agent", kernel(lean)),
            false,
            runs,
            |soft| {
                let prepare = vmm::phase::Stamp {
                    generation: 0,
                    phase: vmm::phase::Phase::Prepare,
                };
                between(lean, None, Until::Phase(prepare), soft)
            },
        )?,
    ]))
}

/// Measures one piece both ways in turns; the first turn warms up.
fn gain(
    what: String,
    hot: bool,
    runs: u32,
    once: impl Fn(Soft) -> Result<Took, String>,
) -> Result<Gain, String> {
    let mut times = [Vec::new(), Vec::new()];
    let mut instructions = 0;
    for run in 0..=runs {
        for (times, translation) in times.iter_mut().zip([Translation::Off, Translation::Hot]) {
            let (count, seconds) = once(Soft { translation })?;
            if instructions != 0 && count != instructions {
                return Err(format!("{what}: {count} instructions, and {instructions} before"));
            }
            instructions = count;
            if run > 0 {
                times.push(seconds);
            }
        }
    }
    let [interpreted, translated] = times;
    Ok(Gain {
        what,
        hot,
        instructions,
        interpreted_s: Spread::of(interpreted),
        translated_s: Spread::of(translated),
    })
}

fn reach(run: &mut Run, place: Until) -> Result<(), String> {
    match run.proceed(&[place], &()) {
        Progress::Paused(_) => Ok(()),
        Progress::Ended => Err(format!("the run ended before it came to {place}")),
    }
}

fn retired(run: &Run) -> u64 {
    run.stands_at().retired.unwrap_or(0)
}

/// A guest that copies a page by 64-bit words, again and again.
fn copy(soft: Soft) -> Result<Took, String> {
    let mut machine = machine(&soft, &bzimage(&copying(ROUNDS)))?;
    let meter = Meter::start();
    run_to_power_off(&mut machine)?;
    Ok((
        machine.moment().retired.unwrap_or(0),
        meter.elapsed().as_secs_f64(),
    ))
}

fn copying(rounds: u32) -> Vec<u8> {
    let mut code = vec![0xbb]; // mov ebx, rounds
    code.extend(rounds.to_le_bytes());
    code.push(0xbe); // mov esi, 0x180_0000
    code.extend(0x180_0000_u32.to_le_bytes());
    code.push(0xbf); // mov edi, 0x180_1000
    code.extend(0x180_1000_u32.to_le_bytes());
    code.push(0xb9); // mov ecx, WORDS
    code.extend(WORDS.to_le_bytes());
    code.extend([0x48, 0x8b, 0x06]); // mov rax, [rsi]
    code.extend([0x48, 0x89, 0x07]); // mov [rdi], rax
    code.extend([0x48, 0x83, 0xc6, 8]); // add rsi, 8
    code.extend([0x48, 0x83, 0xc7, 8]); // add rdi, 8
    code.extend([0xff, 0xc9]); // dec ecx
    code.extend([0x75, 0xee]); // jnz to the load
    code.extend([0xff, 0xcb]); // dec ebx
    code.extend([0x75, 0xdb]); // jnz to the mov esi
    code.extend(power_off());
    code
}

impl fmt::Display for Gains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "What translation gains, in processor time of the same guest code in turns\n"
        )?;
        writeln!(
            f,
            "  {:<46}{:>14}{:>18}{:>17}{:>9}",
            "", "million insns", "interpreted MIPS", "translated MIPS", "ratio"
        )?;
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        for gain in &self.0 {
            let reached = gain.ratio().is_some_and(|ratio| ratio >= gain.goal());
            writeln!(
                f,
                "  {:<46}{:>14}{:>18}{:>17}{:>9}  {} at least {}",
                gain.what,
                gain.instructions / 1_000_000,
                number(gain.mips(gain.interpreted_s), 0),
                number(gain.mips(gain.translated_s), 0),
                number(gain.ratio(), 1),
                if reached { "reached" } else { "missed " },
                gain.goal(),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copying_guest_copies_and_ends() {
        let (count, _) = copy(Soft::default()).unwrap();
        // Six instructions a word, five a round, and a few around it.
        let expected = u64::from(ROUNDS) * (6 * u64::from(WORDS) + 5);
        assert!((expected..expected + 10).contains(&count), "{count}, {expected}");
    }

    #[test]
    fn a_row_says_whether_its_goal_is_reached() {
        let gain = |interpreted, translated| Gain {
            what: "a loop".into(),
            hot: true,
            instructions: 10_000_000,
            interpreted_s: Spread::of([interpreted]),
            translated_s: Spread::of([translated]),
        };
        let text = Gains(vec![gain(1.0, 0.1), gain(1.0, 0.5)]).to_string();
        assert!(text.contains("10.0  reached at least 8"), "{text}");
        assert!(text.contains("2.0  missed  at least 8"), "{text}");
    }
}
