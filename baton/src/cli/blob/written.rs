//! A blueprint as a model file, the opposite of [`harness::handover::Model`].

use std::fmt::Write;

use harness::scenario::Bytes;
use kho_core::blueprint::{FileContentPlan, LuoPlan, MemfdPlan};
use kho_core::{Blueprint, Region};

/// The text. Writing to a string cannot fail, so results are not looked at.
pub(super) fn model(plan: &Blueprint) -> String {
    let mut out = String::new();
    if !plan.scratch.is_empty() {
        let areas = plan
            .scratch
            .iter()
            .map(|region| format!("{{ {} }}", area(region)));
        list(&mut out, "scratch", areas);
    }
    if !plan.blocks.is_empty() {
        let blocks = plan.blocks.iter().map(|block| {
            format!(
                "{{ address = {}, order = {} }}",
                number(block.address),
                block.order
            )
        });
        list(&mut out, "blocks", blocks);
    }
    for named in &plan.reserve_mem {
        let _ = writeln!(out, "\n[[reserve_mem]]\nname = {}", quoted(&named.name));
        let _ = writeln!(out, "start = {}", number(named.region.start));
        let _ = writeln!(out, "size = \"{}\"", Bytes(named.region.size));
    }
    if let Some(kexec) = &plan.kexec_metadata {
        let release = quoted(&kexec.previous_release);
        let _ = writeln!(
            out,
            "\n[kexec]\nprevious_release = {release}\ncount = {}",
            kexec.count
        );
    }
    if let Some(plan) = &plan.luo {
        luo(&mut out, plan);
    }
    for blob in &plan.blobs {
        let hex = harness::hex::encode(&blob.bytes);
        let _ = writeln!(out, "\n[[blob]]\nname = {}\nhex = \"{hex}\"", quoted(&blob.name));
    }
    out
}

fn luo(out: &mut String, plan: &LuoPlan) {
    let _ = writeln!(
        out,
        "\n[luo]\nliveupdate_number = {}",
        number(plan.liveupdate_number)
    );
    for session in &plan.sessions {
        let _ = writeln!(out, "\n[[luo.session]]\nname = {}", quoted(&session.name));
        for file in &session.files {
            let _ = writeln!(out, "\n[[luo.session.file]]\ntoken = {}", number(file.token));
            match &file.content {
                FileContentPlan::Memfd(plan) => memfd(out, plan),
                FileContentPlan::Other { compatible, data } => {
                    let compatible = quoted(compatible);
                    let _ = writeln!(
                        out,
                        "other = {{ compatible = {compatible}, data = {} }}",
                        number(*data)
                    );
                }
            }
        }
    }
    for flb in &plan.flbs {
        let (compatible, data, count) = (quoted(&flb.compatible), number(flb.data), number(flb.count));
        let _ = writeln!(
            out,
            "\n[[luo.flb]]\ncompatible = {compatible}\ndata = {data}\ncount = {count}"
        );
    }
}

fn memfd(out: &mut String, plan: &MemfdPlan) {
    let _ = writeln!(out, "[luo.session.file.memfd]\nsize = \"{}\"", Bytes(plan.size));
    let _ = writeln!(
        out,
        "position = {}\nseals = {}\nflags = {}",
        number(plan.position),
        plan.seals,
        plan.flags
    );
    let folios = plan.folios.iter().map(|folio| {
        format!(
            "{{ address = {}, order = {}, index = {}, flags = {} }}",
            number(folio.block.address),
            folio.block.order,
            number(folio.index),
            folio.flags
        )
    });
    list(out, "folios", folios);
}

fn list(out: &mut String, key: &str, items: impl Iterator<Item = String>) {
    let _ = writeln!(out, "{key} = [");
    for item in items {
        let _ = writeln!(out, "    {item},");
    }
    let _ = writeln!(out, "]");
}

fn area(region: &Region) -> String {
    format!(
        "start = {}, size = \"{}\"",
        number(region.start),
        Bytes(region.size)
    )
}

/// A number. TOML's own end at 2^63.
fn number(number: u64) -> String {
    match i64::try_from(number) {
        Ok(_) => format!("{number:#x}"),
        Err(_) => format!("\"{number:#x}\""),
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::handover::Model;
    use kho_core::blueprint::{Blob, FilePlan, FlbPlan, FolioPlan, Kexec, NamedRegion, SessionPlan};
    use kho_core::{Block, FreeRegions};
    use proptest::prelude::*;

    fn read(text: &str) -> Blueprint {
        let model: Model = toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        model.blueprint(1 << 40, &mut FreeRegions::new(vec![])).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            names in prop::collection::vec("\\PC{0,12}", 5),
            numbers in prop::collection::vec(any::<u64>(), 8),
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            frames in prop::collection::vec((0_u64..1 << 40, 0_u8..12, any::<u16>()), 0..5),
        ) {
            let folios = frames.iter().map(|(frame, order, flags)| FolioPlan {
                block: Block::new(frame << 12, *order),
                index: numbers[0],
                flags: *flags,
            });
            let memfd = MemfdPlan {
                position: numbers[1],
                size: numbers[2],
                seals: 5,
                flags: 6,
                folios: folios.collect(),
            };
            let other = FileContentPlan::Other { compatible: names[0].clone(), data: numbers[3] };
            let files = [FileContentPlan::Memfd(memfd), other].into_iter().zip(&numbers);
            let files = files.map(|(content, token)| FilePlan { token: *token, content }).collect();
            let plan = Blueprint {
                scratch: vec![Region::new(numbers[4], numbers[5])],
                blocks: frames.iter().map(|(frame, order, _)| Block::new(frame << 12, *order)).collect(),
                reserve_mem: vec![NamedRegion { name: names[1].clone(), region: Region::new(numbers[6], numbers[7]) }],
                luo: Some(LuoPlan {
                    liveupdate_number: numbers[0],
                    sessions: vec![SessionPlan { name: names[2].clone(), files }],
                    flbs: vec![FlbPlan { compatible: names[3].clone(), data: numbers[1], count: numbers[2] }],
                }),
                kexec_metadata: Some(Kexec { previous_release: names[4].clone(), count: 9 }),
                blobs: vec![Blob { name: names[0].clone(), bytes }],
            };
            prop_assert_eq!(read(&model(&plan)), plan);
        }
    }

    #[test]
    fn nothing_is_written_as_nothing() {
        assert_eq!(read(&model(&Blueprint::default())), Blueprint::default());
    }
}
