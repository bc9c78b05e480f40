//! `dualspeed prune --bench`: pruners against the clock, as tables.

use dualspeed_model::Registry;
use dualspeed_ops::Backend;
use serde_json::{Value, json};

use super::PruneArgs;
use crate::bench::prune::{self, KEEP_RATIO, PruneShapes};
use crate::bench::{Filter, PruneRow, Row};
use crate::commands::global_args::GlobalArgs;
use crate::commands::pruner_specs::parse_pruner_specs;
use crate::output::{note, print, print_line};
use crate::report::table::plain_table;

/// Times the pruners of `--pruner`, all where none is named, and prints tables or JSON.
pub(super) fn run<B: Backend>(
    args: &PruneArgs,
    global: &GlobalArgs,
    registry: &Registry<B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let default = args.pruner.len() == 1 && args.pruner[0] == "divprune";
    let all = vec!["all".to_owned()];
    let specs = parse_pruner_specs(if default { &all } else { &args.pruner }, registry)?;
    let shapes = PruneShapes { keep: args.keep, ..PruneShapes::standard() };
    let mut rows = Vec::new();
    prune::run(registry, &specs, &shapes, &Filter::default(), device, &mut |row| {
        let Row::Prune(row) = row else { return Ok(()) };
        if !global.quiet {
            let PruneRow { pruner, tokens, batch, keep, .. } = &row;
            let time = show(row.ms);
            note(format_args!(
                "{pruner:<28} n = {tokens:<5} batch = {batch:<3} keep = {keep:<5} {time}"
            ));
        }
        rows.push(row);
        Ok(())
    })?;
    if args.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({ "what": row.pruner, "tokens": row.tokens, "batch": row.batch, "keep": row.keep,
                        "seconds": row.ms.map(|ms| ms / 1e3) })
            })
            .collect();
        print_line(serde_json::to_string_pretty(&rows)?)?;
    } else {
        print(&tables(&rows, &shapes))?;
    }
    Ok(())
}

fn show(ms: Option<f64>) -> String {
    ms.map_or("-".into(), |ms| format!("{ms:.1} ms"))
}

fn tables(rows: &[PruneRow], shapes: &PruneShapes) -> String {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.pruner.as_str()) {
            names.push(&row.pruner);
        }
    }
    let table = |title: &str, cells: &[(String, usize, usize, usize)]| {
        let header: Vec<String> =
            [title.to_owned()].into_iter().chain(cells.iter().map(|cell| cell.0.clone())).collect();
        let find = |name: &str, (_, n, batch, keep): &(String, usize, usize, usize)| {
            let same = |row: &&PruneRow| (row.tokens, row.batch, row.keep) == (*n, *batch, *keep);
            rows.iter().find(|row| row.pruner == name && same(row)).and_then(|row| row.ms)
        };
        let body: Vec<Vec<String>> = names
            .iter()
            .filter(|name| cells.iter().any(|cell| find(name, cell).is_some()))
            .map(|name| {
                let cells = cells.iter().map(|cell| show(find(name, cell)));
                [(*name).to_owned()].into_iter().chain(cells).collect()
            })
            .collect();
        format!("{}\n\n", plain_table(&header, &body))
    };
    let keep_of = |n: usize, share: f64| shapes.keep_of(n, share);
    let cells: Vec<_> = shapes
        .cells
        .iter()
        .map(|(n, batch)| (format!("{n} x {batch}"), *n, *batch, keep_of(*n, KEEP_RATIO)))
        .collect();
    let sizes: Vec<_> =
        shapes.sizes.iter().map(|n| (format!("n = {n}"), *n, 1, keep_of(*n, KEEP_RATIO))).collect();
    let n = shapes.cells.first().map_or(1, |cell| cell.0);
    let shares: Vec<_> = shapes
        .shares
        .iter()
        .map(|share| keep_of(n, *share))
        .map(|keep| (format!("keep {keep}"), n, 1, keep))
        .collect();
    format!(
        "{}{}{}",
        table(&format!("tokens x batch, d = {}, 10 % kept", shapes.width), &cells),
        table("one image, 10 % kept", &sizes),
        table(&format!("one image of {n} tokens"), &shares)
    )
}
